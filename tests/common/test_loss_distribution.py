import math
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss
from dp_accounting.privacy_accountant import NeighboringRelation
from scipy.special import log_ndtr

from common.loss_distribution import (
    _deltas,
    _single,
    covers,
    interval_for,
    pld_epsilon,
    rounding_error,
)
from common.mechanism import Gaussian, Leaf, PoissonSampled, RepeatAndSelect
from common.renyi import Adjacency

DELTA = 1e-5
RELATION: dict[Adjacency, NeighboringRelation] = {
    "add-or-remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace-one": NeighboringRelation.REPLACE_ONE,
}


def sampled(noise: float, rate: float) -> PoissonSampled:
    return PoissonSampled(sample_rate=rate, event=Gaussian(noise_multiplier=noise))


@pytest.mark.parametrize("adjacency", list(RELATION))
@pytest.mark.parametrize(
    ("noise", "rate", "interval"),
    [
        (1.0, 0.05, 1e-3),
        (3.0, 0.1, 1e-3),
        (0.3, 0.1, 1e-2),
        (60.0, 0.25, 1e-4),
        (0.9, 0.002, 1e-3),
        (1.0, 1e-7, 1e-3),
        (0.1, 0.9, 1e-1),
        (5.0, 0.999, 1e-3),
        (2.0, 1.0, 1e-3),
    ],
)
def test_one_release_is_the_distribution_that_dp_accounting_computes(
    noise: float, rate: float, interval: float, adjacency: Adjacency
) -> None:
    ours = _single(sampled(noise, rate), 1, adjacency, interval)
    theirs = privacy_loss_distribution.from_gaussian_mechanism(
        noise,
        sampling_prob=rate,
        value_discretization_interval=interval,
        neighboring_relation=RELATION[adjacency],
    )
    for side in ("_pmf_remove", "_pmf_add"):
        mine, other = getattr(ours, side).to_dense_pmf(), getattr(theirs, side).to_dense_pmf()
        assert mine._lower_loss == other._lower_loss
        np.testing.assert_allclose(mine._probs, other._probs, atol=1e-11)
        assert mine._infinity_mass == pytest.approx(other._infinity_mass, rel=1e-6, abs=1e-30)


@pytest.mark.parametrize("adjacency", list(RELATION))
def test_many_different_releases_compose_as_dp_accounting_does(adjacency: Adjacency) -> None:
    counted: dict[Leaf, int] = {sampled(2 + i / 4, 0.05 + i / 50): i + 1 for i in range(6)}
    counted[Gaussian(noise_multiplier=9.0)] = 4
    whole = privacy_loss_distribution.identity(value_discretization_interval=1e-3)
    for leaf, count in counted.items():
        noise, rate = (
            (leaf.event.noise_multiplier, leaf.sample_rate)
            if isinstance(leaf, PoissonSampled)
            else (leaf.noise_multiplier, 1.0)
        )
        one = privacy_loss_distribution.from_gaussian_mechanism(
            noise,
            sampling_prob=rate,
            value_discretization_interval=1e-3,
            neighboring_relation=RELATION[adjacency],
        )
        whole = whole.compose(one.self_compose(count))
    expected = whole.get_epsilon_for_delta(DELTA)
    assert pld_epsilon(counted, DELTA, adjacency, 1e-3) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(
    "counted",
    [
        {sampled(1.0, 0.05): 400},
        {sampled(2.0, 0.25): 60},
        {sampled(1.0 + i / 10, 0.02): 1 for i in range(20)},
        {Gaussian(noise_multiplier=3.0): 10},
    ],
)
def test_a_coarser_grid_is_never_below_a_finer_one_nor_above_it_by_more_than_its_error(
    counted: dict[Leaf, int],
) -> None:
    fine = pld_epsilon(counted, DELTA, "add-or-remove", 1e-4)
    tighter_delta = pld_epsilon(counted, 0.99 * DELTA, "add-or-remove", 1e-4)
    for interval in (1e-3, 1e-2, 5e-2):
        coarse = pld_epsilon(counted, DELTA, "add-or-remove", interval)
        assert fine - 1e-8 <= coarse <= tighter_delta + rounding_error(counted, DELTA, interval)


