"""The three losses on one score. Each row's loss depends on its own subject alone."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from common.plan import RecommenderPlan

CLICK_THRESHOLD = 4.0
"""A rating of at least this is a click, on data with ratings 1 to 5."""
RATING_MIDDLE, RATING_HALF = 3.0, 2.0
"""Ratings 1 to 5 are trained as (rating - 3) / 2; public constants, not statistics of the data."""
RATING_GAIN = 0.1
"""Score to rating: keeps squared errors in the range that the clip expects."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The items that one micro-batch is scored against.

    Attributes:
        items: int64 (c), distinct catalog positions.
        column: int64 (R), where each row's own target stands in `items`.
        mask: bool (R, c), True where a row may see the column; None: every row sees all.
        correction: added to the logits of sampled negatives, log(n / sampled).
    """

    items: Tensor
    column: Tensor
    mask: Tensor | None
    correction: float


def draw_negatives(items: int, count: int, generator: torch.Generator) -> Tensor | None:
    """A uniform sample of the public catalog, or None when the whole catalog is small enough."""
    if items <= count:
        return None
    return torch.randperm(items, generator=generator)[:count].sort().values


def candidates(target: Tensor, items: int, negatives: Tensor | None) -> Candidates:
    """Columns for `target` (R): the whole catalog, or public negatives and each row's own target.

    A row never sees another row's target unless the public sample holds it: in-batch negatives
    would let one subject move another's gradient.
    """
    if negatives is None:
        return Candidates(items=torch.arange(items), column=target, mask=None, correction=0.0)
    extra = target.unique()
    extra = extra[~torch.isin(extra, negatives)]
    columns = torch.cat([negatives, extra])
    place = torch.empty(items, dtype=torch.long)
    place[columns] = torch.arange(len(columns))
    column = place[target]
    mask = torch.zeros(len(target), len(columns), dtype=torch.bool)
    mask[:, : len(negatives)] = True
    mask[torch.arange(len(target)), column] = True
    return Candidates(
        items=columns,
        column=column,
        mask=mask,
        correction=float(torch.log(torch.tensor(items / len(negatives)))),
    )


def row_losses(scores: Tensor, value: Tensor, chosen: Candidates, plan: RecommenderPlan) -> Tensor:
    """Loss of every row, shape (R,).

    Args:
        scores: float32 (R, c).
        value: float32 (R), rating of the target.
        chosen: what the columns mean.
        plan: names the objective.
    """
    rows = torch.arange(len(scores))
    own = scores[rows, chosen.column]
    if plan.objective == "click":
        label = (value >= CLICK_THRESHOLD).to(scores.dtype)
        return F.binary_cross_entropy_with_logits(own, label, reduction="none")
    if plan.objective == "rating":
        wanted = (value.clamp(1.0, 5.0) - RATING_MIDDLE) / RATING_HALF
        return (own * RATING_GAIN - wanted).square()
    if chosen.mask is not None:
        scores = scores + chosen.correction
        scores = scores.masked_fill(~chosen.mask, float("-inf"))
        scores = scores.index_put((rows, chosen.column), own)
    return scores.logsumexp(-1) - own


def as_rating(score: Tensor) -> Tensor:
    """A score of the rating objective as a rating between 1 and 5."""
    return (score * RATING_GAIN * RATING_HALF + RATING_MIDDLE).clamp(1.0, 5.0)
