"""Aggregation: arrays in, arrays out. Float64 deltas with public contract weights.

`mean` and `inverse-variance` hold running sums alone (`server.streaming`). The other rules keep
every update of the round in float32 and look at all of them at the end (`server.robust`):
`trimmed-mean`, `median`, `multi-krum`, `geometric-median`, and `norm-bounded`, which cuts each
update to the median of all lengths: cutting to the public bound, as the admission gate does
already, would leave a tenfold sign-flip whole.

A tensor is aggregated over the sites that sent it. Tensors that the same sites sent form one
block: distances and lengths are those of a whole block. Of n sites that sent a tensor,
k = min(tolerate, (n - 1) // 2) are taken for hostile: a count, so that a drop-out makes no room
for an attacker. Results do not depend on the order in which updates arrive, bit for bit.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from server import robust
from server.streaming import (
    RunningMean,
    Tensors,
    require_bound,
    require_new,
    require_some,
    require_sound,
    require_weight,
)

Means = dict[str, NDArray[np.float64]]

RULES: Final = (
    "mean",
    "trimmed-mean",
    "median",
    "multi-krum",
    "geometric-median",
    "norm-bounded",
    "inverse-variance",
)
AGREEMENT: Final = "agreement"
"""The rule that remembers earlier rounds, in `server.agreement`; the others look at one alone."""
STREAMING: Final = frozenset({"mean", "inverse-variance"})
"""Rules that hold running sums and tolerate no hostile site."""


class Aggregator(Protocol):
    """Takes the admitted updates of one round, then gives their aggregate."""

    def add(self, site: str, update: Tensors, *, weight: float, variance: float) -> None:
        """Take a site's update: deltas by tensor, contract weight, public noise variance."""
        ...

    def result(self) -> Means:
        """One delta, float64, for each tensor that somebody sent."""
        ...


def make_aggregator(rule: str, *, tolerate: int, bound: float) -> Aggregator:
    """The aggregator of one round.

    Args:
        rule: one of RULES.
        tolerate: hostile sites that the rule must stand; the means ignore it.
        bound: public largest length of an update; no single number may be larger.

    Raises:
        ConfigError: an unknown rule, or a number out of range.
    """
    _require_known(rule, tolerate)
    if rule in STREAMING:
        return RunningMean(bound=bound, by_variance=rule == "inverse-variance")
    return KeptUpdates(rule, tolerate=tolerate, bound=bound)


def require_rule(rule: str, *, sites: int, tolerate: int) -> None:
    """Refuse a rule that cannot hold what it promises with so few sites.

    Raises:
        ConfigError: an unknown rule, or a robust rule with fewer than 2 * tolerate + 3 sites.
    """
    if rule != AGREEMENT:
        _require_known(rule, tolerate)
    if rule not in STREAMING and sites < _needed(tolerate):
        raise ConfigError(
            f"Expected at least {_needed(tolerate)} sites for {rule} against {tolerate} hostile "
            f"ones, got {sites}; tolerate {max(0, (sites - 3) // 2)} or choose the mean."
        )


def default_rule(sites: int, tolerate: int) -> str:
    """Agreement over rounds where enough sites take part for it, else the mean."""
    return AGREEMENT if tolerate > 0 and sites >= _needed(tolerate) else "mean"


def _needed(tolerate: int) -> int:
    return 2 * tolerate + 3 if tolerate else 1


def _require_known(rule: str, tolerate: int) -> None:
    if rule not in RULES:
        near = difflib.get_close_matches(str(rule), RULES, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(f"Expected a rule of {', '.join(RULES)}; got {rule!r}{meant}")
    if tolerate < 0:
        raise ConfigError(f"Expected 0 or more hostile sites to tolerate, got {tolerate}.")


class KeptUpdates:
    """A rule that looks at all updates at once: 4 bytes a number and site, until the result."""

    def __init__(self, rule: str, *, tolerate: int, bound: float) -> None:
        """Start with nothing; see `make_aggregator`."""
        self._rule = rule
        self._tolerate = tolerate
        self._bound = require_bound(bound)
        self._updates: dict[str, dict[str, NDArray[np.float32]]] = {}
        self._weights: dict[str, float] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, site: str, update: Tensors, *, weight: float, variance: float) -> None:
        """Keep a copy of a site's update; a refused one leaves no trace.

        Raises:
            ConfigError: the weight is out of range.
            OrderError: the site was added before.
            SecurityRefused: a number that is not finite or above the bound, or another shape.
        """
        require_new(site, self._updates)
        require_sound(site, update, self._shapes, self._bound)
        self._weights[site] = require_weight(weight)
        self._updates[site] = {
            name: np.array(value, np.float32).reshape(-1) for name, value in update.items()
        }
        for name, value in update.items():
            self._shapes.setdefault(name, value.shape)

    def result(self) -> Means:
        """The rule's aggregate of each tensor that somebody sent.

        Raises:
            OrderError: nothing was added.
        """
        require_some(self._updates)
        found: Means = {}
        for sites, names in self._blocks().items():
            weights = np.array([self._weights[site] for site in sites])
            k = robust.trimmed(len(sites), self._tolerate)
            rows = {name: [self._updates[site][name] for site in sites] for name in names}
            found |= _aggregate(self._rule, rows, weights / weights.max(), k)
        return {name: found[name].reshape(self._shapes[name]) for name in sorted(found)}

    def _blocks(self) -> dict[tuple[str, ...], list[str]]:
        """Names of the tensors that the same sites sent, all in the order of the alphabet."""
        blocks: dict[tuple[str, ...], list[str]] = {}
        for name in sorted(self._shapes):
            sites = tuple(site for site in sorted(self._updates) if name in self._updates[site])
            blocks.setdefault(sites, []).append(name)
        return blocks


def _aggregate(
    rule: str, rows: Mapping[str, robust.Rows], weights: NDArray[np.float64], k: int
) -> Means:
    if rule == "trimmed-mean":
        return {name: robust.trimmed_mean(r, weights, k) for name, r in rows.items()}
    if rule == "median":
        fair = robust.fair_weights(weights, k)
        return {name: robust.coordinate_median(r, fair) for name, r in rows.items()}
    factors = _factors(rule, list(rows.values()), weights, k)
    return {name: robust.combine(r, factors) for name, r in rows.items()}


def _factors(
    rule: str, tensors: Sequence[robust.Rows], weights: NDArray[np.float64], k: int
) -> NDArray[np.float64]:
    """What each site's rows are multiplied with, from the geometry of a whole block."""
    if rule == "norm-bounded":
        return robust.norm_bounded(np.sum([robust.lengths(r) for r in tensors], axis=0), weights)
    inner: NDArray[np.float64] = np.sum([robust.gram(r) for r in tensors], axis=0)
    if rule == "multi-krum":
        return robust.multi_krum(inner, weights, k)
    return robust.geometric_median(inner, robust.fair_weights(weights, k))
