"""Privacy loss distributions (PLD): what each release's loss can be, and their convolution.

Public: all of it. The discretisation is pessimistic (connect-the-dots: Doroshenko et al. 2022):
losses lie on a grid, and the result never falls below the exact epsilon. dp-accounting inverts
the loss point by point; here a whole grid is inverted at once, which is what makes it quick.

Replacing one subject of a sampled sum: (1 - q) N(0) + q N(-1) against (1 - q) N(0) + q N(1), as
dp-accounting and Koskela, Jalko, Honkela 2020 have it. It dominates in any dimension: with the
two contributions' norms fixed, the hockey stick only grows with their distance (Kahane 1985's
comparison of Gaussian vectors), so opposite directions are the worst, and along one line it
grows with either norm. Composition of dominating pairs: Zhu, Dong, Wang 2022, theorem 10.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
from dp_accounting.pld.pld_pmf import DensePLDPmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss

from common.mechanism import Gaussian, Leaf, PoissonSampled, RepeatAndSelect
from common.renyi import Adjacency, Vector

Counted = tuple[tuple[Leaf, int], ...]

_MOST_BUCKETS: Final = 2e5
_GRIDS: Final = tuple(m * 10.0**p for p in range(-5, 0) for m in (1, 2, 5))
_AIM: Final = 5e-3
"""Stated rounding error over epsilon that the grid is chosen for."""
_SHARE: Final = 5e-3
"""Part of delta set aside for the tail in that statement, and as much for truncated mass."""


def covers(counted: Mapping[Leaf, int]) -> bool:
    """Say whether every release has a loss distribution; a selected best run has none."""
    return not any(isinstance(leaf, RepeatAndSelect) for leaf in counted)


def pld_epsilon(
    counted: Mapping[Leaf, int], delta: float, adjacency: Adjacency, interval: float
) -> float:
    """Compute epsilon of counted releases on a grid of losses `interval` apart."""
    # Sorted, because the order changes nothing and the cache then hits more often.
    ordered = tuple(sorted(counted.items(), key=repr))
    return float(_distribution(ordered, adjacency, interval).get_epsilon_for_delta(delta))


def interval_for(epsilon: float, delta: float, counted: Mapping[Leaf, int]) -> float:
    """Choose the grid for an epsilon of about this size, as fine as memory and time allow.

    One step's loss spreads over some 1 / (2 s**2) + 10 / s for noise s.
    """
    noise = min(_gaussian(leaf).noise_multiplier for leaf in counted)
    spread = 0.5 / noise**2 + 10 / noise
    aimed = _AIM * epsilon / _tail(counted, delta)
    wanted = max(min(aimed, epsilon / 5e3), epsilon / 2e5, spread / _MOST_BUCKETS)
    return next((grid for grid in _GRIDS if grid >= wanted), 1.0)


def rounding_error(counted: Mapping[Leaf, int], delta: float, interval: float) -> float:
    """Bound how far rounding to the grid lifts epsilon: one-sided, it is never too low.

    Connect-the-dots moves each loss at random to a neighbour on the grid, at most h away, such
    that the mean of exp(-loss) stays. So the mean rises by at most h**2 / 8 (Hoeffding's lemma),
    and with probability 1 - x the sum over T releases by at most
    T h**2 / 8 + h sqrt(T log(1 / x) / 2) (Hoeffding, Azuma). With x = delta / 200, and as much
    for truncated mass: epsilon at delta exceeds the exact one at 0.99 delta by at most this sum.
    Below a delta of some 1e-10 truncated mass passes its share and epsilon rises a little more.
    """
    return _steps(counted) * interval**2 / 8 + interval * _tail(counted, delta)


def _tail(counted: Mapping[Leaf, int], delta: float) -> float:
    return math.sqrt(_steps(counted) * math.log(1 / (_SHARE * delta)) / 2)


def _steps(counted: Mapping[Leaf, int]) -> int:
    # Plain Gaussian releases of one noise are one wider Gaussian, rounded once.
    return sum(1 if isinstance(leaf, Gaussian) else n for leaf, n in counted.items())


# Composed by halves, each kept: one round more then costs a few convolutions, not all of them.
@lru_cache(maxsize=128)
def _distribution(counted: Counted, adjacency: Adjacency, interval: float) -> Any:
    if len(counted) == 1:
        return _single(*counted[0], adjacency, interval)
    half = len(counted) // 2
    first = _distribution(counted[:half], adjacency, interval)
    return first.compose(_distribution(counted[half:], adjacency, interval))


def _single(leaf: Leaf, count: int, adjacency: Adjacency, interval: float) -> Any:
    noise, rate, times = _gaussian(leaf).noise_multiplier, 1.0, count
    if isinstance(leaf, PoissonSampled):
        rate = leaf.sample_rate
    if rate == 1.0:
        noise, times = noise / math.sqrt(count), 1

    def composed(direction: AdjacencyType) -> Any:
        once = _mass(noise, rate, direction, interval)
        return once if times == 1 else once.self_compose(times)

    if adjacency == "replace-one":
        return PrivacyLossDistribution(composed(AdjacencyType.REPLACE))
    if rate == 1.0:
        return PrivacyLossDistribution(composed(AdjacencyType.REMOVE))
    return PrivacyLossDistribution(composed(AdjacencyType.REMOVE), composed(AdjacencyType.ADD))


@lru_cache(maxsize=64)
def _mass(noise: float, rate: float, direction: AdjacencyType, interval: float) -> Any:
    """Put one release's losses on the grid, as dp-accounting's `from_gaussian_mechanism` does.

    Source of the masses: Doroshenko et al. 2022, algorithm 1, for a grid of equal steps.
    """
    loss = GaussianPrivacyLoss(noise, sampling_prob=rate, adjacency_type=direction)
    bounds = loss.connect_dots_bounds()
    low = math.floor(bounds.epsilon_lower / interval)
    high = math.ceil(bounds.epsilon_upper / interval)
    deltas = np.minimum.accumulate(_deltas(loss, np.arange(low, high + 1) * interval))
    falls, up = np.diff(deltas), math.expm1(interval)
    first = 1 - deltas[0] + falls[0] / up
    inner = (falls[1:] - falls[:-1] * math.exp(interval)) / up
    last = falls[-1] / math.expm1(-interval)
    masses = np.maximum(np.concatenate(([first], inner, [last])), 0.0)
    return DensePLDPmf(interval, low, masses, deltas[-1], pessimistic_estimate=True)


def _deltas(loss: Any, epsilons: Vector) -> Vector:
    """Compute the least delta of each epsilon: the hockey stick beyond the point of that loss."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        cutoffs = _cutoffs(loss, epsilons)
        above = loss.mu_upper_cdf(cutoffs)
        below = np.exp(epsilons + loss.mu_lower_log_cdf(cutoffs))
    return np.asarray(np.clip(above - below, 0, 1))


def _cutoffs(loss: GaussianPrivacyLoss, epsilons: Vector) -> Vector:
    """Invert the loss: the largest x whose loss is at least each epsilon (sensitivity 1)."""
    rate, variance = float(loss.sampling_prob), float(loss.standard_deviation**2)
    if loss.adjacency_type == AdjacencyType.REMOVE:
        return -0.5 - variance * _unsampled(epsilons, rate)
    if loss.adjacency_type == AdjacencyType.ADD:
        return 0.5 + variance * _unsampled(-epsilons, rate)
    if rate == 1.0:
        return -epsilons * variance / 2
    # asinh(sinh(e / 2) * exp(0.5 / variance) * (1 - q) / q), in logarithms.
    half = np.abs(epsilons) / 2
    sinh = half + np.log(-np.expm1(-2 * half)) - math.log(2)
    scaled = sinh + 0.5 / variance + math.log1p(-rate) - math.log(rate)
    asinh = np.logaddexp(0.5 * np.logaddexp(0, 2 * scaled), scaled)
    return np.asarray(-np.sign(epsilons) * variance * (asinh + half))


def _unsampled(epsilons: Vector, rate: float) -> Vector:
    """Find the Gaussian's loss y with log(1 - q + q exp(y)) = epsilon; none: -infinity."""
    if rate == 1.0:
        return epsilons
    small = np.log1p(np.maximum(np.expm1(np.minimum(epsilons, 30.0)) / rate, -1.0))
    large = epsilons - math.log(rate)
    return np.where(epsilons < 30.0, small, large + np.log1p(-(1 - rate) * np.exp(-epsilons)))


def _gaussian(leaf: Leaf) -> Gaussian:
    if isinstance(leaf, RepeatAndSelect):
        raise TypeError("a selected best run has no loss distribution")
    return leaf if isinstance(leaf, Gaussian) else leaf.event
