"""Renyi divergence of mechanisms: one number for each order, added up over releases.

Public: all of it. The divergence of a release does not depend on what else was released, so it
is computed once and kept; composing is a sum. Two adjacencies: one subject added or removed, and
one subject's records replaced by another's.
"""

import logging
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, Literal

import dp_accounting
import numpy as np
from dp_accounting import rdp
from numpy.typing import NDArray
from scipy.special import gammaln

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

Adjacency = Literal["add-or-remove", "replace-one"]
Orders = tuple[float, ...]
Vector = NDArray[np.float64]

_ROUNDING: Final = 1e-14
"""Added to a sampled release, so that rounding of floats never makes it cheaper than it is."""

COARSE: Final[Orders] = (
    *(float(order) for order in range(2, 64)),
    *(float(round(64 * 2 ** (i / 4))) for i in range(17)),
)
"""From 2 to 1024: whole orders, whose series is short."""
_FINE_BELOW: Final = 11
ORDERS: Final[Orders] = (*(1 + i / 10 for i in range(1, 100)), *COARSE[9:])
"""Tenths up to 11 as dp-accounting has them, then the coarse ones."""


def renyi(counted: Mapping[Leaf, int], orders: Orders, adjacency: Adjacency) -> Vector:
    """Add up the divergence of counted releases at each order."""
    total = np.zeros(len(orders))
    for leaf, count in counted.items():
        total += count * of_leaf(leaf, orders, adjacency)
    return total


@lru_cache(maxsize=4096)
def of_leaf(leaf: Leaf, orders: Orders, adjacency: Adjacency) -> Vector:
    """Compute one release's divergence at each order; infinite where no bound is known.

    Replacing a subject is removing one and adding one. By the weak triangle inequality (Mironov
    2017, proposition 11, with p = q = 2), for any order a > 1 and d the add-or-remove divergence:
    d(a) of the replacement is at most (a - 1/2) / (a - 1) * d(2a) + d(2a - 1). A plain Gaussian
    needs no inequality: its sensitivity doubles.
    """
    if adjacency == "add-or-remove":
        found = _added_or_removed(leaf, orders)
    elif isinstance(leaf, Gaussian):
        found = _added_or_removed(Gaussian(noise_multiplier=leaf.noise_multiplier / 2), orders)
    else:
        a = np.asarray(orders)
        twice = of_leaf(leaf, tuple(2 * a), "add-or-remove")
        below = of_leaf(leaf, tuple(2 * a - 1), "add-or-remove")
        found = (a - 0.5) / (a - 1) * twice + below
    found.setflags(write=False)
    return found


def renyi_epsilon(counted: Mapping[Leaf, int], delta: float, adjacency: Adjacency) -> float:
    """Compute epsilon at the best whole order, or at the tenths beside it where they matter.

    Every order gives an upper bound, so one left out can only make the result larger.
    """
    divergence = renyi(counted, COARSE, adjacency)
    with quiet():
        epsilon, best = rdp.compute_epsilon(COARSE, divergence, delta)
    fine = tuple(a for a in ORDERS if abs(a - best) < 1 and a < _FINE_BELOW)
    if not fine:
        return float(epsilon)
    return min(float(epsilon), epsilon_of(renyi(counted, fine, adjacency), fine, delta))


def epsilon_of(divergence: Vector, orders: Orders, delta: float) -> float:
    """Convert divergences to the smallest epsilon that one of the orders gives.

    Source: Canonne, Kamath, Steinke 2020, proposition 12 (dp-accounting).
    """
    with quiet():
        return float(rdp.compute_epsilon(orders, divergence, delta)[0])


