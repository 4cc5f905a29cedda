import numpy as np
import pytest
import torch

from common.held_out import DEPTH, HeldOut
from common.splits import leave_one_out
from common.textpath import ActivationStore
from simulations.evaluation import make_examiner, questions
from simulations.metrics import ranking_metrics
from tests.models import backbone_of, catalog_of, model_of, noisy, recommender_plan, records_of

RECORDS = records_of([1 + i % 7 for i in range(50)])
PLAN = recommender_plan()


def held_out(records: object = RECORDS) -> HeldOut:
    return HeldOut(
        catalog_of(), leave_one_out(records), PLAN, backbone=backbone_of("bert"),  # type: ignore[arg-type]
        store=ActivationStore(),
    )  # fmt: skip


def adapter(seed: int) -> dict[str, torch.Tensor]:
    return noisy(model_of(PLAN, seed=None).adapter(), seed)


@pytest.mark.parametrize("seed", range(4))
def test_each_subjects_figures_are_those_of_the_researchers_evaluation(seed: int) -> None:
    split = leave_one_out(RECORDS)
    asked = questions({"north": split}, 24)
    examiner = make_examiner(
        asked, catalog_of(), plan=PLAN, backbone=backbone_of("bert"), store=ActivationStore()
    )
    found = held_out().figures(adapter(seed))
    top = examiner.top({name: value.numpy() for name, value in adapter(seed).items()})
    wanted = ranking_metrics(top, asked.target)
    np.testing.assert_allclose(found[:, 1], wanted["ndcg@10"], atol=1e-6)
    np.testing.assert_allclose(found[:, 2], wanted["hit_rate@10"], atol=1e-6)
    assert (found[:, 0] == 1).all()


def test_one_after_another_the_adapters_do_not_mix() -> None:
    one = held_out()
    first = one.figures(adapter(1))
    one.figures(adapter(2))
    assert np.array_equal(one.figures(adapter(1)), first)


def test_only_subjects_with_an_item_to_hold_out_are_asked() -> None:
    split = leave_one_out(RECORDS)
    one = held_out()
    assert one.subjects.tolist() == np.flatnonzero(split.test_target >= 0).tolist()
    assert len(one.figures(adapter(0))) == len(one.subjects) < 50


def test_nobody_to_ask_gives_no_figures() -> None:
    found = held_out(records_of([1] * 20)).figures(adapter(0))
    assert found.shape == (0, 3)


def test_every_figure_is_bounded_whatever_the_adapter() -> None:
    for broken in (torch.nan, torch.inf, 1e38):
        tensors = {name: torch.full_like(value, broken) for name, value in adapter(0).items()}
        found = held_out().figures(tensors)
        assert np.isfinite(found).all()
        assert ((found >= 0) & (found <= 1)).all()


def test_all_items_tied_is_no_hit() -> None:
    """A model that says the same of everything has found nothing: ties count against it."""
    zero = {name: torch.zeros_like(value) for name, value in adapter(0).items()}
    one = held_out()
    one._vectors = torch.zeros_like(one._vectors)
    found = one.figures(zero)
    longest = int(RECORDS.counts.max())
    assert 24 - longest > DEPTH
    assert not found[:, 1:].any()
