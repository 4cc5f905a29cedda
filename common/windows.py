"""Training windows of a site: what the model saw before each target.

Sensitive: everything. Windows of one subject stand together, so that they form one example.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.catalog import Catalog
from common.interactions import Interactions

DECAY = 0.7
"""Weight of an item over that of the next younger one in the recency view."""
VIEWS = 3
"""Views of a history: mean, last, recency-weighted."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """R windows of N subjects, those of a subject side by side, oldest target first.

    Attributes:
        offsets: int64 (N+1), windows of subject i stand at offsets[i]:offsets[i+1].
        target: int64 (R), catalog position to predict.
        value: float32 (R), the rating of the target.
        history: int64 (R, L), catalog positions before the target, most recent first, -1 padded.
    """

    offsets: Tensor
    target: Tensor
    value: Tensor
    history: Tensor

    def __len__(self) -> int:
        return len(self.target)

    @property
    def subjects(self) -> int:
        """Number of subjects N, those without a window included."""
        return len(self.offsets) - 1

    def rows_of(self, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the given subjects and, for each row, which of the given subjects owns it."""
        counts = self.offsets[subjects + 1] - self.offsets[subjects]
        owner = torch.repeat_interleave(torch.arange(len(subjects)), counts)
        first = counts.cumsum(0) - counts
        rows = torch.arange(len(owner)) - first[owner] + self.offsets[subjects][owner]
        return rows, owner


def training_windows(train: Interactions, *, windows: int, history_items: int) -> Windows:
    """The latest `windows` targets of every subject, each with what came before it.

    The first interaction of a subject is a target too: its history is empty, and it teaches the
    item bias.
    """
    counts = np.minimum(train.counts, windows)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    owner = np.repeat(np.arange(len(train)), counts)
    place = np.arange(len(owner)) - offsets[owner] + (train.counts - counts)[owner]
    flat = train.offsets[owner] + place
    return Windows(
        offsets=torch.from_numpy(offsets.astype(np.int64)),
        target=torch.from_numpy(train.items[flat].astype(np.int64)),
        value=torch.from_numpy(train.values[flat].astype(np.float32)),
        history=_before(train, owner, place, history_items),
    )


def query_windows(history: Interactions, *, history_items: int) -> Windows:
    """One window a subject, its whole history before it and no target (-1)."""
    n = len(history)
    return Windows(
        offsets=torch.arange(n + 1),
        target=torch.full((n,), -1),
        value=torch.zeros(n),
        history=_before(history, np.arange(n), history.counts, history_items),
    )


def _before(
    records: Interactions, owner: np.ndarray, place: np.ndarray, history_items: int
) -> Tensor:
    """Items before each place, most recent first, padded with -1 to the longest one, (R, L)."""
    longest = int(min(history_items, place.max(initial=1)))
    back = np.arange(1, max(longest, 1) + 1)
    index = place[:, None] - back[None, :]
    flat = records.offsets[owner][:, None] + np.maximum(index, 0)
    items = records.items[np.minimum(flat, max(len(records.items) - 1, 0))].astype(np.int64)
    items[index < 0] = -1
    return torch.from_numpy(items)


def history_views(history: Tensor, vectors: Tensor) -> Tensor:
    """What the frozen backbone says of a history: three unit views side by side, (R, 3d).

    Args:
        history: int64 (R, L), most recent first, -1 padded.
        vectors: float32 (n, d), item vectors.

    Returns:
        mean, last and recency-weighted item vector, each of unit length, over sqrt(3); zero for an
        empty history.
    """
    present = history >= 0
    rows, length = history.shape
    flat = history.clamp(min=0)
    equal = present.to(vectors.dtype)
    recent = equal * DECAY ** torch.arange(length, dtype=vectors.dtype)
    mean = _weighted(flat, equal, vectors)
    last = vectors[flat[:, 0]] * present[:, :1]
    views = torch.stack([mean, last, _weighted(flat, recent, vectors)], dim=1)
    unit: Tensor = torch.nn.functional.normalize(views, dim=-1) / VIEWS**0.5
    return unit.reshape(rows, -1)


def _weighted(index: Tensor, weight: Tensor, vectors: Tensor) -> Tensor:
    return torch.nn.functional.embedding_bag(index, vectors, per_sample_weights=weight, mode="sum")


def history_texts(history: Tensor, catalog: Catalog, *, items: int) -> list[str]:
    """A history in words: the titles of its latest items, most recent first; empty if none."""
    titles = catalog.titles
    return ["; ".join(titles[i] for i in row if i >= 0) for row in history[:, :items].tolist()]