def foreign(event: Event) -> dp_accounting.DpEvent:
    """Write an event as dp-accounting's."""
    if isinstance(event, PoissonSampled):
        return dp_accounting.PoissonSampledDpEvent(event.sample_rate, foreign(event.event))
    if isinstance(event, Repeated):
        return dp_accounting.SelfComposedDpEvent(foreign(event.event), event.count)
    if isinstance(event, Composed):
        return dp_accounting.ComposedDpEvent([foreign(part) for part in event.events])
    if isinstance(event, RepeatAndSelect):
        return dp_accounting.dp_event.RepeatAndSelectDpEvent(
            foreign(event.event), event.mean, event.shape
        )
    return dp_accounting.GaussianDpEvent(event.noise_multiplier)


def _added_or_removed(leaf: Leaf, orders: Orders) -> Vector:
    if isinstance(leaf, Gaussian):
        # Mironov 2017, corollary 3.
        return np.asarray(orders) / (2 * leaf.noise_multiplier**2)
    if isinstance(leaf, PoissonSampled):
        return _sampled(leaf, orders)
    return _selected(leaf, orders)


def _sampled(leaf: PoissonSampled, orders: Orders) -> Vector:
    if leaf.sample_rate == 1:
        return _added_or_removed(leaf.event, orders)
    found = {a: _log_moment(leaf, int(a)) / (a - 1) for a in orders if a.is_integer()}
    fractions = [a for a in orders if not a.is_integer()]
    with quiet():
        theirs = rdp.RdpAccountant(fractions).compose(foreign(leaf)).rdp
    for order, value in zip(fractions, theirs, strict=True):
        found[order] = float(value) if math.isfinite(value) else _chord(leaf, order)
    return np.array([found[order] for order in orders]) + _ROUNDING


def _chord(leaf: PoissonSampled, order: float) -> float:
    """Bound a fractional order whose series does not converge by its neighbours.

    The logarithm of the moment is convex in the order and 0 at order 1, so a chord lies above it
    (Wang, Balle, Kasiviswanathan 2019, corollary 10).
    """
    low, high = math.floor(order), math.ceil(order)
    below = _log_moment(leaf, low) if low > 1 else 0.0
    above = _log_moment(leaf, high)
    return ((high - order) * below + (order - low) * above) / (order - 1)


def _log_moment(leaf: PoissonSampled, order: int) -> float:
    """Sum the binomial series of the moment (Mironov, Talwar, Zhang 2019, section 3.3)."""
    k, ways = _binomials(order)
    rate, noise = leaf.sample_rate, leaf.event.noise_multiplier
    chance = k * math.log(rate) + (order - k) * math.log1p(-rate)
    terms = ways + chance + (k * k - k) / (2 * noise**2)
    largest = float(terms.max())
    return max(largest + math.log(float(np.exp(terms - largest).sum())), 0.0)


@lru_cache(maxsize=256)
def _binomials(order: int) -> tuple[Vector, Vector]:
    k = np.arange(order + 1, dtype=np.float64)
    return k, gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)


def _selected(leaf: RepeatAndSelect, orders: Orders) -> Vector:
    """Bound the best of a random number of runs (Papernot and Steinke 2022, theorems 2 and 6).

    Their bound at one order draws on the others, so all of ORDERS take part.
    """
    asked = tuple(sorted({*ORDERS, *orders}))
    inner = renyi(leaves(leaf.event), asked, "add-or-remove")
    # dp-accounting selects from its own events; a list of divergences is none of them.
    select: Any = rdp.rdp_privacy_accountant._compute_rdp_repeat_and_select
    with quiet(), np.errstate(over="ignore"):
        found = dict(zip(asked, select(asked, inner, leaf.mean, leaf.shape), strict=True))
    return np.array([found[order] for order in orders])


@contextmanager
def quiet() -> Iterator[None]:
    """Drop this thread's absl warnings (orders that do not converge are left out by design)."""
    thread, log = threading.get_ident(), logging.getLogger("absl")

    def elsewhere(_: logging.LogRecord) -> bool:
        return threading.get_ident() != thread

    log.addFilter(elsewhere)
    try:
        yield
    finally:
        log.removeFilter(elsewhere)