def test_one_gaussian_release_stays_within_its_error_of_the_exact_value() -> None:
    # Exact delta of epsilon: Balle and Wang 2018, theorem 8.
    def tail(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    counted: dict[Leaf, int] = {Gaussian(noise_multiplier=1.0): 1}
    for interval in (1e-3, 1e-2, 1e-1):
        found = pld_epsilon(counted, DELTA, "add-or-remove", interval)
        lower = found - rounding_error(counted, DELTA, interval)
        assert tail(0.5 - found) - math.exp(found) * tail(-0.5 - found) <= DELTA
        assert tail(0.5 - lower) - math.exp(lower) * tail(-0.5 - lower) >= 0.99 * DELTA


@pytest.mark.parametrize(("count", "noise", "step"), [(60, 9.0, 0.3), (5, 1.0, 0.2), (1, 1.0, 0)])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8, 1e-12])
def test_different_gaussians_are_never_below_the_one_that_they_add_up_to(
    count: int, noise: float, step: float, delta: float
) -> None:
    noises = [noise + step * i for i in range(count)]
    mu = math.sqrt(sum(1 / s**2 for s in noises))

    def delta_of(epsilon: float) -> float:
        # Dong, Roth, Su 2022, corollary 1.
        return float(
            np.exp(log_ndtr(mu / 2 - epsilon / mu))
            - np.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
        )

    counted: dict[Leaf, int] = {Gaussian(noise_multiplier=s): 1 for s in noises}
    interval = interval_for(3.0, delta, counted)
    found = pld_epsilon(counted, delta, "add-or-remove", interval)
    assert delta_of(found) <= delta * (1 + 1e-9)
    assert delta_of(found - rounding_error(counted, delta, interval)) >= 0.99 * delta


def test_opposite_contributions_are_the_worst_replacement_in_two_dimensions() -> None:
    rate, noise = 0.3, 0.8
    side = np.linspace(-7, 7, 701)
    x, y = np.meshgrid(side, side)

    def density(at: tuple[float, float]) -> np.ndarray:
        far = (x - at[0]) ** 2 + (y - at[1]) ** 2
        return np.asarray(np.exp(-far / (2 * noise**2)) / (2 * math.pi * noise**2))

    def stick(epsilon: float, old: tuple[float, float], new: tuple[float, float]) -> float:
        rest = (1 - rate) * density((0.0, 0.0))
        p, q = rest + rate * density(old), rest + rate * density(new)
        return float(np.maximum(p - math.exp(epsilon) * q, 0).sum() * (side[1] - side[0]) ** 2)

    def at(radius: float, degrees: float) -> tuple[float, float]:
        turn = math.radians(degrees)
        return radius * math.cos(turn), radius * math.sin(turn)

    others = [(r, a) for r in (0.0, 0.5, 1.0) for a in (0.0, 60.0, 120.0, 170.0, 180.0)]
    for epsilon in (-0.5, 0.0, 0.5, 1.5):
        worst = stick(epsilon, (-1.0, 0.0), (1.0, 0.0))
        for first in (0.5, 1.0):
            for radius, degrees in others:
                assert stick(epsilon, at(first, 0.0), at(radius, degrees)) <= worst + 1e-9
        one_line = float(
            _deltas(
                GaussianPrivacyLoss(
                    noise, sampling_prob=rate, adjacency_type=AdjacencyType.REPLACE
                ),
                np.array([epsilon]),
            )[0]
        )
        assert one_line == pytest.approx(worst, abs=1e-4)


def test_the_error_grows_with_the_grid_and_with_the_root_of_the_steps() -> None:
    one, many = {sampled(1.0, 0.1): 1}, {sampled(1.0, 0.1): 10_000}
    assert rounding_error(one, DELTA, 1e-3) < rounding_error(one, DELTA, 1e-2)
    ratio = rounding_error(many, DELTA, 1e-4) / rounding_error(one, DELTA, 1e-4)
    assert ratio == pytest.approx(100, rel=0.01)


def test_the_stated_error_is_about_a_hundredth_of_epsilon() -> None:
    for steps in (1, 60, 1_000, 10_000):
        counted: dict[Leaf, int] = {sampled(2.0, 0.05): steps}
        epsilon = pld_epsilon(counted, DELTA, "add-or-remove", 1e-3)
        interval = interval_for(epsilon, DELTA, counted)
        assert rounding_error(counted, DELTA, interval) <= 0.015 * epsilon


def test_tiny_noise_and_many_steps_still_fit_in_memory() -> None:
    intervals = [interval_for(100.0, DELTA, {sampled(s, 0.1): 1}) for s in (1.0, 0.1, 0.01)]
    assert all(fine <= coarse for fine, coarse in pairwise(intervals))
    assert intervals[-1] >= 0.02


def test_a_selected_best_run_has_no_loss_distribution() -> None:
    best = RepeatAndSelect(event=sampled(1.0, 0.1), mean=3.0, shape=1.0)
    assert covers({sampled(1.0, 0.1): 2})
    assert not covers({sampled(1.0, 0.1): 2, best: 1})
    with pytest.raises(TypeError, match="no loss distribution"):
        pld_epsilon({best: 1}, DELTA, "add-or-remove", 1e-3)
