"""From a mechanism to an epsilon, from an epsilon to a noise multiplier, and what is refused.

Unit: the subject, add-or-remove adjacency unless replace-one is asked for. Two upper bounds are
computed with Google's dp-accounting, the privacy loss distribution (`common.loss_distribution`)
and Renyi divergence (`common.renyi`). Both hold, so the smaller is the one published.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Final

from scipy.optimize import brentq

from common.errors import ConfigError, PrivacyRefused
from common.loss_distribution import Counted, covers, interval_for, pld_epsilon, rounding_error
from common.mechanism import (
    Composed,
    Event,
    Gaussian,
    Leaf,
    PoissonSampled,
    RepeatAndSelect,
    Repeated,
    leaves,
)
from common.renyi import Adjacency, renyi_epsilon

ADJACENCY: Final = "add or remove one subject"
ADJACENCIES: Final[dict[str, str]] = {
    "add-or-remove": ADJACENCY,
    "replace-one": "replace one subject by another",
}
"""Each adjacency in words."""
TOLERANCE: Final = 1e-3
"""Relative: a calibrated noise multiplier is at most so much above the least one."""
MIN_DELTA: Final = 1e-12
"""Below it, the PLD's own truncated mass would count."""
MIN_NOISE: Final = 0.05
"""Least noise that calibration gives."""
MAX_NOISE: Final = 1e6
_NOISE_RANGE: Final = (1e-6, MAX_NOISE)
"""What the accountants can compute with; on either side floats run over or vanish."""

_PLD_CEILING: Final = 1000.0
"""Above this RDP epsilon nothing is protected, and a PLD would need gigabytes."""
_COMBINATIONS: Final = 64


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Privacy spent, for one subject at one site unless said otherwise.

    Attributes:
        epsilon: The smaller of the two upper bounds.
        pld: Epsilon by privacy loss distribution; infinite where it was not computed.
        rdp: Epsilon by Renyi divergence.
        delta: The delta that all three belong to.
        accountant: Which bound won, with the library's version and the discretisation.
        discretisation: Distance of the losses on the PLD's grid; 0 where no PLD was computed.
        error: How far rounding to that grid may have lifted `pld`. One-sided: `pld` is never
            below the exact epsilon at `delta`, nor more than `error` above the exact epsilon at
            0.99 `delta`. It is a bound; the usual lift is a hundredth of it. Infinite with `pld`.
    """

    epsilon: float
    pld: float
    rdp: float
    delta: float
    accountant: str
    discretisation: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Consortium:
    """Privacy spent by several sites together.

    Attributes:
        disjoint: If no subject is at two sites: the largest of the sites'.
        shared: If a subject may be at `sites_per_subject` sites: their composition.
        sites_per_subject: The most sites that one subject is assumed at.
    """

    disjoint: Spent
    shared: Spent
    sites_per_subject: int


def schedule(*, noise_multiplier: float, sample_rate: float, steps: int) -> Event:
    """State `steps` Poisson-sampled Gaussian steps as an event."""
    gaussian = Gaussian(noise_multiplier=noise_multiplier)
    return Repeated(count=steps, event=PoissonSampled(sample_rate=sample_rate, event=gaussian))


def spent(event: Event, *, delta: float, adjacency: Adjacency = "add-or-remove") -> Spent:
    """Compute epsilon for an event at `delta`.

    Replacing one subject costs more than adding or removing one, at most what doing both costs.

    Raises:
        ConfigError: `delta` outside [MIN_DELTA, 1), another adjacency, or noise outside
            1e-6 to MAX_NOISE.
    """
    return spent_together(leaves(event), delta=delta, adjacency=adjacency)


def spent_together(
    counted: Mapping[Leaf, int], *, delta: float, adjacency: Adjacency = "add-or-remove"
) -> Spent:
    """Compute epsilon for counted single releases on the same subjects; see `spent`."""
    check_delta(delta)
    if adjacency not in ADJACENCIES:
        raise ConfigError(
            f"Expected adjacency to be one of {', '.join(ADJACENCIES)}, got {adjacency!r}."
        )
    for leaf in counted:
        check_noise(leaf)
    # Sorted, because neither bound depends on the order and the cache then hits more often.
    ordered = tuple(sorted(counted.items(), key=repr))
    return _spent(ordered, float(delta), adjacency)


def calibrate(
    *, epsilon: float, delta: float, sample_rate: float, steps: int, besides: Event | None = None
) -> float:
    """Find the least noise multiplier whose epsilon is at most the target, to TOLERANCE.

    What the run does `besides` its steps, on the same subjects, is part of the target.

    The result is checked with `spent`: it never spends more than the target. It is never below
    MIN_NOISE.

    Raises:
        ConfigError: A value out of range, or a target that MAX_NOISE does not reach.
    """
    check_epsilon(epsilon)

    def counted(log_noise: float) -> dict[Leaf, int]:
        noise = math.exp(log_noise)
        steady = schedule(noise_multiplier=noise, sample_rate=sample_rate, steps=steps)
        return leaves(steady if besides is None else Composed(events=(steady, besides)))

    def over(found: float) -> float:
        return math.log(max(found, 1e-12)) - math.log(epsilon)

    def by_rdp(log_noise: float) -> float:
        return over(renyi_epsilon(counted(log_noise), delta, "add-or-remove"))

    def by_both(log_noise: float) -> float:
        return over(spent_together(counted(log_noise), delta=delta).epsilon)

    # RDP alone is quick and never below the smaller of both: its noise is enough for both.
    enough = _least(by_rdp, *_bracket(by_rdp, _guess(epsilon, delta, sample_rate, steps)), 0.02)
    return math.exp(_least(by_both, *_lowered(by_both, enough), TOLERANCE / 4))


def compose_sites(
    events: Sequence[Event], *, delta: float, sites_per_subject: int | None = None
) -> Consortium:
    """Compute what several sites spend: subjects disjoint, and a subject at several sites.

    Args:
        events: One event a site; their noise is independent.
        delta: The delta of each result (the composition is made at this delta, not k times it).
        sites_per_subject: The most sites that one subject is at; all of them when None. The
            worst choice of so many sites is taken; where there are too many choices to try, all
            sites are composed, which is an upper bound.
    """
    k = len(events) if sites_per_subject is None else sites_per_subject
    if not 1 <= k <= len(events):
        raise ConfigError(f"Expected 1 to {len(events)} sites per subject, got {k}.")
    disjoint = max((spent(event, delta=delta) for event in events), key=_epsilon)
    ordered = sorted(events, key=repr)
    choices = set(itertools.islice(itertools.combinations(ordered, k), 100_000))
    if math.comb(len(events), k) > 100_000 or len(choices) > _COMBINATIONS:
        choices = {tuple(ordered)}
    shared = max((spent(Composed(events=c), delta=delta) for c in choices), key=_epsilon)
    return Consortium(disjoint=disjoint, shared=shared, sites_per_subject=k)


@dataclass(frozen=True, kw_only=True)
class PrivacyChoice:
    """What a run asks for, before anything is checked.

    Attributes:
        epsilon: Target, or None when `noise_multiplier` is given.
        noise_multiplier: Noise over clip, or None when `epsilon` is given.
        delta: Target delta.
        max_grad_norm: The clip C.
        sample_rate: Probability of a subject to stand in a step.
        steps: Steps of the whole run at one site.
        sampling: "poisson", the one that is accounted.
        besides: what else the run does to the same subjects; part of epsilon.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float
    max_grad_norm: float
    sample_rate: float
    steps: int
    sampling: str = "poisson"
    besides: Event | None = None


