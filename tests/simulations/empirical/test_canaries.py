import numpy as np
import pytest
import torch

from common.errors import ConfigError
from simulations.empirical.canaries import (
    CLIP,
    DELTA,
    canaries_of,
    guesses_of,
    one_run,
)
from simulations.empirical.product import (
    Product,
    Step,
    noise_for,
    released_sum,
)

QUIET = Step(noise_multiplier=0.0, max_grad_norm=CLIP)


def only(count: int, *who: int) -> np.ndarray:
    included = np.zeros(count, bool)
    included[list(who)] = True
    return included


@pytest.mark.parametrize("who", [0, 7, 99])
def test_a_lone_canary_scores_one_clip_and_all_others_nothing(who: int) -> None:
    canaries = canaries_of(100)
    total = released_sum(Product(), canaries.site(only(100, who)), QUIET)
    scores = canaries.scores(total) / CLIP
    assert scores[who] == pytest.approx(1.0, abs=1e-5)
    assert np.abs(np.delete(scores, who)).max() < 1e-6


def test_a_canary_pushes_nothing_besides_its_own_direction() -> None:
    canaries = canaries_of(100)
    total = released_sum(Product(), canaries.site(only(100, 42)), QUIET)
    length = np.sqrt(sum(float(np.square(value).sum()) for value in total.values()))
    assert length == pytest.approx(CLIP, rel=1e-5)
    assert all(np.abs(value).max() > 0.1 * CLIP for value in total.values())  # every tensor


def test_without_noise_the_scores_are_the_coins() -> None:
    canaries = canaries_of(150)
    included = np.random.default_rng(0).integers(0, 2, 150).astype(bool)
    total = released_sum(Product(), canaries.site(included), QUIET)
    assert np.abs(canaries.scores(total) / CLIP - included).max() < 1e-5


def test_the_item_vectors_are_unit_vectors() -> None:
    vectors = canaries_of(1000).vectors()
    assert torch.equal(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert len(vectors) == 1000 + 32


def test_a_run_holds_what_the_bound_needs() -> None:
    run = one_run(Product(), canaries_of(200), epsilon=1.0, seed=3)
    assert (run.m, run.r) == (200, 20)
    assert 0 <= run.v <= run.r
    assert run.scores.shape == run.included.shape == (200,)
    noise = noise_for(1.0, delta=DELTA)
    assert run.scores.std() == pytest.approx(noise, rel=0.3)


def test_the_coins_follow_the_seed_and_the_noise_does_not() -> None:
    canaries = canaries_of(200)
    first, again, other = (one_run(Product(), canaries, epsilon=1.0, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.included, again.included)
    assert not np.array_equal(first.scores, again.scores)
    assert not np.array_equal(first.included, other.included)


def test_guesses_are_a_tenth_and_even() -> None:
    assert [guesses_of(m) for m in (100, 1000, 1001, 1010)] == [10, 100, 100, 100]


@pytest.mark.parametrize("count", [0, 99, 20_001])
def test_so_few_or_so_many_canaries_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="canaries"):
        canaries_of(count)
