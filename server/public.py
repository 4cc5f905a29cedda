"""Evaluation on records that the consortium owns and may publish: best round, early stop.

Choosing a round by private records would cost privacy; by these it costs none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.backbone import Backbone
from common.catalog import read_catalog
from common.errors import ConfigError, DataError
from common.held_out import HeldOut
from common.interactions import read_interactions
from common.plan import RecommenderPlan
from common.splits import leave_one_out
from common.textpath import ActivationStore
from common.wire import Tensors


@dataclass(kw_only=True)
class PublicEvaluation:
    """NDCG@10 on a public hold-out after each round.

    Attributes:
        held_out: of the consortium's own records.
        patience: rounds without a better one after which the run stops; 0 never stops early.
    """

    held_out: HeldOut
    patience: int = 0
    scores: dict[int, float] = field(default_factory=dict)
    _best: Tensors | None = None
    _best_round: int = 0

    def look(self, number: int, released: Tensors) -> float:
        """Score the adapter that round `number` released, and keep it if it is the best."""
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in released.items()}
        figures = self.held_out.figures(tensors)
        score = float(figures[:, 1].mean())
        self.scores[number] = score
        if self._best is None or score > self.scores[self._best_round]:
            self._best_round = number
            self._best = {name: np.array(value) for name, value in released.items()}
        return score

    def stops(self, number: int) -> bool:
        """Whether nothing better came for `patience` rounds."""
        return 0 < self.patience <= number - self._best_round

    def reason(self) -> str:
        """Why the run stopped early, one line."""
        return f"no better round than {self._best_round} on the public records"

    def best(self) -> Tensors | None:
        """The adapter of the best round; None before the first look."""
        return self._best

    @property
    def best_round(self) -> int:
        """Round that is released; 0 before the first look."""
        return self._best_round

    def arrays(self) -> Tensors:
        """What a checkpoint keeps."""
        return dict(self._best or {})

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps besides."""
        return {"round": self._best_round, "scores": {str(k): v for k, v in self.scores.items()}}

    def restore(self, best: Tensors, facts: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if facts:
            self._best, self._best_round = dict(best) or None, int(facts["round"])
            self.scores = {int(k): float(v) for k, v in facts["scores"].items()}


def open_public(
    folder: Path,
    domain: str,
    plan: RecommenderPlan,
    *,
    backbone: Backbone,
    patience: int,
    catalogs: Mapping[str, str],
) -> PublicEvaluation:
    """Read public records in the layout of a data folder.

    Args:
        folder: of the records.
        domain: that they are of.
        plan: of the recommender.
        backbone: frozen.
        patience: as of PublicEvaluation.
        catalogs: digest of the sites' catalog by domain; checked before any site spends.

    Raises:
        ConfigError: folder, domain, catalog or patience is wrong.
        DataError: the records are, or nobody among them has an item to hold out.
    """
    if not folder.is_dir() or patience < 0:
        raise ConfigError(
            f"Expected a folder of public records and a patience of 0 or more, got {folder}, "
            f"{patience}."
        )
    if domain not in catalogs:
        raise ConfigError(
            f"Expected public-domain among {', '.join(sorted(catalogs))}, got {domain}."
        )
    catalog = read_catalog(folder, domain=domain)
    if catalog.digest != catalogs[domain]:
        raise ConfigError(f"Expected the sites' catalog of {domain} in {folder}, got another.")
    interactions, _ = read_interactions(folder, catalog)
    split = leave_one_out(interactions)
    held_out = HeldOut(catalog, split, plan, backbone=backbone, store=ActivationStore())
    if not len(held_out.subjects):
        raise DataError(f"Expected subjects with an item to hold out in {folder}, found none.")
    return PublicEvaluation(held_out=held_out, patience=patience)
