"""Deliberately broken mechanisms: the product with one part swapped for a wrong one.

They are the audit's own test cases. Each swaps a single step of the product's training, so that
everything around it stays the product's own; nothing outside `simulations` can reach them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.optimizer import SubjectDPOptimizer
from client.per_subject import Grouping
from client.training import SiteTrainer
from common import randomness
from common.errors import ConfigError
from common.grant import Grant
from common.randomness import SecureRandomness
from simulations.empirical.findings import TierName
from simulations.empirical.product import Product


@dataclass(frozen=True, kw_only=True)
class Broken:
    """One broken mechanism.

    Attributes:
        product: makes the product with the fault, anew for every audit.
        fault: what is wrong, a few words.
        caught_by: the tiers that must not pass.
    """

    product: Callable[[], Product]
    fault: str
    caught_by: tuple[TierName, ...]


class _NoNoise(SubjectDPOptimizer):
    noise_multiplier: float
    share = 0.0

    def add_noise(self) -> None:
        claimed = self.noise_multiplier
        self.noise_multiplier = claimed * self.share
        super().add_noise()
        self.noise_multiplier = claimed


class _LessNoise(_NoNoise):
    share = 0.7


class _OneTensorSilent(SubjectDPOptimizer):
    def add_noise(self) -> None:
        silent = self.params[-1]
        total = silent.summed_grad.clone()
        super().add_noise()
        silent.grad = total.to(silent.dtype)


class _NoClip(SubjectDPOptimizer):
    def clip_and_accumulate(self) -> None:
        for p, sample in zip(self.params, self.subject_samples(), strict=True):
            p.summed_grad += sample.weighted_sum(torch.ones(len(sample.squared_norms())).double())


class _RowAsUnit(SiteTrainer):
    def _backward(
        self, rows: Tensor, grouping: Grouping, negatives: Tensor | None, *, train_text: bool
    ) -> None:
        alone = Grouping(owner=torch.arange(len(rows)), subjects=len(rows))
        super()._backward(rows, alone, negatives, train_text=train_text)


class _FixedBatches:
    """As many subjects in every batch as are expected in a Poisson one."""

    def __init__(self) -> None:
        self._inner = SecureRandomness()

    def normal(self, n: int) -> NDArray[np.float64]:
        return self._inner.normal(n)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        order = np.argsort(self._inner.normal(population))
        return np.sort(order[: round(rate * population)])


class _ShuffledBatches(_FixedBatches):
    """Every subject once an epoch, as an ordinary data loader deals them."""

    def __init__(self) -> None:
        super().__init__()
        self._queue = np.empty(0, np.int64)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        size = round(rate * population)
        if len(self._queue) < size:
            self._queue = np.argsort(self._inner.normal(population))
        batch, self._queue = self._queue[:size], self._queue[size:]
        return np.sort(batch)


class _SameSeed:
    """The same stream after every start."""

    def __init__(self) -> None:
        self._stream = randomness.Keystream(bytes(randomness.KEY_BYTES))

    def normal(self, n: int) -> NDArray[np.float64]:
        return randomness.normals(self._stream, n)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        return randomness.poisson_sample(self._stream, population, rate)


def _with_optimizer(kind: type[SubjectDPOptimizer]) -> Callable[[], Product]:
    class Trainer(SiteTrainer):
        def _optimizer(self, chosen: list[torch.nn.Parameter], grant: Grant) -> SubjectDPOptimizer:
            made = super()._optimizer(chosen, grant)
            made.__class__ = kind
            return made

    return lambda: Product(trainer=Trainer)


def _with_sampler(kind: type[_FixedBatches]) -> Callable[[], Product]:
    def product() -> Product:
        sampler = kind()  # goes on from batch to batch, as a data loader does
        return Product(randomness=lambda: sampler)

    return product


BROKEN: Final[Mapping[str, Broken]] = {
    "no-noise": Broken(
        product=_with_optimizer(_NoNoise), fault="no noise at all", caught_by=("a", "b", "c")
    ),
    "less-noise": Broken(
        product=_with_optimizer(_LessNoise), fault="noise x 0.7", caught_by=("a", "b")
    ),
    "one-tensor": Broken(
        product=_with_optimizer(_OneTensorSilent),
        fault="one tensor without noise",
        caught_by=("a", "b"),
    ),
    "no-clip": Broken(product=_with_optimizer(_NoClip), fault="no clip", caught_by=("a", "b")),
    "row-unit": Broken(
        product=lambda: Product(trainer=_RowAsUnit),
        fault="a clip a row, not a subject",
        caught_by=("a",),
    ),
    "fixed-batches": Broken(
        product=_with_sampler(_FixedBatches), fault="batches of one size", caught_by=("a",)
    ),
    "shuffled-batches": Broken(
        product=_with_sampler(_ShuffledBatches), fault="shuffled batches", caught_by=("a",)
    ),
    "same-seed": Broken(
        product=lambda: Product(randomness=_SameSeed),
        fault="the seed repeats after a restart",
        caught_by=("a",),
    ),
}


def broken(name: str) -> Broken:
    """The broken mechanism of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in BROKEN:
        raise ConfigError(f"Expected one of {', '.join(BROKEN)} at --broken, got {name[:40]!r}.")
    return BROKEN[name]
