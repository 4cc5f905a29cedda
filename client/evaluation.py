"""Federated evaluation at a site: noised sums of three bounded figures a subject, nothing else.

Each subject gives (1, NDCG@10, hit at 10) of the last item held out, a vector of length sqrt(3) at
most; the sum gets Gaussian noise that the ledger paid for. Sensitive: everything but the sums.
"""

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.site import SiteRecords
from common.backbone import Backbone
from common.grant import Grant
from common.plan import RunPlan
from common.ranking import exclude
from common.recommender import Recommender
from common.splits import LeaveOneOut
from common.textpath import ActivationStore, TextVectors
from common.windows import history_texts, history_views, query_windows
from common.wire import FIGURES

DEPTH: Final = 10
SENSITIVITY: Final = math.sqrt(len(FIGURES))
"""Longest vector that one subject adds."""
GRID: Final = 2.0**-20
"""Sums and noise are whole multiples, so that no digit of a float tells the data."""
BATCH: Final = 1024


class SiteEvaluator:
    """Ranks every subject's held-out item under an adapter.

    Args:
        records: the site.
        split: of its records.
        plan: of the run.
        backbone: frozen.
        store: of activations.
    """

    def __init__(
        self,
        records: SiteRecords,
        split: LeaveOneOut,
        plan: RunPlan,
        *,
        backbone: Backbone,
        store: ActivationStore,
    ) -> None:
        recommender = plan.recommender
        chosen = np.flatnonzero(split.test_target >= 0)
        self._subjects = chosen
        self._history = split.test_history.select(chosen)
        self._target = torch.from_numpy(split.test_target[chosen].astype(np.int64))
        self._windows = query_windows(self._history, history_items=recommender.history_items)
        made = store.texts(
            backbone,
            history_texts(self._windows.history, records.catalog, items=recommender.text_items),
            tokens=recommender.text_tokens,
            top_layers=recommender.top_layers,
        )
        space = store.item_space(backbone, records.catalog, tokens=recommender.item_tokens)
        self._texts, self._vectors = TextVectors(made, space.centre), space.vectors
        self._model = Recommender(
            recommender,
            backbone=backbone,
            width=backbone.width,
            items=len(records.catalog),
            domain=records.domain,
        ).eval()

    def noised(
        self, tensors: dict[str, Tensor], grant: Grant, left_out: NDArray[np.int64]
    ) -> dict[str, float]:
        """Sums over the subjects, with noise; by the names of FIGURES.

        Args:
            tensors: the adapter.
            grant: pays for one release without sampling.
            left_out: positions of subjects who opted out.
        """
        grant.sample(len(self._subjects))  # rate 1: everybody counts
        each = self._figures(tensors)[~np.isin(self._subjects, left_out)]
        exact = np.round(each.sum(axis=0) / GRID)
        scale = grant.noise_multiplier * SENSITIVITY / GRID
        noise = np.round(grant.noise(len(FIGURES)) * scale)
        return dict(zip(FIGURES, ((exact + noise) * GRID).tolist(), strict=True))

    @torch.inference_mode()
    def _figures(self, tensors: dict[str, Tensor]) -> NDArray[np.float64]:
        """(n, 3): one, NDCG@10 and hit at 10 of each subject, all in [0, 1]."""
        self._model.load(tensors)
        self._texts.adapter_changed(self._model.text)
        ranks = [self._ranks(rows) for rows in torch.arange(len(self._target)).split(BATCH)]
        rank = torch.cat(ranks).numpy() if ranks else np.zeros(0, np.int64)
        hit = (rank >= 1) & (rank <= DEPTH)
        ndcg = np.where(hit, 1 / np.log2(np.maximum(rank, 1) + 1.0), 0.0)
        return np.stack([np.ones(len(rank)), ndcg, hit.astype(np.float64)], axis=1)

    def _ranks(self, rows: Tensor) -> Tensor:
        """Place of each target from 1, ties against it; 0 where a score is not a number."""
        text = self._texts.frozen(rows, self._model.text)
        views = history_views(self._windows.history[rows], self._vectors)
        items = torch.arange(len(self._vectors))
        scores = self._model(text, views, self._vectors, items)
        exclude(scores, self._history, rows.numpy())
        own = scores.gather(1, self._target[rows].unsqueeze(1))
        ranks: Tensor = (scores >= own).sum(1)
        return ranks
