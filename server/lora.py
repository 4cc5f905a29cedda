"""Exact aggregation of LoRA: the mean of products is not the product of means.

A site's change of a weight matrix is scale * B @ A with B (d_out, r) and A (r, d_in). With A
frozen (FFA) the mean of B is exact: mean(B_i) @ A = mean(B_i @ A). With both trained it is not, and
three ways stay without ever forming a (d_out, d_in) matrix:

- stacking: [w_1 B_1 ... w_n B_n] @ [A_1; ...; A_n], exact, of rank sum(r_i) (FLoRA, Wang 2024);
- the same brought back to rank r by its singular values, the best of that rank (FlexLoRA, Bai 2024;
  Eckart and Young 1936);
- plain means plus the residual that they miss, as factors (FedEx-LoRA, Singhal 2024).

Sites may have different ranks. All of it is a mean: no rule here stands a hostile site.
Public: all of it; factors arrive noisy, weights are contract figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import OrderError, SecurityRefused
from server.streaming import Tensors, require_weight

Matrix = NDArray[np.float64]
A_NAME, B_NAME = "lora_A.weight", "lora_B.weight"
_NEGLIGIBLE = 1e-12
"""Singular values under this share of the largest are rounding."""
_WORST_BASIS = 1e4
"""Largest condition number at which A is carried over; beyond it the balanced factors stand."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A low-rank matrix scale * b @ a, float64, of shape (d_out, d_in).

    Attributes:
        a: shape (r, d_in).
        b: shape (d_out, r).
        scale: lora_alpha / r of the site; matters where ranks differ.
    """

    a: Matrix
    b: Matrix
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.b.ndim != 2 or self.b.shape[1] != self.a.shape[0]:
            raise SecurityRefused(
                f"Expected A of (r, d_in) and B of (d_out, r), got {self.a.shape}, {self.b.shape}."
            )
        if not (np.isfinite(self.a).all() and np.isfinite(self.b).all()):
            raise SecurityRefused("Expected finite LoRA factors, got others.")

    @property
    def rank(self) -> int:
        """Rows of A."""
        return int(self.a.shape[0])


def stacked(sites: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The weighted mean of the sites' products, exactly, of rank sum(r_i).

    Args:
        sites: factors of each site, of one (d_out, d_in).
        weights: contract weight of each, positive.

    Raises:
        OrderError: no site, or weights of another number.
        SecurityRefused: shapes that do not fit together, or a number that is not finite.
    """
    shares = _shares(sites, weights)
    return Factors(
        a=np.vstack([f.a for f in sites]),
        b=np.hstack([share * f.scale * f.b for f, share in zip(sites, shares, strict=True)]),
    )


