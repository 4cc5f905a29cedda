"""The mean that holds no update: running sums in fixed point, the same in any order.

Public: all of it. What arrives is noisy already, and weights are contract figures.

Float addition is not associative, integer addition is. Each number is weighed, rounded to a
power-of-two grid and added as int64, so that the sums do not depend on who answered first.
"""

import math
from collections.abc import Collection, Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, OrderError, SecurityRefused
from common.limits import LIMITS

Tensors = Mapping[str, NDArray[np.float32]]

_CHUNK = 32_768
"""Numbers converted at once; the buffer stays in the processor's cache."""
_SUM_BITS = 62
"""Bits of a running sum, one below what int64 holds."""
_SITE_BITS = math.ceil(math.log2(LIMITS.sites))


class RunningMean:
    """Weighted mean of updates, tensor by tensor, over the sites that sent the tensor.

    Memory: 8 bytes a number for each power of two among the weights (one for equal weights), no
    matter how many sites. Rounding moves no number of the mean by more than 2**-44 of `bound`.
    """

    def __init__(self, *, bound: float, by_variance: bool = False) -> None:
        """Start with nothing.

        Args:
            bound: public largest length of an update; no single number may be larger.
            by_variance: weigh each site by 1 / variance instead of by its contract weight, which
                is the least noisy unbiased mean when all sites estimate the same update.

        Raises:
            ConfigError: the bound is not above 0 and finite.
        """
        self._bound = require_bound(bound)
        self._by_variance = by_variance
        # A weighed number is below 2 * bound: its mantissa is in [1, 2), its power waits outside.
        self._grid = math.ceil(math.log2(bound)) + 1 + _SITE_BITS - _SUM_BITS
        # A float64 this large has steps of one grid unit: adding it rounds, and the low bits of
        # the sum are the whole number of units.
        self._rounder = np.float64(math.ldexp(1.5, 52 + self._grid))
        self._sums: dict[str, dict[int, NDArray[np.uint64]]] = {}
        self._counts: dict[tuple[str, int], int] = {}
        self._mass: dict[str, Fraction] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._sites: set[str] = set()

    def add(self, site: str, update: Tensors, *, weight: float, variance: float) -> None:
        """Add a site's update; a refused one leaves the sums as they were.

        Args:
            site: name, once.
            update: the site's deltas by tensor.
            weight: contract weight, positive.
            variance: of the noise in one number of the update, public.

        Raises:
            ConfigError: weight or variance out of range.
            OrderError: the site was added before.
            SecurityRefused: a number that is not finite or above the bound, or another shape.
        """
        used = _inverse(variance) if self._by_variance else require_weight(weight)
        require_new(site, self._sites)
        require_sound(site, update, self._shapes, self._bound)
        self._sites.add(site)
        half, above = math.frexp(used)
        mantissa, power = 2 * half, above - 1
        for name, value in update.items():
            self._shapes.setdefault(name, value.shape)
            sums = self._sums.setdefault(name, {})
            if power not in sums:
                sums[power] = np.zeros(value.size, np.uint64)
            _add_rounded(sums[power], value.reshape(-1), mantissa, self._rounder)
            self._counts[name, power] = self._counts.get((name, power), 0) + 1
            self._mass[name] = self._mass.get(name, Fraction(0)) + Fraction(used)

    def result(self) -> dict[str, NDArray[np.float64]]:
        """The mean of each tensor that somebody sent, float64.

        Raises:
            OrderError: nothing was added.
        """
        require_some(self._sites)
        return {name: self._total(name).reshape(self._shapes[name]) for name in sorted(self._sums)}

    def _total(self, name: str) -> NDArray[np.float64]:
        sums = self._sums[name]
        total = np.zeros(next(iter(sums.values())).size)
        for power, bits in sorted(sums.items()):
            # Modulo 2**64: the bits of the rounder come off, and signs come back.
            added = self._counts[name, power] * int(self._rounder.view(np.uint64)) % 2**64
            units = (bits - np.uint64(added)).view(np.int64)
            total += units * float(Fraction(2) ** (power + self._grid) / self._mass[name])
        return total


def _add_rounded(
    sums: NDArray[np.uint64], flat: NDArray[np.float32], mantissa: float, rounder: np.float64
) -> None:
    buffer = np.empty(min(_CHUNK, flat.size))
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK]
        part = buffer[: piece.size]
        np.copyto(part, piece)
        if mantissa != 1:
            part *= mantissa
        part += rounder
        sums[start : start + piece.size] += part.view(np.uint64)


def _inverse(variance: float) -> float:
    if not (math.isfinite(variance) and variance > 0):
        raise ConfigError(
            f"Expected a noise variance above 0 for inverse-variance weights, got {variance!r}; "
            "choose another rule for a run without noise."
        )
    return require_weight(1 / variance)


def require_bound(bound: float) -> float:
    """The public bound.

    Raises:
        ConfigError: it is not above 0 and finite.
    """
    if not (math.isfinite(bound) and 1e-30 < bound < 1e30):
        raise ConfigError(f"Expected a length bound from 1e-30 to 1e30, got {bound!r}.")
    return bound


def require_weight(weight: float) -> float:
    """A contract weight.

    Raises:
        ConfigError: it is not above 0 and finite.
    """
    if not (math.isfinite(weight) and 1e-100 < weight < 1e100):
        raise ConfigError(f"Expected a weight above 0 and below 1e100, got {weight!r}.")
    return weight


def require_new(site: str, sites: Collection[str]) -> None:
    """Refuse a second update of a site, and a site beyond the limit.

    Raises:
        OrderError: either.
    """
    if site in sites:
        raise OrderError(f"Expected one update of site {site} in a round, got two.")
    if len(sites) >= LIMITS.sites:
        raise OrderError(f"Expected at most {LIMITS.sites} sites, got more.")


def require_some(sites: Collection[str]) -> None:
    """Refuse to aggregate nothing.

    Raises:
        OrderError: no site was added.
    """
    if not sites:
        raise OrderError("Expected at least one update to aggregate, got none.")


def require_sound(
    site: str, update: Tensors, shapes: Mapping[str, tuple[int, ...]], bound: float
) -> None:
    """Refuse an update that would spoil the sums: the admission gate's last line.

    Raises:
        SecurityRefused: a number that is not finite or above the bound, or another shape.
    """
    for name, value in update.items():
        if value.shape != shapes.get(name, value.shape):
            raise SecurityRefused(
                f"Expected shape {shapes[name]} of {name} from site {site}, got {value.shape}."
            )
        if not _within(value.reshape(-1), bound):
            raise SecurityRefused(
                f"Expected finite numbers within {bound:g} in {name} from site {site}, got others."
            )


def _within(flat: NDArray[np.float32], bound: float) -> bool:
    # In pieces, so that the second look finds the numbers in the cache.
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK]
        # A comparison with NaN is false, so NaN is refused with the rest.
        if not (piece.max() <= bound and piece.min() >= -bound):
            return False
    return True
