"""SASRec on item ids, central and not private: the strong baseline that a run stands beside.

Sensitive: the model; it is trained without privacy on everybody's records and never leaves a
simulation. RecBole cannot be installed beside Flower (it pins ray<=2.6.3 and colorama==0.4.4), so
the network is Cornac's (Kang and McAuley 2018), its random numbers those of `own_randomness`.
Cornac's own loop trains one position of one sequence at a time against samples; here all
positions are trained at once with a softmax over the whole catalog, which is what SASRec needs to
be strong (Klenitskiy and Vasilev 2023, "Turning Dross Into Gold Loss"; Petrov and Macdonald 2023,
gSASRec). Sequences are padded at the end and batched by length, so that little padding is computed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from cornac.models.sasrec.sasrec import SASRecModel
from numpy.typing import NDArray
from torch.nn import functional

from common.errors import DataError
from simulations.own_randomness import own_randomness

MAX_LENGTH: Final = 50
WIDTH: Final = 64
BLOCKS: Final = 2
HEADS: Final = 1
DROPOUT: Final = 0.2
BATCH: Final = 64
"""Sequences a step."""
LEARNING_RATE: Final = 1e-3
WHOLE_CATALOG: Final = 3_000
"""Largest catalog whose softmax is whole; above it, NEGATIVES items stand for the rest."""
NEGATIVES: Final = 2_048
PATIENCE: Final = 6
VALIDATED: Final = 6_000
"""Most subjects that an epoch is judged on."""
SCORED: Final = 512
"""Sequences scored at a time."""


class Histories(Protocol):
    """Item positions of subjects, oldest first: subject i has items[offsets[i]:offsets[i + 1]]."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Starts and the end, shape (n + 1,)."""

    @property
    def items(self) -> NDArray[np.int32]:
        """Catalog positions, shape (interactions,)."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of training: its number from 1, mean loss and validation NDCG@10 (or None)."""

    number: int
    loss: float
    ndcg: float | None


@dataclass(frozen=True, kw_only=True)
class SasRec:
    """A trained network; `epochs` is its history and `best` the number of the epoch kept."""

    network: Any
    n_items: int
    epochs: tuple[Epoch, ...]
    best: int

    def scores(self, offsets: NDArray[np.int64], items: NDArray[np.int32]) -> torch.Tensor:
        """Score the whole catalog for each history, float32, shape (n, n_items)."""
        rows = np.arange(len(offsets) - 1)
        parts = [
            self._score(offsets, items, rows[start : start + SCORED])
            for start in range(0, len(rows), SCORED)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.n_items)

    def top(
        self, offsets: NDArray[np.int64], items: NDArray[np.int32], *, depth: int = 20
    ) -> NDArray[np.int32]:
        """Rank the catalog without each history's own items, best first, shape (n, depth).

        Where a history leaves fewer than `depth` items, the rest is -1.
        """
        out = np.full((len(offsets) - 1, depth), -1, np.int32)
        for start in range(0, len(out), SCORED):
            rows = np.arange(start, min(start + SCORED, len(out)))
            scores = self._score(offsets, items, rows)
            _exclude(scores, offsets, items, rows)
            best, found = scores.topk(min(depth, self.n_items))
            ranked = torch.where(best > -torch.inf, found, -1).numpy()
            out[rows, : ranked.shape[1]] = ranked
        return out

    @torch.no_grad()
    def _score(
        self, offsets: NDArray[np.int64], items: NDArray[np.int32], rows: NDArray[np.int64]
    ) -> torch.Tensor:
        self.network.eval()
        histories, lengths = _padded(offsets, items, rows, pad=self.n_items, most=MAX_LENGTH)
        hidden = _hidden(self.network, histories)
        last = hidden[torch.arange(len(rows)), (lengths - 1).clamp(min=0)]
        return _logits(self.network, last, torch.arange(self.n_items))


