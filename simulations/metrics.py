"""Full-catalog ranking metrics, AUC, RMSE, and what a recommender shows beside being right.

Sensitive: every figure; it is the researcher's own view of records they hold, outside the
privacy claim. The ranking metrics come from trec_eval, the reference code of the field, through
ir-measures: ranx compiles for a minute and torchmetrics breaks ties by its own sort. A metric
depends on nothing but which of the 20 places hold a relevant item and how many are relevant, so
the library judges each distinct pattern once, and the values are exact for all subjects at once.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import ir_measures
import numpy as np
from ir_measures import AP, RR, P, R, Success, nDCG
from numpy.typing import NDArray
from scipy import stats

from common.errors import DataError

CUTOFFS: Final = (1, 5, 10, 20)
DEPTH: Final = 20
COLD: Final = 2
"""Most training interactions of a cold subject."""
NAMES: Final = ("recall", "precision", "f1", "hit_rate", "ndcg", "mrr", "map")

_LIBRARY: Final = {"recall": R, "precision": P, "hit_rate": Success, "ndcg": nDCG, "map": AP}
_EMPTY: Final = -1

Ranked = NDArray[np.int32]
PerSubject = dict[str, NDArray[np.float64]]
Targets = NDArray[np.integer] | Sequence[AbstractSet[int]]


def ranking_metrics(top: Ranked, targets: Targets) -> PerSubject:
    """Compute every ranking metric at every cutoff for every subject.

    Args:
        top: Catalog positions, best first, history left out, shape (n, 20 or more); -1 where a
            small catalog has no more items.
        targets: The one relevant item of each subject, shape (n,), or a set of them each.

    Returns:
        "ndcg@10" and so on -> values in [0, 1], shape (n,).

    Raises:
        DataError: Shapes that do not fit, an item twice in a ranking, no relevant item.
    """
    hits, relevant = _hits(_checked(top), targets)
    patterns, index = np.unique(np.column_stack([relevant, hits]), axis=0, return_inverse=True)
    judged = _judge(patterns[:, 1:].astype(bool), patterns[:, 0].astype(np.int64))
    return {name: values[index.reshape(-1)] for name, values in judged.items()}


def means(per_subject: PerSubject, mask: NDArray[np.bool_] | None = None) -> dict[str, float]:
    """Average over all subjects, or over those of a slice; NaN for a slice without any."""
    chosen = {k: v if mask is None else v[mask] for k, v in per_subject.items()}
    return {k: float(v.mean()) if v.size else float("nan") for k, v in chosen.items()}


def head_items(popularity: NDArray[np.integer], *, share: float = 0.2) -> NDArray[np.bool_]:
    """Mark the most popular `share` of the catalog (at least one item), shape (items,)."""
    count = max(1, round(share * popularity.size))
    mask = np.zeros(popularity.size, np.bool_)
    mask[np.argsort(-popularity, kind="stable")[:count]] = True
    return mask


def slices(
    targets: NDArray[np.integer],
    popularity: NDArray[np.integer],
    training_lengths: NDArray[np.integer],
    sites: Sequence[str] | None = None,
) -> dict[str, NDArray[np.bool_]]:
    """Build the masks that results are sliced by.

    Args:
        targets: Relevant item of each subject, shape (n,).
        popularity: Training interactions of each item, shape (items,).
        training_lengths: Training interactions of each subject, shape (n,).
        sites: Site of each subject, or None.

    Returns:
        "head items" and "tail items" by the target, "cold subjects" (at most COLD training
        interactions) and "site:NAME" for each site; each shape (n,).
    """
    head = head_items(popularity)[targets]
    cold = np.asarray(training_lengths) <= COLD
    masks = {"head items": head, "tail items": ~head, "cold subjects": cold}
    if sites is not None:
        names = np.asarray(sites)
        masks |= {f"site:{name}": names == name for name in sorted(set(sites))}
    return masks


def auc(scores: NDArray[np.floating], clicked: NDArray[np.integer]) -> float:
    """Area under the ROC curve of click scores; NaN when all labels are the same."""
    if np.unique(clicked).size < 2:
        return float("nan")
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415  (half a second)

    return float(roc_auc_score(clicked, scores))


def rmse(predicted: NDArray[np.floating], ratings: NDArray[np.floating]) -> float:
    """Root of the mean squared error of predicted ratings, in units of the rating."""
    from sklearn.metrics import root_mean_squared_error  # noqa: PLC0415

    return float(root_mean_squared_error(ratings, predicted))


def coverage(top: Ranked, items: int, *, cutoff: int = 10) -> float:
    """Compute the share of a catalog of `items` that stands in somebody's first `cutoff`."""
    shown = np.unique(top[:, :cutoff])
    return float((shown != _EMPTY).sum() / items)


