"""The text path's inputs: what the frozen part of the backbone says of many texts, computed once.

Activations of a subject's history are raw private data in another form: a deployed site keeps them
in memory, a simulation may keep them in a folder that its owner alone can read.
"""

import hashlib
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.backbone import Backbone
from common.catalog import Catalog
from common.errors import OrderError
from common.recommender import TextTop

BATCH = 128
"""Texts in one forward pass of the frozen backbone."""
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class TextActivations:
    """Activations of R texts; equal texts are held once, the empty text not at all.

    Attributes:
        row: int64 (R), where a text stands among the U distinct ones; -1 for an empty text.
        offsets: int64 (U+1), tokens of distinct text i stand at offsets[i]:offsets[i+1].
        hidden: (tokens, d) input of the first trainable layer, in the backbone's dtype; None when
            no layer is trainable.
        pooled: float32 (U, d), unit vectors of the frozen backbone.
    """

    row: Tensor
    offsets: Tensor
    hidden: Tensor | None
    pooled: Tensor


@dataclass(frozen=True, kw_only=True)
class ItemSpace:
    """Where a catalog's items stand.

    Attributes:
        vectors: float32 (n, d), e_i: text of the item, centred on the catalog mean, unit length.
        centre: float32 (d), the catalog mean; a text of this domain is centred on it too.
    """

    vectors: Tensor
    centre: Tensor


@dataclass(frozen=True, kw_only=True)
class ActivationStore:
    """Activations by content hash of backbone, settings and distinct texts.

    Attributes:
        folder: where they are kept between runs, mode 0700; None keeps nothing on disk.
    """

    folder: Path | None = None

    def texts(
        self,
        backbone: Backbone,
        texts: list[str],
        *,
        tokens: int,
        top_layers: int,
        progress: Progress | None = None,
    ) -> TextActivations:
        """Activations of `texts` (R), read from the folder when they are there.

        Args:
            backbone: the frozen model.
            texts: R texts; an empty one has no activation.
            tokens: longest text kept, tokens.
            top_layers: number of layers that will be trained.
            progress: told how many distinct texts were done.
        """
        distinct = _distinct(texts)
        place = {text: i for i, text in enumerate(distinct)}
        row = torch.tensor([place.get(text, -1) for text in texts], dtype=torch.long)
        key = _key(backbone, distinct, tokens, top_layers)
        found = self._read(key)
        if found is None:
            found = _compute(backbone, distinct, tokens, top_layers, progress)
            self._write(key, found)
        elif progress is not None:
            progress(len(distinct))
        return TextActivations(
            row=row, offsets=found["offsets"], hidden=found.get("hidden"), pooled=found["pooled"]
        )

    def keep(
        self,
        backbone: Backbone,
        texts: list[str],
        made: TextActivations,
        *,
        tokens: int,
        top_layers: int,
    ) -> None:
        """Put activations of `texts` that were made elsewhere into the folder."""
        distinct = _distinct(texts)
        first = {text: i for i, text in reversed(list(enumerate(texts)))}
        place = made.row[[first[text] for text in distinct]]
        counts = made.offsets[place + 1] - made.offsets[place]
        tensors = {
            "offsets": torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
            "pooled": made.pooled[place],
        }
        if made.hidden is not None:
            spans = [made.hidden[made.offsets[p] : made.offsets[p + 1]] for p in place.tolist()]
            tensors["hidden"] = torch.cat(spans) if spans else made.hidden[:0]
        self._write(_key(backbone, distinct, tokens, top_layers), tensors)

    def item_space(self, backbone: Backbone, catalog: Catalog, *, tokens: int) -> "ItemSpace":
        """Vectors of a catalog's texts, and their public mean."""
        found = self.texts(backbone, list(catalog.texts), tokens=tokens, top_layers=0)
        pooled = found.pooled[found.row.clamp(min=0)]
        centre = pooled.mean(0)
        vectors = torch.nn.functional.normalize(pooled - centre, dim=-1)
        return ItemSpace(vectors=vectors, centre=centre)

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.safetensors"

    def _read(self, key: str) -> dict[str, Tensor] | None:
        from safetensors import SafetensorError  # noqa: PLC0415
        from safetensors.torch import load_file  # noqa: PLC0415

        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            return dict(load_file(path))
        except SafetensorError:
            path.unlink()  # torn by a crash; it is only a cache
            return None

    def _write(self, key: str, tensors: dict[str, Tensor]) -> None:
        from safetensors.torch import save_file  # noqa: PLC0415

        path = self._path(key)
        if path is None:
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        torn = path.with_suffix(f".{secrets.token_hex(4)}.part")
        torn.touch(mode=0o600)
        save_file(tensors, torn)
        torn.chmod(0o600)
        torn.replace(path)


def _distinct(texts: list[str]) -> list[str]:
    """The distinct texts, the empty one left out, shortest first, so that batches pad little."""
    return sorted(set(texts) - {""}, key=lambda text: (len(text), text))


