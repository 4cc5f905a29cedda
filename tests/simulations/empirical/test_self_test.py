import json

from simulations.empirical.broken import BROKEN
from simulations.empirical.run import Request
from simulations.empirical.self_test import PRODUCT, Case, SelfTest, self_test

QUICK = Request(tiers=("b",), seeds=2)


def test_tier_b_catches_what_it_has_to_and_not_the_product() -> None:
    tested = self_test(QUICK)
    assert tested.passed
    names = [case.name for case in tested.cases]
    assert names == [PRODUCT, *(n for n, b in BROKEN.items() if "b" in b.caught_by)]
    assert tested.cases[0].caught == {"b": ()}
    assert all(case.caught["b"] for case in tested.cases[1:])


def case(**changed: object) -> Case:
    plain = {"name": "no-noise", "fault": "no noise", "caught": {"a": ("x",)}, "wanted": ("a",)}
    return Case(**{**plain, **changed})


def test_a_broken_mechanism_that_passes_fails_the_self_test() -> None:
    assert case().passed
    assert not case(caught={"a": ()}).passed
    assert not case(caught={"a": ("x",), "b": ()}, wanted=("a", "b")).passed
    assert not case(name=PRODUCT, wanted=()).passed
    assert case(name=PRODUCT, caught={"a": ()}, wanted=()).passed


def test_the_self_test_is_json() -> None:
    told = json.loads(json.dumps(SelfTest(cases=(case(),)).as_json()))
    assert told["passed"] is True
    assert told["cases"]["no-noise"]["caught"] == {"a": ["x"]}
