"""How well a held-out item is ranked, three bounded figures a subject. Sensitive: every figure."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.backbone import Backbone
from common.catalog import Catalog
from common.plan import RecommenderPlan
from common.ranking import exclude
from common.recommender import Recommender
from common.splits import LeaveOneOut
from common.textpath import ActivationStore, TextVectors
from common.windows import history_texts, history_views, query_windows

DEPTH: Final = 10
BATCH: Final = 1024
"""Subjects ranked at a time."""


class HeldOut:
    """Subjects with an item held out, and the frozen work done on their histories.

    Args:
        catalog: of the domain.
        split: of the records.
        plan: of the recommender.
        backbone: frozen.
        store: of activations.
    """

    def __init__(
        self,
        catalog: Catalog,
        split: LeaveOneOut,
        plan: RecommenderPlan,
        *,
        backbone: Backbone,
        store: ActivationStore,
    ) -> None:
        self.subjects = np.flatnonzero(split.test_target >= 0)
        """Positions among the records' subjects, int64 (n)."""
        self._history = split.test_history.select(self.subjects)
        self._target = torch.from_numpy(split.test_target[self.subjects].astype(np.int64))
        self._windows = query_windows(self._history, history_items=plan.history_items)
        made = store.texts(
            backbone,
            history_texts(self._windows.history, catalog, items=plan.text_items),
            tokens=plan.text_tokens,
            top_layers=plan.top_layers,
        )
        space = store.item_space(backbone, catalog, tokens=plan.item_tokens)
        self._texts, self._vectors = TextVectors(made, space.centre), space.vectors
        self._model = Recommender(
            plan,
            backbone=backbone,
            width=backbone.width,
            items=len(catalog),
            domain=catalog.domain,
        ).eval()

    @torch.inference_mode()
    def figures(self, tensors: dict[str, Tensor]) -> NDArray[np.float64]:
        """(n, 3): one, NDCG@10 and hit at 10 of each subject, all in [0, 1]."""
        self._model.load(tensors)
        self._texts.adapter_changed(self._model.text)
        parts = torch.arange(len(self._target)).split(BATCH)
        ranks = [self._ranks(rows) for rows in parts if len(rows)]
        rank = torch.cat(ranks).numpy() if ranks else np.zeros(0, np.int64)
        hit = (rank >= 1) & (rank <= DEPTH)
        ndcg = np.where(hit, 1 / np.log2(np.maximum(rank, 1) + 1.0), 0.0)
        return np.stack([np.ones(len(rank)), ndcg, hit.astype(np.float64)], axis=1)

    def _ranks(self, rows: Tensor) -> Tensor:
        """Place of each target from 1, ties against it; 0 where a score is not a number."""
        text = self._texts.frozen(rows, self._model.text)
        views = history_views(self._windows.history[rows], self._vectors)
        scores = self._model(text, views, self._vectors, torch.arange(len(self._vectors)))
        exclude(scores, self._history, rows.numpy())
        own = scores.gather(1, self._target[rows].unsqueeze(1))
        ranks: Tensor = (scores >= own).sum(1)
        return ranks