def default_cache() -> Path:
    """Folder of a simulation's activations: $CONFED_CACHE, else ~/.cache/confed."""
    given = os.environ.get("CONFED_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "confed"


def _key(backbone: Backbone, texts: list[str], tokens: int, top_layers: int) -> str:
    dtype = next(backbone.model.parameters()).dtype
    head = f"confed-activations-1|{backbone.digest}|{dtype}|{tokens}|{top_layers}|{len(texts)}"
    digest = hashlib.sha256(head.encode())
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _compute(
    backbone: Backbone,
    texts: list[str],
    tokens: int,
    top_layers: int,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """Texts come sorted by length, so a batch has little padding."""

    def encode(batch: list[str]) -> tuple[Tensor, Tensor, Tensor | None]:
        part = backbone.activations(batch, tokens=tokens, top_layers=top_layers)
        present = part.mask.bool()
        kept = part.hidden[present].cpu() if part.hidden is not None else None
        if progress is not None:
            progress(len(batch))
        return present.sum(1).cpu(), part.pooled.float().cpu(), kept

    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    workers = 1 if backbone.device.type == "cuda" else max(os.cpu_count() or 1, 1)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="encode") as pool:
        parts = list(pool.map(encode, batches))
    pooled = [p for _, p, _ in parts]
    hidden = [h for _, _, h in parts if h is not None]
    empty_counts = torch.zeros(0, dtype=torch.long)
    counts = torch.cat([n for n, _, _ in parts]) if parts else empty_counts
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    out = {
        "offsets": offsets,
        "pooled": torch.cat(pooled) if pooled else torch.zeros(0, backbone.width),
    }
    if top_layers:
        empty = torch.zeros(0, backbone.width, dtype=next(backbone.model.parameters()).dtype)
        out["hidden"] = torch.cat(hidden) if hidden else empty
    return out


class TextVectors:
    """Text vectors of a site's rows under the current LoRA, computed when first asked for.

    Args:
        activations: of every row.
        centre: float32 (d), public mean of the catalog, subtracted from every text vector: without
            it what all texts of a domain have in common hides what sets a subject apart.
    """

    def __init__(self, activations: TextActivations, centre: Tensor) -> None:
        self._centre = centre
        self._activations = activations
        # Several sites of a simulation may share one table; only the rows used here get a place.
        row = activations.row
        self._places, local = row[row >= 0].unique(return_inverse=True)
        self._local = torch.full_like(row, -1)
        self._local[row >= 0] = local
        self._frozen = activations.pooled[self._places]
        self._state = b""
        self._cached: Tensor | None = None
        self._done: Tensor | None = None

    def adapter_changed(self, top: TextTop | None) -> None:
        """Forget vectors that another LoRA made; B = 0 is the frozen backbone itself."""
        state = b"" if top is None else _lora_state(top)
        if state != self._state:
            self._state, self._cached, self._done = state, None, None

    @torch.no_grad()
    def frozen(self, rows: Tensor, top: TextTop | None) -> Tensor:
        """Vectors (len(rows), d) without gradient; zero for an empty text."""
        place = self._local[rows]
        table = self._frozen
        if self._state and top is not None:
            table = self._fill(place[place >= 0].unique(), top)
        if not len(table):
            return torch.zeros(len(rows), table.shape[1])
        found = self._centred(table[place.clamp(min=0)])
        return torch.where((place >= 0).unsqueeze(1), found, 0.0)

    def present(self, rows: Tensor) -> Tensor:
        """Positions in `rows` that have a text."""
        return torch.nonzero(self._activations.row[rows] >= 0).squeeze(1)

    def trained(self, rows: Tensor, present: Tensor, top: TextTop) -> Tensor:
        """Vectors (len(rows), d) with gradient; zero where a row is not `present`."""
        vectors = torch.zeros(len(rows), self._activations.pooled.shape[1])
        if not len(present):
            return vectors
        hidden, mask = self._padded(self._activations.row[rows[present]])
        return vectors.index_copy(0, present, self._centred(top(hidden, mask)))

    def _centred(self, vectors: Tensor) -> Tensor:
        return torch.nn.functional.normalize(vectors - self._centre, dim=-1)

    def _fill(self, wanted: Tensor, top: TextTop) -> Tensor:
        if self._cached is None or self._done is None:
            self._cached = torch.zeros_like(self._frozen)
            self._done = torch.zeros(len(self._cached), dtype=torch.bool)
        missing = wanted[~self._done[wanted]]
        for part in missing.split(BATCH) if len(missing) else ():
            hidden, mask = self._padded(self._places[part])
            self._cached[part] = top(hidden, mask)
        self._done[missing] = True
        return self._cached

    def _padded(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Cached hidden states (n, T, d) of distinct texts and their mask (n, T)."""
        hidden, offsets = self._activations.hidden, self._activations.offsets
        if hidden is None:
            raise OrderError("Expected activations made with top_layers >= 1.")
        lengths = offsets[place + 1] - offsets[place]
        steps = torch.arange(int(lengths.max()))
        mask = steps < lengths.unsqueeze(1)
        index = (offsets[place].unsqueeze(1) + steps).clamp(max=len(hidden) - 1)
        # Chosen, not multiplied: 0 times another text's NaN would be NaN.
        return torch.where(mask.unsqueeze(-1), hidden[index], 0.0), mask.long()


def _lora_state(top: TextTop) -> bytes:
    """Digest of LoRA's B, empty when B is zero."""
    parts = [p.detach() for name, p in sorted(top.named_parameters()) if "lora_" in name]
    outer = [p.detach() for name, p in sorted(top.named_parameters()) if "lora_B" in name]
    if not any(bool(p.any()) for p in outer):
        return b""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.float().cpu().numpy().tobytes())
    return digest.digest()