def diversity(top: Ranked, vectors: NDArray[np.float32], *, cutoff: int = 10) -> float:
    """Average the cosine distance between two items of one list over lists (Ziegler et al. 2005).

    Args:
        top: Catalog positions, shape (n, cutoff or more).
        vectors: Item vectors of any length, shape (items, d).
        cutoff: Length of the lists; a list of fewer than two items is left out.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    sizes = (top[:, :cutoff] != _EMPTY).sum(axis=1)
    # Sum over pairs of <a, b> = (|sum|**2 - sum of |a|**2) / 2, so no pair is formed.
    distances = []
    for rows, size in zip(_batches(top[:, :cutoff]), _batches(sizes), strict=True):
        present = (rows != _EMPTY)[..., None]
        chosen = np.where(present, units[rows], 0) if not present.all() else units[rows]
        alike = (chosen.sum(axis=1) ** 2).sum(axis=1) - (chosen**2).sum(axis=(1, 2))
        long = size > 1
        distances.append(1 - alike[long] / (size[long] * (size[long] - 1)))
    found = np.concatenate(distances)
    return float(found.mean()) if found.size else float("nan")


def novelty(top: Ranked, popularity: NDArray[np.integer], *, cutoff: int = 10) -> float:
    """Average -log2 of an item's share of training interactions, add-one smoothed, in bits.

    Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma", self-information.
    """
    share = (popularity + 1.0) / (popularity.sum() + popularity.size)
    chosen = top[:, :cutoff]
    return float(-np.log2(share)[chosen[chosen != _EMPTY]].mean())


def paired_bootstrap(
    first: NDArray[np.float64], second: NDArray[np.float64], *, seed: int, resamples: int = 2000
) -> tuple[float, float]:
    """Compute a 95% percentile interval of mean(first - second) over the same subjects.

    Args:
        first: One metric of each subject under one model, shape (n,).
        second: The same subjects under another model, shape (n,).
        seed: The interval repeats for a seed.
        resamples: Resamples of the subjects with replacement.
    """
    if first.shape != second.shape or first.size < 2:
        raise DataError(f"Expected 2 or more pairs, got {first.shape} and {second.shape}.")
    found = stats.bootstrap(
        (first - second,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, 4_000_000 // first.size),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _checked(top: Ranked) -> Ranked:
    if top.ndim != 2 or top.shape[1] < DEPTH:
        raise DataError(f"Expected rankings of shape (n, {DEPTH} or more), got {top.shape}.")
    first = top[:, :DEPTH]
    ordered = np.sort(first, axis=1)
    if np.any((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != _EMPTY)):
        raise DataError("Expected each item once in a ranking, got one twice.")
    return first


def _hits(top: Ranked, targets: Targets) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Mark the relevant places (n, 20) and count the relevant items (n,)."""
    if len(targets) != len(top):
        raise DataError(f"Expected {len(top)} targets, one a ranking, got {len(targets)}.")
    if isinstance(targets, np.ndarray):
        if targets.ndim != 1 or np.any(targets < 0):
            raise DataError("Expected targets of shape (n,), catalog positions of 0 or more.")
        return top == targets[:, None], np.ones(len(top), np.int64)
    relevant = np.fromiter((len(wanted) for wanted in targets), np.int64, len(targets))
    if np.any(relevant == 0):
        raise DataError("Expected a relevant item for each subject, got none for one.")
    rows = zip(top.tolist(), targets, strict=True)
    hits = [[item in wanted for item in row] for row, wanted in rows]
    return np.array(hits, np.bool_).reshape(len(top), DEPTH), relevant


def _judge(hits: NDArray[np.bool_], relevant: NDArray[np.int64]) -> PerSubject:
    """Let the library judge each pattern of hits (m, 20) with so many relevant items (m,)."""
    run: dict[str, dict[str, float]] = {}
    wanted: dict[str, dict[str, int]] = {}
    for row, (places, count) in enumerate(zip(hits.tolist(), relevant.tolist(), strict=True)):
        # Strictly falling scores leave trec_eval no tie to reorder.
        run[str(row)] = {str(place): float(DEPTH - place) for place in range(DEPTH)}
        found = [str(place) for place, hit in enumerate(places) if hit]
        missed = [f"missed {i}" for i in range(count - len(found))]
        wanted[str(row)] = dict.fromkeys(found + missed, 1)
    asked = {f"{n}@{k}": m @ k for n, m in _LIBRARY.items() for k in CUTOFFS}
    names = {str(measure): name for name, measure in asked.items()} | {str(RR): "rr"}
    out = {name: np.zeros(len(hits)) for name in names.values()}
    for found_value in ir_measures.iter_calc([*asked.values(), RR], wanted, run):
        out[names[str(found_value.measure)]][int(found_value.query_id)] = found_value.value
    reciprocal = out.pop("rr")
    for k in CUTOFFS:
        out[f"mrr@{k}"] = np.where(reciprocal >= 1 / k - 1e-9, reciprocal, 0.0)
        both = out[f"precision@{k}"] + out[f"recall@{k}"]
        product = 2 * out[f"precision@{k}"] * out[f"recall@{k}"]
        out[f"f1@{k}"] = np.divide(product, both, out=np.zeros(len(hits)), where=both > 0)
    return {f"{name}@{k}": out[f"{name}@{k}"] for name in NAMES for k in CUTOFFS}


def _batches(values: NDArray[np.integer], size: int = 2048) -> list[NDArray[np.integer]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