def check_privacy(choice: PrivacyChoice, *, subjects: int) -> float:
    """Check a private run's choice whole and return the noise multiplier to train with.

    The message names no count of subjects, which is private.

    Raises:
        ConfigError: A value out of range, neither or disagreeing epsilon and noise, or a sampling
            other than Poisson.
        PrivacyRefused: No noise, or a delta of 1 / subjects and more.
    """
    check_clip(choice.max_grad_norm)
    check_delta(choice.delta)
    if choice.delta * subjects >= 1:
        raise PrivacyRefused(
            f"Expected delta below 1 / subjects, got {choice.delta}: it would allow to publish "
            "one subject whole. Set a smaller delta."
        )
    if choice.sampling != "poisson":
        raise ConfigError(
            f"Expected sampling 'poisson', got {choice.sampling!r}: batches that are shuffled "
            "spend far more than the accountant would say."
        )
    if choice.noise_multiplier is None:
        return _calibrated(choice)
    return _agreed(choice, choice.noise_multiplier)


def check_epsilon(epsilon: float) -> None:
    """Refuse an epsilon that is not a finite number above 0."""
    if not _is_number(epsilon) or epsilon <= 0:
        raise ConfigError(f"Expected epsilon to be finite and above 0, got {epsilon!r}.")


def check_delta(delta: float) -> None:
    """Refuse a delta outside [MIN_DELTA, 1)."""
    if not _is_number(delta) or not MIN_DELTA <= delta < 1:
        raise ConfigError(f"Expected delta in [{MIN_DELTA:g}, 1), got {delta!r}.")


def check_clip(max_grad_norm: float) -> None:
    """Refuse a clip that is not a finite number above 0."""
    if not _is_number(max_grad_norm) or max_grad_norm <= 0:
        raise ConfigError(
            f"Expected max_grad_norm to be finite and above 0, got {max_grad_norm!r}."
        )


