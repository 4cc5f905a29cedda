"""Grants without a ledger, for what never leaves the researcher's machine.

Baselines without privacy, benchmarks and mechanism tests train with these. They live here so that
no deployed site has them.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.grant import Grant
from common.ledger import PlanRequest
from common.plan import RunPlan
from common.randomness import Randomness


class FreeGrant(Grant):
    """Draws without a reservation.

    Args:
        randomness: of samples and noise.
        noise_multiplier: 0 for none.
        sample_rate: 1 takes everybody.
        steps: of one call of the trainer.
    """

    def __init__(
        self,
        randomness: Randomness,
        *,
        noise_multiplier: float = 0.0,
        sample_rate: float = 1.0,
        steps: int = 1,
    ) -> None:
        self._claimed = (noise_multiplier, sample_rate, steps)
        self._randomness = randomness

    @property
    def noise_multiplier(self) -> float:
        """As Grant."""
        return self._claimed[0]

    @property
    def sample_rate(self) -> float:
        """As Grant."""
        return self._claimed[1]

    @property
    def steps(self) -> int:
        """As Grant."""
        return self._claimed[2]

    def sample(self, population: int) -> NDArray[np.int64]:
        """As Grant."""
        return self._randomness.poisson_sample(population, self.sample_rate)

    def noise(self, n: int) -> NDArray[np.float64]:
        """As Grant."""
        return self._randomness.normal(n)


class NoLedger:
    """Permits of a run that claims no privacy.

    Args:
        plan: of the run; its noise is 0.
    """

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan

    def plan(self, _request: PlanRequest) -> None:
        """Nothing is declared."""

    def reserve(
        self,
        *,
        run: str,
        number: int,
        model_sha256: str,
        randomness: Randomness,
        purpose: str = "train",
        receipt: Mapping[str, Any] | None = None,
    ) -> Grant:
        """A round without noise."""
        return FreeGrant(
            randomness,
            sample_rate=self._plan.privacy.sample_rate,
            steps=self._plan.federation.local_steps,
        )

    def release(self, _grant: Grant, payload: bytes) -> str:
        """Only the hash."""
        return hashlib.sha256(payload).hexdigest()

    def stored(
        self, *, run: str, number: int, model_sha256: str, purpose: str = "train"
    ) -> bytes | None:
        """Nothing is kept."""
        return None

    def opt_out(self, _commitment: str) -> None:
        """Nothing is recorded."""

    def knows(self, _seq: int, _head: str) -> bool:
        """There is no line."""
        return False

    def lines_after(self, _seq: int) -> bytes:
        """There is no line."""
        return b""
