import numpy as np
import pytest
from numpy.typing import NDArray

from common.splits import leave_one_out
from common.textpath import ActivationStore
from simulations.evaluation import Examiner, grade, make_examiner, questions
from simulations.grades import Grades
from tests.models import (
    backbone_of,
    catalog_of,
    model_of,
    noisy,
    recommender_plan,
    records_of,
)

PLAN = recommender_plan(top_layers=0, objective="rating")


def examiner(domain: str, seed: int) -> Examiner:
    splits = {
        f"{domain}-1": leave_one_out(records_of([2 + i % 4 for i in range(30)], seed=seed)),
        f"{domain}-2": leave_one_out(records_of([2 + i % 3 for i in range(25)], seed=seed + 1)),
    }
    return make_examiner(
        questions(splits, 24),
        catalog_of(24, domain=domain),
        plan=PLAN,
        backbone=backbone_of("bert"),
        store=ActivationStore(),
    )


def arrays(domain: str, seed: int) -> dict[str, NDArray[np.float32]]:
    start = model_of(PLAN, seed=None)
    found = {name: t.numpy() for name, t in noisy(start.adapter(), seed).items()}
    return {name.replace(".care", f".{domain}"): value for name, value in found.items()}


@pytest.fixture
def grades() -> Grades:
    return Grades({"care": examiner("care", 1), "bank": examiner("bank", 5)})


def test_a_site_alone_is_graded_on_its_own_subjects_and_the_domain_on_all_of_them(
    grades: Grades,
) -> None:
    mine = {f"care-{n}": arrays("care", n) for n in (1, 2)}
    for site, tensors in mine.items():
        grades.put("local", site, tensors)
    domain = grades.domain("care")
    asked = grades.asked("care")
    expected = []
    for site, tensors in mine.items():
        one = examiner("care", 1)
        whole = grade(one.top(tensors), asked, one.vectors, one.target_scores(tensors), "rating")
        own = asked.site == site
        expected.append(whole.per_subject["ndcg@10"][own])
        assert grades.site(site, "care")["local"]["ndcg@10"] == pytest.approx(expected[-1].mean())
    assert domain.metrics["local"]["ndcg@10"] == pytest.approx(np.concatenate(expected).mean())
    assert set(domain.slices) == {"head items", "tail items", "cold subjects"}
    assert domain.metrics["local"]["rmse"] > 0
    assert grades.site("bank-1", "bank") == {}


def test_the_same_model_alone_and_federated_has_the_same_figures(grades: Grades) -> None:
    tensors = arrays("care", 3)
    grades.adapter("federated", tensors, only="care")
    for site in ("care-1", "care-2"):
        grades.put("local", site, tensors)
    found = grades.domain("care")
    assert found.metrics["local"] == pytest.approx(found.metrics["federated"])
    for by_method in found.slices.values():
        assert by_method["local"] == pytest.approx(by_method["federated"], nan_ok=True)
    for site in ("care-1", "care-2"):
        of_site = grades.site(site, "care")
        assert of_site["local"] == pytest.approx(of_site["federated"])
    assert grades.transfer()["care"] == {"care": pytest.approx(0)}
    assert grades.intervals(1)["care"] == pytest.approx((0, 0))


def test_transfer_is_what_federating_with_another_domain_adds(grades: Grades) -> None:
    for domain, other in (("care", "bank"), ("bank", "care")):
        grades.put("single", domain, arrays(domain, 1))
        for n in (1, 2):
            grades.put("local", f"{domain}-{n}", arrays(domain, 10 + n))
        del other
    grades.adapter("federated", arrays("care", 2) | arrays("bank", 2))
    found = grades.transfer()
    ndcg = {d: {m: v["ndcg@10"] for m, v in grades.domain(d).metrics.items()} for d in found}
    single = {}
    for domain, seed in (("care", 1), ("bank", 5)):
        one = examiner(domain, seed)
        top = one.top(arrays(domain, 1))
        single[domain] = grade(top, one.asked, one.vectors).whole["ndcg@10"]
    for target, source in (("care", "bank"), ("bank", "care")):
        assert found[source][target] == pytest.approx(
            ndcg[target]["federated"] / single[target] - 1
        )
        assert found[target][target] == pytest.approx(single[target] / ndcg[target]["local"] - 1)
    assert "single" not in ndcg["care"]


def test_methods_stand_in_the_order_of_the_table(grades: Grades) -> None:
    grades.adapter("federated", arrays("care", 2) | arrays("bank", 2))
    grades.popularity()
    grades.adapter("zero_shot", {})
    assert list(grades.domain("bank").metrics) == ["zero_shot", "popularity", "federated"]
    assert list(grades.site("bank-2", "bank")) == ["zero_shot", "popularity", "federated"]


def test_the_interval_holds_the_difference_and_repeats_for_a_seed(grades: Grades) -> None:
    grades.adapter("federated", arrays("care", 2) | arrays("bank", 2))
    for n in (1, 2):
        grades.put("local", f"care-{n}", arrays("care", n))
    low, high = grades.intervals(7)["care"]
    metrics = grades.domain("care").metrics
    assert low < metrics["federated"]["ndcg@10"] - metrics["local"]["ndcg@10"] < high
    assert grades.intervals(7)["care"] == (low, high)
    assert "bank" not in grades.intervals(7)
