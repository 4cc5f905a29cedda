"""Repeatable randomness for simulations; it lives here so that no deployed site has the switch."""

import hashlib
import json
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import randomness

CLAIM: Final = "seeded noise: no privacy claim"
"""What every result that was made with seeded noise has to say."""

_DOMAIN: Final = "confed/seeded-randomness/v1"


class SeededRandomness:
    """The same stream as a site's, under a key that anybody can compute from the seed.

    A key is SHA-256 of the canonical JSON of (domain, seed, site, round, purpose): two sites,
    rounds or purposes never share a stream, and no order of calls between them matters.
    """

    def __init__(self, *, seed: int, site: str, round_number: int, purpose: str) -> None:
        self._stream = randomness.Keystream(_key(seed, site, round_number, purpose))

    def normal(self, n: int) -> NDArray[np.float64]:
        """Draw `n` independent standard normals, shape (n,)."""
        return randomness.normals(self._stream, n)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        """Draw the indices below `population` kept independently with probability `rate`."""
        return randomness.poisson_sample(self._stream, population, rate)


def _key(seed: int, site: str, round_number: int, purpose: str) -> bytes:
    text = json.dumps([_DOMAIN, seed, site, round_number, purpose], separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()
