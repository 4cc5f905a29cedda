"""Random numbers that privacy rests on: noise and Poisson samples from a cryptographic stream.

Sensitive: the key and every number drawn. Public: the distribution. A stream is the ChaCha20
keystream (RFC 8439) under a 256-bit key; a uniform is 52 of its bits, a normal is the inverse
normal distribution function of that uniform, in float64, so nothing is truncated below 8.1
standard deviations and no two draws share bits.
"""

import os
import struct
import threading
from typing import Final, NoReturn, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from scipy.special import ndtri

from common.errors import ConfigError, OrderError

KEY_BYTES: Final = 32
BLOCK: Final = 1 << 14
"""Numbers made at a time: their 128 KiB stay in cache."""
SEGMENT_BYTES: Final = 1 << 36
"""Keystream bytes under one nonce, below the 2**38 that the 32-bit block counter allows."""

_ZEROS: Final = bytes(8 * BLOCK)
_ONE_BITS: Final = np.uint64(0x3FF0_0000_0000_0000)
_ONE_LESS_HALF_STEP: Final = 1.0 - 2.0**-53


class Randomness(Protocol):
    """What training draws from: secure at a site, seeded in a simulation."""

    def normal(self, n: int) -> NDArray[np.float64]:
        """Draw `n` independent standard normals, shape (n,)."""

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        """Draw the indices below `population` kept independently with probability `rate`."""


class Keystream:
    """ChaCha20 output under one key as 64-bit words; the nonce counts segments of 64 GiB."""

    def __init__(self, key: bytes, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigError(f"Expected a key of {KEY_BYTES} bytes, got {len(key)}.")
        self._key = key
        self._segment_bytes = segment_bytes
        self._segment = -1
        self._open_segment()

    def _open_segment(self) -> None:
        self._segment += 1
        nonce = bytes(4) + struct.pack("<Q", self._segment) + bytes(4)
        self._encryptor = Cipher(algorithms.ChaCha20(self._key, nonce), mode=None).encryptor()
        self._left = self._segment_bytes

    def fill(self, words: NDArray[np.uint64]) -> None:
        """Overwrite at most BLOCK words with the next keystream words."""
        if words.nbytes > self._left:
            self._open_segment()
        self._left -= words.nbytes
        zeros = memoryview(_ZEROS)[: words.nbytes]
        if self._encryptor.update_into(zeros, words.view(np.uint8).data) != words.nbytes:
            raise OrderError(f"Expected at most {BLOCK} words at a time, got {words.size}.")


def normals(stream: Keystream, n: int) -> NDArray[np.float64]:
    """Draw `n` standard normals from a keystream, shape (n,).

    A word's upper 52 bits j give the uniform (2j + 1) / 2**53: exact, symmetric about one half,
    never 0 or 1. The bits are written into the fraction of a float in [1, 2), which is the same
    as a conversion and faster.
    """
    _check_count("n", n)
    out = np.empty(n, np.float64)
    for start in range(0, n, BLOCK):
        block = out[start : start + BLOCK]
        words = block.view(np.uint64)
        stream.fill(words)
        np.right_shift(words, 12, out=words)
        np.bitwise_or(words, _ONE_BITS, out=words)
        np.subtract(block, _ONE_LESS_HALF_STEP, out=block)
        ndtri(block, out=block)
    return out


def poisson_sample(stream: Keystream, population: int, rate: float) -> NDArray[np.int64]:
    """Draw the indices below `population` kept independently with probability `rate`, sorted.

    53 bits of an index's word are compared with floor(rate * 2**53), so that the true rate is
    never above the one accounted.
    """
    _check_count("population", population)
    if not 0.0 < rate <= 1.0:
        raise ConfigError(f"Expected a sample rate in (0, 1], got {rate}.")
    threshold = np.uint64(int(rate * 2.0**53))
    words = np.empty(min(population, BLOCK), np.uint64)
    kept = [np.empty(0, np.int64)]
    for start in range(0, population, BLOCK):
        block = words[: min(BLOCK, population - start)]
        stream.fill(block)
        np.right_shift(block, 11, out=block)
        kept.append(np.flatnonzero(block < threshold) + start)
    return np.concatenate(kept)


class SecureRandomness:
    """Randomness under a fresh operating-system key, for real records.

    One key an instance and a process: a forked child takes a new key before it draws, so it
    never repeats its parent's stream. Threads may share an instance. It can be neither pickled
    nor copied, because a copy would repeat the noise.
    """

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._stream = Keystream(os.urandom(KEY_BYTES))
        self._pid = os.getpid()

    def _own(self) -> threading.Lock:
        if self._pid != os.getpid():
            # The parent's lock may have been held at the fork, so the child takes a new one too.
            self._renew()
        return self._lock

    def normal(self, n: int) -> NDArray[np.float64]:
        """Draw `n` independent standard normals, shape (n,)."""
        with self._own():
            return normals(self._stream, n)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        """Draw the indices below `population` kept independently with probability `rate`."""
        with self._own():
            return poisson_sample(self._stream, population, rate)

    def __reduce__(self) -> NoReturn:
        raise TypeError("Secure randomness is never copied: a copy would repeat its noise.")


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or value < 0:
        raise ConfigError(f"Expected {name} to be a count of 0 or more, got {value}.")