def train_sasrec(
    train: Histories,
    n_items: int,
    *,
    validation: NDArray[np.int32] | None = None,
    epochs: int = 25,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[Epoch], None] | None = None,
) -> SasRec:
    """Train on every subject's sequence; the same input, seed and threads give the same network.

    Args:
        train: Training part of each subject.
        n_items: Items in the catalog.
        validation: The item after each training part, -1 for none, shape (n,). With it, training
            ends PATIENCE epochs after the best NDCG@10, and the best epoch is kept.
        epochs: Most passes over the subjects.
        seed: Initial weights, order of batches, dropout and sampled negatives.
        threads: Threads of torch while training; set back afterwards.
        progress: Called after each epoch.

    Raises:
        DataError: No subject with two interactions, or items outside of the catalog.
    """
    rows = np.flatnonzero(np.diff(train.offsets) >= 2)
    if not rows.size or train.items.max() >= n_items or train.items.min() < 0:
        raise DataError("Expected sequences of two or more items of the catalog, got none.")
    with _own_torch(threads):
        network = SASRecModel(
            n_items,
            embedding_dim=WIDTH,
            maxlen=MAX_LENGTH,
            n_layers=BLOCKS,
            n_heads=HEADS,
            dropout=DROPOUT,
        )
        own_randomness(network, seed)
        return _fit(_Run(network, train, n_items, validation, rows, seed), epochs, progress)


class _Run:
    """State of one training: network, optimiser, and the data it passes over."""

    def __init__(
        self,
        network: Any,
        train: Histories,
        n_items: int,
        validation: NDArray[np.int32] | None,
        rows: NDArray[np.int64],
        seed: int,
    ) -> None:
        self.network, self.train, self.n_items = network, train, n_items
        self.rows, self.validation = rows, validation
        self.rng = np.random.default_rng(seed)
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True
        )
        judged = np.flatnonzero(validation >= 0) if validation is not None else rows[:0]
        if judged.size > VALIDATED:
            judged = np.sort(self.rng.choice(judged, VALIDATED, replace=False))
        self.judged = judged

    def epoch(self) -> float:
        """Pass once over all sequences; return the mean loss a position."""
        self.network.train()
        total, positions = 0.0, 0
        for rows in self._batches():
            sequences, lengths = _padded(
                self.train.offsets, self.train.items, rows, pad=self.n_items, most=MAX_LENGTH + 1
            )
            known = torch.arange(sequences.shape[1] - 1) < (lengths - 1)[:, None]
            hidden = _hidden(self.network, sequences[:, :-1])[known]
            loss = self._loss(hidden, sequences[:, 1:][known])
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            total += float(loss.detach()) * len(hidden)
            positions += len(hidden)
        return total / positions

    def _batches(self) -> list[NDArray[np.int64]]:
        """Sequences of like length together, batches in random order."""
        mixed = self.rng.permutation(self.rows)
        lengths = np.minimum(np.diff(self.train.offsets)[mixed], MAX_LENGTH + 1)
        ordered = mixed[np.argsort(lengths, kind="stable")]
        batches = [ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH)]
        return [batches[i] for i in self.rng.permutation(len(batches))]

    def _loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.n_items <= WHOLE_CATALOG:
            logits = _logits(self.network, hidden, torch.arange(self.n_items))
            return functional.cross_entropy(logits, targets)
        # Uniform negatives shared by the batch; the target itself is taken out of its own.
        others = torch.from_numpy(self.rng.choice(self.n_items, NEGATIVES, replace=False))
        logits = _logits(self.network, hidden, others)
        logits = logits.masked_fill(others[None, :] == targets[:, None], -torch.inf)
        own = _own_logit(self.network, hidden, targets)
        zero = torch.zeros(len(targets), dtype=torch.long)
        return functional.cross_entropy(torch.cat([own[:, None], logits], dim=1), zero)

    def ndcg(self) -> float | None:
        """Validation NDCG@10 over the whole catalog, history excluded."""
        if self.validation is None or not self.judged.size:
            return None
        model = SasRec(network=self.network, n_items=self.n_items, epochs=(), best=0)
        gains = []
        for start in range(0, len(self.judged), SCORED):
            rows = self.judged[start : start + SCORED]
            scores = model._score(self.train.offsets, self.train.items, rows)
            _exclude(scores, self.train.offsets, self.train.items, rows)
            targets = torch.from_numpy(self.validation[rows].astype(np.int64))
            # Not "above": a score that is not a number then counts against the network.
            place = (~(scores <= scores.gather(1, targets[:, None]))).sum(dim=1)
            gains.append(torch.where(place < 10, 1 / torch.log2(place + 2.0), 0.0))
        return float(torch.cat(gains).mean())


