import json

from simulations.empirical.findings import Check, Tier


def check(*, passed: bool, verdict: str = "") -> Check:
    return Check(name="noise", figure="1.0", passes_at="1", passed=passed, verdict=verdict)


def test_a_verdict_says_passed_or_failed_unless_it_says_more() -> None:
    assert check(passed=True).said == "passed"
    assert check(passed=False).said == "FAILED"
    assert check(passed=False, verdict="attack too weak").said == "attack too weak"


def test_a_tier_passes_when_every_check_does() -> None:
    good = Tier(name="a", checks=(check(passed=True),), seconds=1.0)
    bad = Tier(name="a", checks=(check(passed=True), check(passed=False)), seconds=1.0)
    assert good.passed
    assert not bad.passed
    assert bad.failures == ("noise",)


def test_a_tier_is_json_with_its_figures_beside_its_checks() -> None:
    tier = Tier(name="b", checks=(check(passed=True),), seconds=1.23, figures={"m": 1000})
    told = json.loads(json.dumps(tier.as_json()))
    assert told["m"] == 1000
    assert told["title"].startswith("one-run audit")
    assert told["checks"] == [
        {"name": "noise", "figure": "1.0", "passes_at": "1", "passed": True, "verdict": "passed"}
    ]