def check_noise(leaf: Leaf) -> None:
    """Refuse noise that the accountants cannot compute with: floats run over, or vanish."""
    if isinstance(leaf, RepeatAndSelect):
        for part in leaves(leaf.event):
            check_noise(part)
        return
    noise = leaf.noise_multiplier if isinstance(leaf, Gaussian) else leaf.event.noise_multiplier
    low, high = _NOISE_RANGE
    if not low <= noise <= high:
        raise ConfigError(
            f"Expected noise_multiplier from {low:g} to {high:g} to account for, got {noise:g}."
        )


def _calibrated(choice: PrivacyChoice) -> float:
    if choice.epsilon is None:
        raise ConfigError("Expected epsilon or noise_multiplier, got neither. Give one of them.")
    return calibrate(
        epsilon=choice.epsilon,
        delta=choice.delta,
        sample_rate=choice.sample_rate,
        steps=choice.steps,
        besides=choice.besides,
    )


def _agreed(choice: PrivacyChoice, noise: float) -> float:
    if noise == 0 and not isinstance(noise, bool):
        raise PrivacyRefused(
            "Expected noise_multiplier above 0 with privacy on, got 0. Switch privacy off instead."
        )
    steps = schedule(noise_multiplier=noise, sample_rate=choice.sample_rate, steps=choice.steps)
    event = steps if choice.besides is None else Composed(events=(steps, choice.besides))
    for leaf in leaves(event):
        check_noise(leaf)
    if choice.epsilon is None:
        return float(noise)
    check_epsilon(choice.epsilon)
    real = spent(event, delta=choice.delta).epsilon
    if not 0.99 * choice.epsilon <= real <= choice.epsilon * (1 + 1e-9):
        raise ConfigError(
            f"Expected noise_multiplier and epsilon to agree, got {noise}, which spends "
            f"{real:.4g}, and {choice.epsilon}. Give only one of them."
        )
    return float(noise)


def _guess(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Start the search at the classic Gaussian bound for the sampled steps, as a logarithm."""
    schedule(noise_multiplier=1.0, sample_rate=sample_rate, steps=steps)
    check_delta(delta)
    scale = sample_rate * math.sqrt(steps * 2 * math.log(1.25 / delta)) / epsilon
    return math.log(min(max(scale, 2 * MIN_NOISE), MAX_NOISE / 2))


def _bracket(excess: Callable[[float], float], start: float) -> tuple[float, float]:
    """Double or halve the noise until the target lies between; equal ends mean: at the floor."""
    step = math.log(2.0)
    low = high = start
    if excess(start) > 0:
        while excess(high) > 0:
            low, high = high, high + step
            if high > math.log(MAX_NOISE):
                raise ConfigError(
                    f"Expected an epsilon within reach of noise {MAX_NOISE:g} at this sample_rate, "
                    "delta and number of steps, got a smaller one. Ask for a larger epsilon."
                )
        return low, high
    while excess(low) <= 0:
        if low <= math.log(MIN_NOISE):
            return math.log(MIN_NOISE), math.log(MIN_NOISE)
        low, high = max(low - step, math.log(MIN_NOISE)), low
    return low, high


def _lowered(excess: Callable[[float], float], enough: float) -> tuple[float, float]:
    """Lower noise that is enough until it is not; equal ends mean: at the floor."""
    low = high = enough
    while (over := excess(low)) <= 0:
        if low <= math.log(MIN_NOISE):
            return low, low
        # Epsilon falls nearly as fast as the noise grows; where it does not, another turn.
        low, high = max(low + 1.2 * over - 0.01, math.log(MIN_NOISE)), low
    return low, high


def _least(excess: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Find where the excess ends, on the side where there is none."""
    if low == high:
        return high
    found = float(brentq(excess, low, high, xtol=tolerance))
    while excess(found) > 0:
        found += tolerance
    return found


@lru_cache(maxsize=4096)
def _spent(ordered: Counted, delta: float, adjacency: Adjacency) -> Spent:
    release = f"dp-accounting {version('dp-accounting')}"
    counted = dict(ordered)
    by_rdp = renyi_epsilon(counted, delta, adjacency) if counted else 0.0
    by_pld, interval, error = by_rdp, 0.0, 0.0
    if counted:
        by_pld = error = math.inf
        if by_rdp <= _PLD_CEILING and covers(counted):
            interval = interval_for(by_rdp, delta, counted)
            by_pld = pld_epsilon(counted, delta, adjacency, interval)
            error = rounding_error(counted, delta, interval) if by_pld < math.inf else math.inf
    won = f"PLD at {interval:g}" if by_pld <= by_rdp else "RDP"
    return Spent(
        epsilon=min(by_pld, by_rdp),
        pld=by_pld,
        rdp=by_rdp,
        delta=delta,
        accountant=f"{release}, {won if counted else 'none'}",
        discretisation=interval,
        error=error,
    )


def _epsilon(result: Spent) -> float:
    return result.epsilon


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and bool(abs(value) < 1e300)
    )
