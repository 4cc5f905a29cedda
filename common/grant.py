"""Permission to draw the noise and the samples of one reserved event.

Training takes a `Grant` and no other source of random numbers, and a site's one kind of grant is
made by its ledger, after the reservation is on disk. So noise without a reservation is a type
error, and more steps than were reserved an OrderError. Sensitive: the samples and the noise.
"""

from abc import ABC, abstractmethod
from typing import Final, NoReturn, final

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, OrderError
from common.mechanism import Event, Gaussian, Leaf, PoissonSampled, leaves
from common.randomness import Randomness

LEDGER: Final = object()
"""Held by the ledger alone; a `ReservedGrant` asks for it."""


class Grant(ABC):
    """What training draws from.

    Attributes:
        noise_multiplier: standard deviation over sensitivity that the event claims.
        sample_rate: Poisson rate that the event claims; 1 takes everybody.
        steps: draws that the event pays for.
    """

    @property
    @abstractmethod
    def noise_multiplier(self) -> float:
        """Standard deviation over sensitivity."""

    @property
    @abstractmethod
    def sample_rate(self) -> float:
        """Poisson rate."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Draws paid for."""

    @abstractmethod
    def sample(self, population: int) -> NDArray[np.int64]:
        """Begin a step: indices below `population`, each kept with probability `sample_rate`."""

    @abstractmethod
    def noise(self, n: int) -> NDArray[np.float64]:
        """Independent standard normals of the step begun, shape (n,)."""


def steps_of(event: Event) -> tuple[Leaf, int]:
    """The one kind of release in an event, and how often it happens.

    Raises:
        ConfigError: an event of several kinds, which no training loop runs.
    """
    counted = leaves(event)
    if len(counted) != 1:
        raise ConfigError(f"Expected an event of one kind of step, got {len(counted)} kinds.")
    return next(iter(counted.items()))


@final
class ReservedGrant(Grant):
    """The grant of one reservation; its steps can be drawn once.

    Args:
        key: LEDGER.
        seq: of the reservation's entry.
        head: hash of that entry, so that no other ledger takes the grant for its own.
        event: that was reserved.
        randomness: secure, but in a simulation.
    """

    def __init__(
        self, key: object, *, seq: int, head: str, event: Event, randomness: Randomness
    ) -> None:
        if key is not LEDGER:
            raise OrderError("Expected a grant to be made by a ledger; reserve first.")
        leaf, steps = steps_of(event)
        gaussian = leaf.event if isinstance(leaf, PoissonSampled) else leaf
        if not isinstance(gaussian, Gaussian):
            raise ConfigError("Expected Gaussian steps to train with, got another event.")
        self.seq, self.head = seq, head
        rate = leaf.sample_rate if isinstance(leaf, PoissonSampled) else 1.0
        self._paid = (gaussian.noise_multiplier, rate, steps)
        self._randomness = randomness
        self._begun = 0

    # Read-only: what was paid for cannot be changed afterwards.

    @property
    def noise_multiplier(self) -> float:
        """As Grant."""
        return self._paid[0]

    @property
    def sample_rate(self) -> float:
        """As Grant."""
        return self._paid[1]

    @property
    def steps(self) -> int:
        """As Grant."""
        return self._paid[2]

    def sample(self, population: int) -> NDArray[np.int64]:
        """As Grant.

        Raises:
            OrderError: every step that was paid for is drawn.
        """
        if self._begun >= self.steps:
            raise OrderError(f"Expected at most {self.steps} steps of this reservation, got more.")
        self._begun += 1
        return self._randomness.poisson_sample(population, self.sample_rate)

    def noise(self, n: int) -> NDArray[np.float64]:
        """As Grant.

        Raises:
            OrderError: no step is begun.
        """
        if not self._begun:
            raise OrderError("Expected a step to be begun before its noise is drawn.")
        return self._randomness.normal(n)

    def __reduce__(self) -> NoReturn:
        raise TypeError("A grant is never copied: its noise would be drawn twice.")
