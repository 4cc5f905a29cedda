import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.objectives import as_rating, candidates, draw_negatives, row_losses
from common.plan import RecommenderPlan

RANKING = RecommenderPlan(objective="ranking")


def scores_of(rows: int, columns: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_a_small_catalog_is_taken_whole() -> None:
    assert draw_negatives(16, 16, torch.Generator()) is None
    chosen = candidates(torch.tensor([3, 1, 3]), 5, None)
    assert chosen.items.tolist() == [0, 1, 2, 3, 4]
    assert chosen.column.tolist() == [3, 1, 3]
    assert chosen.mask is None


@given(st.integers(17, 200), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_negatives_are_distinct_public_and_repeat_with_their_seed(items: int, seed: int) -> None:
    drawn = [draw_negatives(items, 16, torch.Generator().manual_seed(seed)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert len(drawn[0].unique()) == 16
    assert 0 <= int(drawn[0].min()) <= int(drawn[0].max()) < items


@given(
    st.lists(st.integers(0, 59), min_size=1, max_size=30),
    st.lists(st.integers(0, 59), min_size=4, max_size=20, unique=True),
)
@settings(max_examples=50, deadline=None)
def test_a_row_sees_the_public_sample_and_its_own_target_alone(
    target: list[int], sample: list[int]
) -> None:
    negatives = torch.tensor(sorted(sample))
    chosen = candidates(torch.tensor(target), 60, negatives)
    assert len(chosen.items.unique()) == len(chosen.items)
    assert chosen.items[chosen.column].tolist() == target
    assert chosen.mask is not None
    for row, own in enumerate(target):
        seen = set(chosen.items[chosen.mask[row]].tolist())
        assert seen == set(sample) | {own}


def test_ranking_is_cross_entropy_over_the_whole_catalog() -> None:
    scores, target = scores_of(6, 20), torch.tensor([1, 5, 19, 0, 5, 7])
    found = row_losses(scores, torch.ones(6), candidates(target, 20, None), RANKING)
    wanted = torch.nn.functional.cross_entropy(scores, target, reduction="none")
    torch.testing.assert_close(found, wanted)


def test_sampled_ranking_estimates_the_whole_catalogs_partition() -> None:
    """log(n / sampled) on the negatives: a sample of equal scores gives the exact loss."""
    chosen = candidates(torch.tensor([40]), 60, torch.arange(20))
    scores = torch.full((1, 21), 2.0)
    found = row_losses(scores, torch.ones(1), chosen, RANKING)
    assert float(found) == pytest.approx(math.log(60 + 1), rel=1e-5)


def test_a_row_s_loss_is_the_same_alone_and_in_company() -> None:
    negatives, target = torch.arange(0, 40, 2), torch.tensor([41, 3, 8, 55])
    table = scores_of(4, 60)
    together = candidates(target, 60, negatives)
    found = row_losses(table[:, together.items], torch.ones(4), together, RANKING)
    for row in range(4):
        alone = candidates(target[row : row + 1], 60, negatives)
        one = row_losses(table[row : row + 1, alone.items], torch.ones(1), alone, RANKING)
        torch.testing.assert_close(found[row : row + 1], one)


@pytest.mark.parametrize("objective", ["ranking", "click", "rating"])
@pytest.mark.parametrize("sampled", [True, False])
def test_a_loss_is_one_number_a_row_that_no_other_row_moves(objective: str, sampled: bool) -> None:
    plan = RecommenderPlan(objective=objective)
    chosen = candidates(torch.tensor([3, 50, 7]), 60, torch.arange(0, 60, 3) if sampled else None)
    scores = scores_of(3, len(chosen.items)).requires_grad_()
    losses = row_losses(scores, torch.tensor([1.0, 5.0, 4.0]), chosen, plan)
    assert losses.shape == (3,)
    for row in range(3):
        (grad,) = torch.autograd.grad(losses[row], scores, retain_graph=True)
        others = torch.arange(3) != row
        assert (grad[others] == 0).all()
        assert grad[row].any()


@pytest.mark.parametrize("objective", ["ranking", "click", "rating"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_bad_row_leaves_the_gradients_of_the_others_alone(objective: str, bad: float) -> None:
    plan = RecommenderPlan(objective=objective)
    chosen = candidates(torch.tensor([3, 50, 7]), 60, torch.arange(0, 60, 3))
    value, grads = torch.tensor([1.0, 5.0, 4.0]), []
    for spoilt in (False, True):
        scores = scores_of(3, len(chosen.items))
        if spoilt:
            scores[1], value[1] = bad, float("nan")
        scores.requires_grad_()
        row_losses(scores, value, chosen, plan).sum().backward()
        grads.append(scores.grad[[0, 2]])
    assert torch.equal(*grads)


def test_click_is_binary_cross_entropy_of_a_rating_of_four_or_more() -> None:
    plan, chosen = RecommenderPlan(objective="click"), candidates(torch.tensor([1, 1]), 3, None)
    scores = torch.tensor([[0.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
    found = row_losses(scores, torch.tensor([4.0, 3.9]), chosen, plan)
    yes = math.log(1 + math.exp(-2.0))
    torch.testing.assert_close(found, torch.tensor([yes, yes + 2.0]))


def test_rating_is_a_squared_error_that_as_rating_inverts() -> None:
    plan, chosen = RecommenderPlan(objective="rating"), candidates(torch.tensor([0]), 1, None)
    for rating in (1.0, 2.5, 5.0):
        score = torch.tensor([[(rating - 3) / 2 / 0.1]])
        loss = row_losses(score, torch.tensor([rating]), chosen, plan)
        assert float(loss) == pytest.approx(0.0, abs=1e-10)
        assert float(as_rating(score)) == pytest.approx(rating)
    assert as_rating(torch.tensor([1e9, -1e9])).tolist() == [5.0, 1.0]


def test_a_rating_outside_of_one_to_five_is_clamped() -> None:
    plan, chosen = RecommenderPlan(objective="rating"), candidates(torch.tensor([0, 0]), 1, None)
    found = row_losses(torch.zeros(2, 1), torch.tensor([1e30, 5.0]), chosen, plan)
    assert found[0] == found[1]
