"""Robust rules: rows of float32 in, one float64 row out, however large k of them are.

Rows are the flat updates of the sites that sent a tensor, in the order of the sites' names.
Arithmetic is float64 in pieces of the rows, so that no float64 copy of all of them exists.

What a weight means: a contract figure, never a site's claim, so it may be trusted to *average*
with. It may not buy influence: a hostile site of a large contract is still one site. So sites are
trimmed and selected by count, and the weights average what is left. The two medians weigh by
definition; there, weights that hand k sites half of the mass are put aside (`fair_weights`).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Rows = Sequence[NDArray[np.float32]]
Vector = NDArray[np.float64]

_CELLS = 1 << 18
"""Numbers of all rows handled at once: 2 MiB in float64, the size of a processor's cache."""
_WEISZFELD_TOLERANCE = 1e-10
"""Weiszfeld ends when a step is shorter than this share of the middle distance."""
_FLOOR = 1e-9
"""Least distance of a row in Weiszfeld's division, as a share of the middle distance."""
_WEISZFELD_STEPS = 1_000
"""Most steps of Weiszfeld; each costs n**2, whatever the size of the update."""


def trimmed(count: int, tolerate: int) -> int:
    """How many rows are cut at each end: a count, never a share, and never all of them."""
    return max(0, min(tolerate, (count - 1) // 2))


def trimmed_mean(rows: Rows, weights: Vector, k: int) -> Vector:
    """Coordinate by coordinate: cut the k smallest and k largest, average the rest by weight.

    Values that tie at a cut share it, so that no order of sites matters.
    Source: Yin, Chen, Ramchandran, Bartlett 2018, Byzantine-Robust Distributed Learning.

    Args:
        rows: n arrays of shape (p,).
        weights: n positive numbers.
        k: cut at each end, below n / 2.
    """
    n = len(rows)
    equal = bool((weights == weights[0]).all())
    out = np.empty(rows[0].size)
    for piece, block in _pieces(rows):
        ranked = np.sort(block, axis=1)
        if equal:
            out[piece] = ranked[:, k : n - k].sum(axis=1, dtype=np.float64) / (n - 2 * k)
        else:
            out[piece] = _weighted_middle(block, ranked[:, k], ranked[:, n - k - 1], weights, k)
    return out


def _weighted_middle(
    block: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    weights: Vector,
    k: int,
) -> Vector:
    keep = ((block >= low[:, None]) & (block <= high[:, None])).astype(np.float64)
    for edge, beyond in ((low, block < low[:, None]), (high, block > high[:, None])):
        ties = block == edge[:, None]
        left = k - beyond.sum(axis=1)
        keep -= ties * (left / ties.sum(axis=1))[:, None]
    keep *= weights
    mean: Vector = np.einsum("pn,pn->p", keep, block) / keep.sum(axis=1)
    return mean


def coordinate_median(rows: Rows, weights: Vector) -> Vector:
    """Coordinate by coordinate: the weighted median, the middle of two where they share it.

    Args:
        rows: n arrays of shape (p,).
        weights: n positive numbers; influence is bounded while hostile rows hold under half.
    """
    n = len(rows)
    equal = bool((weights == weights[0]).all())
    out = np.empty(rows[0].size)
    for piece, block in _pieces(rows):
        if equal:
            ranked = np.sort(block, axis=1)
            out[piece] = ranked[:, [(n - 1) // 2, n // 2]].mean(axis=1, dtype=np.float64)
        else:
            out[piece] = _weighted_median(block, weights)
    return out


def _weighted_median(block: NDArray[np.float32], weights: Vector) -> Vector:
    order = np.argsort(block, axis=1)
    ranked = np.take_along_axis(block, order, axis=1).astype(np.float64)
    reached = np.cumsum(weights[order], axis=1)
    half = 0.5 * reached[:, -1:]
    slack = 1e-12 * reached[:, -1:]  # two halves of one mass must meet in spite of rounding
    low = np.argmax(reached >= half - slack, axis=1)
    high = np.argmax(reached > half + slack, axis=1)
    at = np.arange(len(block))
    middle: Vector = 0.5 * ranked[at, low] + 0.5 * ranked[at, high]
    return middle


def fair_weights(weights: Vector, k: int) -> Vector:
    """The weights, or equal ones where the k heaviest rows hold half of the mass or more."""
    heaviest = np.sort(weights)[len(weights) - k :].sum()
    return np.ones_like(weights) if 2 * heaviest >= weights.sum() else weights


def gram(rows: Rows) -> Vector:
    """Inner products of the rows around their coordinate median, shape (n, n), float64.

    The median keeps honest rows short, so that their distances do not drown in the rounding of a
    hostile row's length. In float32 and around zero both attackers were picked.
    """
    found = np.zeros((len(rows), len(rows)))
    for _, block in _pieces(rows):
        ranked = np.sort(block, axis=1)
        around = block - ranked[:, len(rows) // 2, None].astype(np.float64)
        found += around.T @ around
    return found


def inner_products(rows: Rows) -> Vector:
    """Inner products of the rows around zero, shape (n, n), float64."""
    found = np.zeros((len(rows), len(rows)))
    for _, block in _pieces(rows):
        wide = block.astype(np.float64)
        found += wide.T @ wide
    return found


def lengths(rows: Rows) -> Vector:
    """Squared Euclidean length of each row, float64, shape (n,)."""
    found = np.zeros(len(rows))
    for _, block in _pieces(rows):
        found += np.einsum("pn,pn->n", block, block, dtype=np.float64)
    return found


def multi_krum(inner: Vector, weights: Vector, k: int) -> Vector:
    """Share of each row in the mean of the n - k rows with the closest neighbours.

    A row's score is the sum of its squared distances to the n - k - 2 nearest others, k at least:
    k hostile rows that stand together have k - 1 friends, so each score holds an honest distance.
    Ties go to the site that comes first by name. Source: Blanchard, El Mhamdi, Guerraoui, Stainer
    2017, Machine Learning with Adversaries.

    Args:
        inner: inner products of the rows around any point, shape (n, n).
        weights: of the n rows; they average what was selected and select nothing.
        k: rows left out.
    """
    n = len(weights)
    squares = np.diag(inner)
    apart = np.maximum(squares[:, None] + squares[None, :] - 2 * inner, 0)
    np.fill_diagonal(apart, np.inf)
    near = min(max(n - k - 2, k), n - 1)
    scores = np.sort(apart, axis=1)[:, :near].sum(axis=1)
    chosen = np.argsort(scores, kind="stable")[: n - k]
    shares = np.zeros(n)
    shares[chosen] = weights[chosen] / weights[chosen].sum()
    return shares


def geometric_median(inner: Vector, weights: Vector) -> Vector:
    """Share of each row in the point with the least weighted sum of distances to the rows.

    Weiszfeld's iteration on inner products alone, from the point they were taken around, until a
    step is under 1e-10 of the middle distance or after 1,000 steps. A distance counts as 1e-9 of
    the middle one at least, so that a row may be the median.
    Source: Weiszfeld 1937; Pillutla, Kakade, Harchaoui 2022, Robust Aggregation, algorithm 2.

    Args:
        inner: inner products of the rows around a point inside of them, shape (n, n).
        weights: of the n rows; influence is bounded while hostile rows hold under half.
    """
    mass: Vector = weights / weights.sum()
    squares = np.diag(inner)
    shares = np.zeros(len(weights))
    for _ in range(_WEISZFELD_STEPS):
        pulled = inner @ shares
        distances = np.sqrt(np.maximum(squares - 2 * pulled + shares @ pulled, 0))
        middle = _middle_of(distances, mass)
        # Rows that hold half of the mass and stand in one point are the median.
        near = distances == 0
        pull = near * mass if middle == 0 else mass / np.maximum(distances, _FLOOR * middle)
        moved = pull / pull.sum() - shares
        shares = shares + moved
        if float(moved @ inner @ moved) <= (_WEISZFELD_TOLERANCE * middle) ** 2:
            break
    return shares


def _middle_of(distances: Vector, mass: Vector) -> float:
    """Weighted median of distances: hostile rows under half of the mass do not stretch it."""
    order = np.argsort(distances)
    reached = np.cumsum(mass[order])
    return float(distances[order][np.argmax(reached >= 0.5 - 1e-12)])


def norm_bounded(squares: Vector, weights: Vector) -> Vector:
    """Factor of each row in the mean whose rows are cut to the median of their lengths.

    Args:
        squares: squared lengths of the n rows.
        weights: of the n rows; the median of lengths counts rows.
    """
    found = np.sqrt(squares)
    middle = float(np.median(found))
    cut = np.minimum(1.0, np.divide(middle, found, out=np.ones_like(found), where=found > 0))
    factors: Vector = cut * weights / weights.sum()
    return factors


def combine(rows: Rows, factors: Vector) -> Vector:
    """Sum of the rows times their factors, float64; a row of factor 0 is not read.

    Args:
        rows: n arrays of shape (p,).
        factors: n numbers.
    """
    used = [i for i, factor in enumerate(factors) if factor]
    if not used:
        return np.zeros(rows[0].size)
    chosen = [rows[i] for i in used]
    out = np.empty(rows[0].size)
    for piece, block in _pieces(chosen):
        out[piece] = block.astype(np.float64) @ factors[used]
    return out


def _pieces(rows: Rows) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Slices of the coordinates, each with its numbers: one line a coordinate, one column a row."""
    size, length = max(1, _CELLS // len(rows)), rows[0].size
    for start in range(0, length, size):
        piece = slice(start, min(start + size, length))
        yield piece, np.ascontiguousarray(np.stack([row[piece] for row in rows]).T)
