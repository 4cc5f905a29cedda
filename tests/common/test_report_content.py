"""Curves, assumptions, hazards and facts of a report are those of the ledgers and files."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from common.accounting import spent
from common.audit import Audit, LedgerInput, audit
from common.chain import event_of
from common.errors import ConfedError, ConfigError
from common.mechanism import Composed, Gaussian, Repeated
from common.report_assumptions import assumptions
from common.report_content import event_rows, hash_rows, opt_out_rows, utility_rows
from common.report_curves import curve_of, curves
from common.report_facts import FIELDS, Facts, read_facts
from common.report_files import read_empirical
from common.report_hazards import _MEASURED, NOT_RUN, hazards
from tests.ledgers import CAPS, Made, Run, extend, make_consortium, make_ledger, one_round


def of(*sites: Made) -> Audit:
    return audit([LedgerInput(where=m.site, data=m.data, key=m.key.public) for m in sites])


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return of(make_ledger(tmp_path_factory.mktemp("one"), runs=(Run(rounds=70, noise=3.0),)))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    sites, _ = make_consortium(tmp_path_factory.mktemp("many"), run=Run(rounds=4, evaluate=40.0))
    return of(*sites)


def test_a_curve_has_at_most_forty_points_and_ends_at_the_published_epsilon(single: Audit) -> None:
    curve = curve_of(single.sites[0])
    assert len(curve.points) <= 41
    assert (curve.points[0].count, curve.points[-1].count) == (1, 70)
    assert curve.points[-1].spent == single.sites[0].verdict.spent
    values = [point.spent.epsilon for point in curve.points]
    assert values == sorted(values)
    middle = curve.points[20]
    event = Repeated(count=middle.count, event=Run(noise=3.0).event)
    assert middle.spent.epsilon == spent(event, delta=CAPS.delta).epsilon


def test_each_run_ends_where_the_next_begins(tmp_path: Path) -> None:
    runs = (Run(rounds=3, noise=3.0), Run(name="run-2", rounds=4, noise=3.0))
    curve = curve_of(of(make_ledger(tmp_path, runs=runs)).sites[0])
    assert [(end.run, end.first, end.last) for end in curve.runs] == [
        ("run-1", 1, 3),
        ("run-2", 4, 7),
    ]


def test_so_many_further_rounds_fit_and_one_more_does_not(single: Audit) -> None:
    ahead = curve_of(single.sites[0]).ahead
    assert ahead is not None
    base = event_of(single.sites[0].state.spent["all"])

    def after(rounds: int) -> float:
        more = Repeated(count=rounds, event=ahead.event)
        return spent(Composed(events=(base, more)), delta=CAPS.delta).epsilon

    assert after(ahead.left) <= CAPS.epsilon < after(ahead.left + 1)
    assert dict(ahead.points)[ahead.left] <= CAPS.epsilon


def test_sites_that_did_the_same_share_their_curve(several: Audit) -> None:
    first, *others = curves(several.sites)
    assert all(one.points == first.points for one in others)
    assert [one.site for one in (first, *others)] == [site.name for site in several.sites]


def told(found: Audit) -> dict[str, str]:
    return {row.holds: row.epsilon for row in assumptions(found)}


def number(text: str) -> float:
    return float(text.split(maxsplit=1)[0].rstrip(",:"))


def test_a_failed_assumption_never_makes_epsilon_smaller(several: Audit) -> None:
    now = several.sites[0].verdict.spent.epsilon
    rows = told(several)
    figures = [number(text) for text in rows.values() if text[0].isdigit()]
    assert len(figures) >= 7
    assert min(figures) >= now


def test_the_epsilon_of_each_failure_is_computed(single: Audit) -> None:
    rows, now = told(single), single.sites[0].verdict.spent
    known = spent(
        Repeated(count=70, event=Gaussian(noise_multiplier=3.0)), delta=CAPS.delta
    ).epsilon
    halved = spent(Repeated(count=70, event=Run(noise=1.5).event), delta=CAPS.delta).epsilon
    replaced = spent(
        Repeated(count=70, event=Run(noise=3.0).event), delta=CAPS.delta, adjacency="replace-one"
    ).epsilon
    batches = rows["Nobody learns who was drawn into which batch"]
    assert number(batches) == pytest.approx(known, abs=0.011)
    assert number(rows["The noise is as large as declared"]) == pytest.approx(halved, abs=0.011)
    compared = rows["What is compared is a person's being in the records or not"]
    assert number(compared) == pytest.approx(replaced, abs=0.011)
    twice = rows["A person stands in the records under one id"]
    assert number(twice) == pytest.approx(2 * now.epsilon, abs=0.011)
    assert rows["The noise is secret and fresh"].startswith("∞")


def test_adaptive_ledgers_are_never_told_a_smaller_epsilon(tmp_path: Path) -> None:
    made = make_ledger(tmp_path, runs=(Run(rounds=3, noise=3.0),))
    extend(made, Run(name="run-2", rounds=3, noise=4.0))
    found = of(made)
    now = found.sites[0].verdict.spent.epsilon
    assert found.sites[0].verdict.adaptive
    assert all(number(t) >= now for t in told(found).values() if t[0].isdigit())


def test_what_is_too_large_is_said_to_be_so(tmp_path: Path) -> None:
    made = make_ledger(tmp_path, runs=(Run(rounds=1),))
    found = of(made)
    broken = make_ledger(tmp_path / "b", runs=())
    assert "too large" not in " ".join(told(found).values())
    assert number(told(of(broken))["The server keeps to the protocol"]) == 0


def test_events_say_what_was_paid_twice_and_never_answered(tmp_path: Path) -> None:
    run = Run(rounds=3, noise=3.0, unanswered=(2,), planned=5)
    made = make_ledger(tmp_path, runs=(run,))
    one_round(made, Run(rounds=3, planned=5, noise=3.0), 2)
    (row,) = event_rows(of(made))
    assert (row.planned, row.paid, row.answered) == (5, 4, 3)
    assert row.remark == "paid again: rounds 2"
    silent = make_ledger(tmp_path / "b", runs=(run,))
    assert event_rows(of(silent))[0].remark == "paid, not answered: rounds 2"


def test_hashes_of_a_shared_plan_stand_once(several: Audit) -> None:
    (row,) = hash_rows(several)
    assert row.sites == "every site"
    assert (row.plan[0], row.backbone[0], row.catalog[0]) == ("1", "2", "3")


def check(name: str, passed: bool = True) -> dict[str, Any]:
    verdict = "passed" if passed else "FAILED"
    return {"name": name, "figure": "1", "passes_at": "1", "passed": passed, "verdict": verdict}


def empirical(**tiers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": "confed-empirical-1",
        "mechanism": "product",
        "note": "a lower bound is not a proof of privacy",
        "tiers": {n: {"title": n, "passed": True, "checks": c} for n, c in tiers.items()},
    }


def test_a_hazard_without_its_test_is_not_run(single: Audit) -> None:
    states = {hazard.name: hazard for hazard in hazards(single, None)}
    assert sum(hazard.result == NOT_RUN for hazard in states.values()) == 7
    assert {hazard.state for hazard in states.values()} == {"passed", "open", "design"}


def test_a_hazard_has_the_result_of_its_checks(single: Audit) -> None:
    found = empirical(
        a=[check("subject with NaN"), check("noise std, worst tensor", passed=False)],
        c=[check("control, no noise: TPR at 1% FPR")],
    )
    states = {hazard.name: (hazard.state, hazard.result) for hazard in hazards(single, found)}
    assert states["One person's contribution is not bounded (sensitivity)"] == (
        "passed",
        "tier A: 1 of 1 checks passed",
    )
    smaller = states["The noise is smaller than declared, or missing somewhere"]
    assert smaller[0] == "failed"
    assert "noise std, worst tensor" in smaller[1]
    assert states["Membership can be told from the released model"][0] == "passed"
    assert states["A fault that no single test foresees"] == ("open", NOT_RUN)


def test_every_check_of_the_mechanism_tests_belongs_to_a_hazard_and_no_hazard_lacks_one() -> None:
    folder = Path(__file__).parents[2] / "simulations" / "empirical"
    source = (folder / "mechanism_tests.py").read_text() + (folder / "generator.py").read_text()
    names = re.findall(r'(?:name=|_moved\()f?"([^"{]{2,})', source)
    assert len(names) > 10
    prefixes = [p for measured in _MEASURED if measured.tier == "a" for p in measured.checks]
    assert [name for name in names if not name.startswith(tuple(prefixes))] == []
    assert [p for p in prefixes if not any(name.startswith(p) for name in names)] == []


def test_seeded_noise_and_faults_fail_their_hazards(tmp_path: Path) -> None:
    made = make_ledger(tmp_path, runs=(Run(rounds=2),), seeded=True)
    made.path.write_bytes(made.data[:-1])
    states = {hazard.name: hazard.state for hazard in hazards(of(made), None)}
    assert states["Noise that somebody can subtract"] == "failed"
    assert states["The record of what was spent is edited, incomplete or old"] == "failed"


def written(folder: Path, text: str) -> Path:
    path = folder / "facts.toml"
    path.write_text(text)
    return path


def test_every_fact_is_read(tmp_path: Path) -> None:
    lines = ['title = "T"', f'bundle_sha256 = "{"a" * 64}"']
    for table, keys in FIELDS.items():
        lines += [f"[{table}]", *(f'{key} = "{table} {key}"' for key in keys)]
    lines += ["[sites.clinic-1]", 'controller = "C"', "subjects = 2000", "opt_outs = 3"]
    facts = read_facts(written(tmp_path, "\n".join(lines)))
    assert len(facts.fields) == sum(map(len, FIELDS.values()))
    assert facts.fields["processing", "retention"] == "processing retention"
    assert facts.sites["clinic-1"].subjects == 2000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[controler]", "did you mean controller"),
        ("[processing]\nlegal_bases = 'x'", "did you mean legal_basis"),
        ("[sites.clinic-1]\nsubject = 3", "did you mean subjects"),
        ("[sites.'Jane Doe!']\nsubjects = 3", "a site's name"),
        ("[sites.a]\nsubjects = -1", "whole number"),
        ("[sites.a]\nsubjects = true", "whole number"),
        ("title = 3", "Expected title as text"),
        ("controller = 'x'", "to be a table"),
        ("title = ", "Expected TOML"),
        ("title = '" + "x" * 5000 + "'", "at most 4000"),
    ],
)
def test_facts_of_another_layout_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_facts(written(tmp_path, text))


def test_opt_outs_are_the_sites_own_to_tell(several: Audit, tmp_path: Path) -> None:
    facts = read_facts(written(tmp_path, "[sites.bank-1]\nopt_outs = 4"))
    rows = {name: people for name, _, people in opt_out_rows(several, facts)}
    assert rows["bank-1"] == "4"
    assert {rows[name] for name in rows if name != "bank-1"} == {""}
    assert all(people == "" for *_, people in opt_out_rows(several, Facts()))


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"tiers": {"z": {"title": "z", "checks": []}}},
        {"tiers": {"a": {"title": "a", "checks": [{"name": "x"}]}}},
        {"tiers": {"b": {"title": "b", "checks": [], "probes": [{"m": "x"}]}}},
        {"tiers": []},
        {"note": 3},
    ],
)
def test_empirical_results_of_another_layout_are_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "empirical.json"
    path.write_text(json.dumps(empirical(a=[check("x")])))
    assert read_empirical(path) is not None
    path.write_text(json.dumps({**empirical(), **change}))
    with pytest.raises(ConfedError, match="confed-empirical-1"):
        read_empirical(path)


def test_a_summary_without_domains_or_scores_shows_none() -> None:
    assert utility_rows(None) == utility_rows({}) == utility_rows({"domains": 3}) == ()
    metrics = {"federated": {"ndcg@10": 0.29}, "local": {"ndcg@10": math.nan}}
    rows = utility_rows({"domains": {"care": {"metrics": metrics}}})
    assert rows == (("care", ("—", "—", "0.290", "—")),)
