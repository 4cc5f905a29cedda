"""Permissions to draw, for an audit: real reservations, in ledgers that live in memory.

Every noisy update is paid for in a ledger of its own, by the product's own code; nobody's budget
is touched, since nobody is in the records. `Quiet` releases the sum itself, for a comparison.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.caps import SiteCaps
from common.entries import NO_HASH
from common.errors import OrderError
from common.grant import Grant
from common.ledger import Ledger, PlanRequest, create_ledger
from common.mechanism import Gaussian, PoissonSampled, Repeated
from common.randomness import Randomness
from common.signing import SigningKey

CAPS: Final = SiteCaps(epsilon=50.0, delta=1e-5, noise_multiplier=0.01, max_grad_norm=1e3)
_RUN: Final = "audit"


def reserved(
    *, noise_multiplier: float, sample_rate: float, steps: int, clip: float, randomness: Randomness
) -> Grant:
    """Reserve so many Poisson-sampled Gaussian steps and return what draws them."""
    ledger = _empty_ledger()
    step = PoissonSampled(
        sample_rate=sample_rate, event=Gaussian(noise_multiplier=noise_multiplier)
    )
    event = Repeated(count=steps, event=step)
    ledger.plan(
        PlanRequest(run=_RUN, events={"train": (event, 1)}, max_grad_norm=clip, plan_sha256=NO_HASH)
    )
    return ledger.reserve(run=_RUN, number=1, model_sha256=NO_HASH, randomness=randomness)


class Quiet(Grant):
    """No noise; real samples. It makes no privacy claim and never meets a private record.

    Args:
        sample_rate: Poisson rate.
        steps: steps in the update.
        randomness: draws the samples.
    """

    def __init__(self, *, sample_rate: float, steps: int, randomness: Randomness) -> None:
        self.noise_multiplier, self.sample_rate, self.steps = 0.0, sample_rate, steps
        self._randomness = randomness

    def sample(self, population: int) -> NDArray[np.int64]:
        """As Grant."""
        return self._randomness.poisson_sample(population, self.sample_rate)

    def noise(self, n: int) -> NDArray[np.float64]:
        """None is ever asked for.

        Raises:
            OrderError: always.
        """
        raise OrderError("Expected no noise to be drawn at noise_multiplier 0, got a draw.")


def _empty_ledger() -> Ledger:
    return create_ledger(_MemoryStore(), site=_RUN, caps=CAPS, key=_key())


@cache
def _key() -> SigningKey:
    """One key an audit: making it is the slow part of a ledger."""
    return SigningKey.generate()


class _MemoryStore:
    """A ledger's storage without a disk."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._kept: dict[str, bytes] = {}

    def locked(self) -> AbstractContextManager[None]:
        return nullcontext()

    def read(self, offset: int) -> bytes:
        return bytes(self._data[offset:])

    def append(self, data: bytes) -> None:
        self._data += data

    def set_aside(self, offset: int) -> None:
        del self._data[offset:]

    def keep(self, name: str, payload: bytes) -> None:
        self._kept[name] = payload

    def kept(self, name: str) -> bytes | None:
        return self._kept.get(name)

    def drop(self, name: str) -> None:
        self._kept.pop(name, None)
