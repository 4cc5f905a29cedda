"""Would one more release still fit the budget, and how many more would?

Public: all of it; an event holds no record. A filter refuses before, it does not measure after.

Composition theorems assume that every mechanism was fixed beforehand. Where noise, rate or the
number of steps depends on earlier results, the sum of Renyi divergences at one order, fixed in
advance, may still be compared with a bound that was fixed in advance (Feldman and Zrnic 2021;
Lecuyer 2021). The order therefore follows from the budget alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from scipy.optimize import brentq

from common.accounting import check_delta, check_epsilon, check_noise, spent, spent_together
from common.errors import ConfigError
from common.mechanism import Event, Gaussian, Leaf, leaves
from common.renyi import ORDERS, epsilon_of, renyi, renyi_epsilon

Counts: TypeAlias = Mapping[Leaf, int]

_MOST_ORDER: Final = 2048.0
_PLAIN: Final = Gaussian(noise_multiplier=1.0)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that one subject population may ever spend.

    Attributes:
        epsilon: Of all releases together, finite and above 0.
        delta: The one delta that it is stated at.
        order: The filter's order, fixed together with the budget; None for `order_for` of both.
    """

    epsilon: float
    delta: float
    order: float | None = None

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_delta(self.delta)
        if self.order is not None:
            _check_order(self.order)


def order_for(epsilon: float, delta: float, *, planned: Event = _PLAIN) -> float:
    """Choose the filter's order before anything is released: the one at which most of a plan fits.

    Any order is safe that depends on no result. Without a plan it follows from the budget alone
    and is the best one for plain Gaussian releases of any noise: near 1 + sqrt(L / rho), with
    L = log(1 / delta) and rho + 2 sqrt(rho L) = epsilon (Bun and Steinke 2016), and somewhat
    below it, because the conversion to epsilon has improved since. Sampled releases of little
    noise suddenly cost far more above some order; for those, say what is planned.

    Args:
        epsilon: Of the budget.
        delta: Of the budget.
        planned: An event of the kind that will be asked for, in any number.

    Raises:
        ConfigError: `epsilon` or `delta` out of range, or noise that no accountant computes with.
    """
    check_epsilon(epsilon)
    check_delta(delta)
    counted = leaves(planned)
    for leaf in counted:
        check_noise(leaf)
    orders = np.asarray(ORDERS)
    # The divergence that converts to epsilon at each order: the inverse of `epsilon_of`.
    allowed = epsilon - np.log1p(-1 / orders) + np.log(delta * orders) / (orders - 1)
    if not np.any(allowed > 0):
        return ORDERS[-1]
    parts = renyi(counted, ORDERS, "add-or-remove") / np.where(allowed > 0, allowed, np.nan)
    return float(orders[np.nanargmin(parts)])


def adaptive_epsilon(event: Event, *, delta: float, order: float) -> float:
    """Compute epsilon of releases that may depend on earlier results, at one order fixed before.

    Raises:
        ConfigError: `delta` outside its range, or an order not in (1.01, 2048].
    """
    return _adaptive(leaves(event), delta, order)


def fits(budget: Budget, spent_event: Event, next_event: Event, *, adaptive: bool) -> bool:
    """Say whether the next event would keep the total within the budget.

    Args:
        budget: The bound.
        spent_event: All that was reserved so far on this population.
        next_event: What is asked for.
        adaptive: Whether parameters may depend on earlier results: then the filter decides, else
            the smaller of PLD and RDP.

    Raises:
        ConfigError: Noise that no accountant computes with.
    """
    total = _added(leaves(spent_event), leaves(next_event), 1)
    if not adaptive and _fits_by_rdp(budget, total):
        return True
    return _epsilon(budget, adaptive)(total) <= budget.epsilon


def rounds_left(
    budget: Budget, spent_event: Event, one_round_event: Event, *, adaptive: bool, most: int = 10**6
) -> int:
    """Count how many more equal rounds fit: so many do, one more does not (or `most` do).

    Raises:
        ConfigError: A round that releases nothing, or `most` below 0.
    """
    base, one = leaves(spent_event), leaves(one_round_event)
    if not one or most < 0:
        raise ConfigError("Expected a round that releases something and most of 0 or more.")
    by_both = _epsilon(budget, adaptive)

    def over(rounds: float) -> float:
        return by_both(_added(base, one, round(rounds))) - budget.epsilon

    def within(rounds: int) -> bool:
        return over(rounds) <= 0

    if adaptive:
        return _last(within, 0, most)

    # From what RDP allows, a PLD is asked few times.
    start = _last(lambda rounds: _fits_by_rdp(budget, _added(base, one, rounds)), 0, most)
    low, high = _gallop(within, start, max(start // 8, 1), most)
    if low < high - 1:
        low = round(brentq(over, low, high, xtol=0.5))
    return _last(within, min(low, most), most)


def cohort_epsilon(events_by_cohort: Mapping[str, Event], delta: float) -> float:
    """Compute epsilon of cohorts that share no subject: the largest of them.

    Parallel composition (McSherry 2009, theorem 4): each subject stands in one cohort alone.
    """
    check_delta(delta)
    found = (spent(event, delta=delta).epsilon for event in events_by_cohort.values())
    return max(found, default=0.0)


def _added(base: Counts, one: Counts, rounds: int) -> dict[Leaf, int]:
    total = dict(base)
    for leaf, count in one.items():
        total[leaf] = total.get(leaf, 0) + rounds * count
    return {leaf: count for leaf, count in total.items() if count}


def _fits_by_rdp(budget: Budget, counted: Counts) -> bool:
    """Say whether RDP alone, which is quick, keeps the budget; then the smaller of both does."""
    for leaf in counted:
        check_noise(leaf)
    return renyi_epsilon(counted, budget.delta, "add-or-remove") <= budget.epsilon


def _epsilon(budget: Budget, adaptive: bool) -> Callable[[Counts], float]:
    if adaptive:
        order = budget.order or order_for(budget.epsilon, budget.delta)
        return lambda counted: _adaptive(counted, budget.delta, order)
    return lambda counted: spent_together(counted, delta=budget.delta).epsilon


def _adaptive(counted: Counts, delta: float, order: float) -> float:
    check_delta(delta)
    _check_order(order)
    for leaf in counted:
        check_noise(leaf)
    return epsilon_of(renyi(counted, (float(order),), "add-or-remove"), (float(order),), delta)


def _check_order(order: float) -> None:
    if not 1.01 < order <= _MOST_ORDER:
        raise ConfigError(f"Expected an order above 1.01 and up to 2048, got {order!r}.")


def _gallop(within: Callable[[int], bool], start: int, step: int, most: int) -> tuple[int, int]:
    """Step away from the start, further each time, until the last that is within lies between."""
    low = high = start
    if within(start):
        while low < most:
            high = min(low + step, most)
            if not within(high):
                return low, high
            low, step = high, 2 * step
        return most, most + 1
    while high > 0:
        low = max(high - step, 0)
        if low == 0 or within(low):
            return low, high
        high, step = low, 2 * step
    return 0, 1


def _last(within: Callable[[int], bool], start: int, most: int) -> int:
    """Find the last number that is within and whose successor is not; 0 if none is."""
    low, high = _gallop(within, start, 1, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low
