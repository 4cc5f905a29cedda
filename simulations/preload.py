"""One table of activations for all sites of a simulation, so that no text is encoded twice."""

from collections.abc import Sequence
from pathlib import Path

import torch

from common.backbone import Backbone
from common.textpath import ActivationStore, Progress, TextActivations


class PreloadedStore(ActivationStore):
    """Answers from tables made beforehand; what they lack is computed as usual.

    Args:
        folder: as ActivationStore.
    """

    def __init__(self, folder: Path | None) -> None:
        super().__init__(folder=folder)
        object.__setattr__(self, "_tables", {})

    def __reduce__(self) -> tuple[type[ActivationStore], tuple[()], dict[str, Path | None]]:
        # Another process reads from the folder; the tables would be copied into every message.
        return (ActivationStore, (), {"folder": self.folder})

    def preload(
        self,
        backbone: Backbone,
        texts: Sequence[str],
        *,
        tokens: int,
        top_layers: int,
        progress: Progress | None = None,
    ) -> None:
        """Make a table of `texts`."""
        distinct = sorted(set(texts) - {""})
        made = super().texts(
            backbone, distinct, tokens=tokens, top_layers=top_layers, progress=progress
        )
        place = dict(zip(distinct, made.row.tolist(), strict=True))
        tables: dict[tuple[str, int, int], list[tuple[dict[str, int], TextActivations]]]
        tables = self.__dict__["_tables"]
        tables.setdefault((backbone.digest, tokens, top_layers), []).append((place, made))

    def texts(
        self,
        backbone: Backbone,
        texts: list[str],
        *,
        tokens: int,
        top_layers: int,
        progress: Progress | None = None,
    ) -> TextActivations:
        """As ActivationStore."""
        wanted = set(texts) - {""}
        tables = self.__dict__["_tables"]
        for place, made in tables.get((backbone.digest, tokens, top_layers), []):
            if wanted <= place.keys():
                row = torch.tensor([place.get(text, -1) for text in texts], dtype=torch.long)
                return TextActivations(
                    row=row, offsets=made.offsets, hidden=made.hidden, pooled=made.pooled
                )
        return super().texts(
            backbone, texts, tokens=tokens, top_layers=top_layers, progress=progress
        )