def _fit(run: _Run, epochs: int, progress: Callable[[Epoch], None] | None) -> SasRec:
    history: list[Epoch] = []
    best, kept = Epoch(number=0, loss=float("inf"), ndcg=-1.0), run.network.state_dict()
    for number in range(1, epochs + 1):
        epoch = Epoch(number=number, loss=run.epoch(), ndcg=run.ndcg())
        history.append(epoch)
        if progress is not None:
            progress(epoch)
        if epoch.ndcg is None or best.ndcg is None or epoch.ndcg > best.ndcg:
            best = epoch
            kept = {name: value.clone() for name, value in run.network.state_dict().items()}
        elif number - best.number >= PATIENCE:
            break
    run.network.load_state_dict(kept)
    return SasRec(network=run.network, n_items=run.n_items, epochs=tuple(history), best=best.number)


def _padded(
    offsets: NDArray[np.int64],
    items: NDArray[np.int32],
    rows: NDArray[np.int64],
    *,
    pad: int,
    most: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay the `most` latest items of some histories in a matrix (n, longest), pads at the end."""
    ends = offsets[rows + 1]
    lengths = np.minimum(ends - offsets[rows], most)
    places = np.arange(max(1, int(lengths.max(initial=0))))
    known = places < lengths[:, None]
    index = np.where(known, (ends - lengths)[:, None] + places, 0)
    matrix = np.where(known, items[index] if items.size else 0, pad).astype(np.int64)
    return torch.from_numpy(matrix), torch.from_numpy(lengths)


def _hidden(network: Any, histories: torch.Tensor) -> torch.Tensor:
    """Run the network and return the hidden state of every position, (n, length, WIDTH).

    Cornac's forward returns the last position; the rest is taken from its last layer norm.
    """
    seen: list[torch.Tensor] = []
    hook = network.last_layernorm.register_forward_hook(lambda *call: seen.append(call[2]))
    try:
        network(None, histories, histories[:0, 0], return_hidden=True)
    finally:
        hook.remove()
    return seen[0]


def _logits(network: Any, hidden: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    biases: torch.Tensor = network.item_biases(items)
    vectors: torch.Tensor = network.item_emb(items)
    return hidden @ vectors.T + biases.T


def _own_logit(network: Any, hidden: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    biases: torch.Tensor = network.item_biases(items)
    vectors: torch.Tensor = network.item_emb(items)
    return (hidden * vectors).sum(dim=1) + biases[:, 0]


def _exclude(
    scores: torch.Tensor,
    offsets: NDArray[np.int64],
    items: NDArray[np.int32],
    rows: NDArray[np.int64],
) -> None:
    """Set each history's own items to minus infinity, in place."""
    lengths = offsets[rows + 1] - offsets[rows]
    places = np.repeat(np.arange(len(rows)), lengths)
    # Position in `items`: the history's start, then one more for each of its items.
    skipped = np.repeat(offsets[rows] - np.cumsum(lengths) + lengths, lengths)
    own = items[skipped + np.arange(len(places))].astype(np.int64)
    scores[torch.from_numpy(places), torch.from_numpy(own)] = -torch.inf


@contextmanager
def _own_torch(threads: int) -> Iterator[None]:
    """Set torch's threads inside the block alone, and leave the caller's random numbers be."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