def mean_of_factors(sites: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Mean of A and mean of B: exact for one common A (FFA), wrong for plain LoRA.

    Smaller ranks are filled up with zeros; each site's scale goes into its B.
    """
    shares = _shares(sites, weights)
    rank = max(f.rank for f in sites)
    a = np.zeros((rank, sites[0].a.shape[1]))
    b = np.zeros((sites[0].b.shape[0], rank))
    for f, share in zip(sites, shares, strict=True):
        a[: f.rank] += share * f.a
        b[:, : f.rank] += share * f.scale * f.b
    return Factors(a=a, b=b)


def residual(sites: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """What the means of the factors miss: mean(B @ A) - mean(B) @ mean(A), of rank n * max(r_i).

    It is the mean of (B_i - mean B) @ (A_i - mean A): no two large products cancel.
    """
    shares = _shares(sites, weights)
    mean = mean_of_factors(sites, weights)
    parts = [_filled(f, mean.rank) for f in sites]
    return Factors(
        a=np.vstack([p.a - mean.a for p in parts]),
        b=np.hstack([share * (p.b - mean.b) for p, share in zip(parts, shares, strict=True)]),
    )


def total(parts: Sequence[Factors]) -> Factors:
    """The sum of low-rank matrices, of the sum of their ranks."""
    return Factors(a=np.vstack([p.a for p in parts]), b=np.hstack([p.scale * p.b for p in parts]))


def decomposed(factors: Factors) -> tuple[Matrix, Matrix, Matrix]:
    """Singular values of scale * b @ a: U (d_out, q), s (q), V (q, d_in), q the numeric rank.

    Through QR of both factors; the largest matrix that is decomposed has side rank.
    """
    outer, right = np.linalg.qr(factors.scale * factors.b)
    inner, left = np.linalg.qr(factors.a.T)
    u, s, v = np.linalg.svd(right @ left.T)
    kept = int(np.count_nonzero(s > _NEGLIGIBLE * s[0])) if s[0] > 0 else 0
    return outer @ u[:, :kept], s[:kept], v[:kept] @ inner.T


def reduced(factors: Factors, rank: int, *, like: Matrix | None = None) -> Factors:
    """The closest matrix of a rank, as factors of exactly that rank and scale 1.

    Many pairs (b, a) have one product. With `like` it is the pair that changes `like` least, so
    that an optimiser's memory of A and B keeps its meaning; directions of `like` that the product
    does not use stay, with b = 0 on them. Without it, or where `like` is nearly orthogonal to the
    new row space, both factors carry the square roots of the singular values.

    Args:
        factors: any rank.
        rank: of the result.
        like: A to stay close to, shape (rank, d_in).
    """
    u, s, v = decomposed(factors)
    u, s, v = u[:, :rank], s[:rank], v[:rank]
    # v as a mixture of the rows of `like`; b takes the mixture, a the little that it misses.
    mixed = None if like is None else v @ np.linalg.pinv(like)
    if like is None or mixed is None or (s.size and np.linalg.cond(mixed) > _WORST_BASIS):
        roots = np.sqrt(s)
        return _filled(Factors(a=roots[:, None] * v, b=u * roots), rank)
    return Factors(a=like + np.linalg.pinv(mixed) @ (v - mixed @ like), b=(u * s) @ mixed)


def length(factors: Factors) -> float:
    """Frobenius norm of scale * b @ a, without forming it."""
    right = np.linalg.qr(factors.scale * factors.b).R
    left = np.linalg.qr(factors.a.T).R
    return float(np.linalg.norm(right @ left.T))


def error_against_exact(
    found: Factors, sites: Sequence[Factors], weights: Sequence[float]
) -> float:
    """Frobenius distance of a method's matrix from the exact mean of products, over its length.

    The exact one is stacked, which the tests hold against the dense matrix. 0 where both are zero.
    """
    exact = stacked(sites, weights)
    minus = Factors(a=found.a, b=found.b, scale=-found.scale)
    size, gap = length(exact), length(total([exact, minus]))
    return gap / size if size else gap


def errors_of_methods(
    sites: Sequence[Factors], weights: Sequence[float], *, rank: int
) -> dict[str, float]:
    """`error_against_exact` of each way to aggregate, by its name."""
    mean = mean_of_factors(sites, weights)
    exact = stacked(sites, weights)
    found = {
        "mean": mean,
        "stacking": exact,
        "svd": reduced(exact, rank),
        "fedex": total([mean, residual(sites, weights)]),
    }
    return {name: error_against_exact(f, sites, weights) for name, f in found.items()}


def aggregate_plain_lora(
    updates: Mapping[str, Tensors],
    current: Tensors,
    *,
    weights: Mapping[str, float],
    scales: Mapping[str, float] | None = None,
) -> dict[str, Matrix]:
    """New factors of each LoRA pair: the best of the current rank for the exact mean product.

    The new A stays close to the mean of A (to the current A where ranks differ). The result does
    not depend on the order of the sites.

    Args:
        updates: by site, absolute factors under their adapter names; other names are ignored.
        current: the adapter that the sites started from; its ranks are those of the result.
        weights: contract weight by site, positive.
        scales: lora_alpha / r of a site over that of the current adapter, where ranks differ.

    Returns:
        Absolute factors, float64, of each pair that a site sent, under both of its names.

    Raises:
        OrderError: a site without a weight.
        SecurityRefused: half a pair, or factors that do not fit the current ones.
    """
    found: dict[str, Matrix] = {}
    for a_name in sorted(name for name in current if name.endswith(A_NAME)):
        b_name = a_name.removesuffix(A_NAME) + B_NAME
        base = _pair(current, a_name, b_name, 1.0)
        senders = [s for s in sorted(updates) if a_name in updates[s] or b_name in updates[s]]
        if not senders:
            continue
        sites = [_pair(updates[s], a_name, b_name, (scales or {}).get(s, 1.0)) for s in senders]
        if any(s not in weights for s in senders):
            raise OrderError("Expected a weight for each site that sent a LoRA pair.")
        shares = [weights[s] for s in senders]
        alike = all(f.rank == base.rank for f in sites)
        like = mean_of_factors(sites, shares).a if alike else base.a
        new = reduced(stacked(sites, shares), base.rank, like=like)
        if (new.a.shape, new.b.shape) != (base.a.shape, base.b.shape):
            raise SecurityRefused(
                f"Expected factors of {base.b.shape} by {base.a.shape} for {b_name}, got others."
            )
        found[a_name], found[b_name] = new.a, new.b
    return found


def _pair(tensors: Tensors, a_name: str, b_name: str, scale: float) -> Factors:
    if a_name not in tensors or b_name not in tensors:
        raise SecurityRefused(f"Expected both {a_name} and {b_name}, got one of them.")
    return Factors(
        a=tensors[a_name].astype(np.float64), b=tensors[b_name].astype(np.float64), scale=scale
    )


def _filled(factors: Factors, rank: int) -> Factors:
    """The same matrix with zeros up to a rank, scale folded into b."""
    missing = rank - factors.rank
    return Factors(
        a=np.pad(factors.a, ((0, missing), (0, 0))),
        b=np.pad(factors.scale * factors.b, ((0, 0), (0, missing))),
    )


def _shares(sites: Sequence[Factors], weights: Sequence[float]) -> list[float]:
    if not sites or len(sites) != len(weights):
        raise OrderError("Expected at least one site's factors and one weight for each.")
    sides = {(f.b.shape[0], f.a.shape[1]) for f in sites}
    if len(sides) > 1:
        raise SecurityRefused(f"Expected LoRA factors of one layer, got {len(sides)} sizes.")
    mass = sum(require_weight(weight) for weight in weights)
    return [weight / mass for weight in weights]
