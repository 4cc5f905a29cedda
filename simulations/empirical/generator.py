"""Tier A's tests of the generator alone: is it normal to its tails, and never the same twice?

Source of the traps: Mironov 2012 (floating-point noise); a float32 normal of the usual kind is cut
off at 5.77 standard deviations.
"""

import os
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr

from common import randomness
from common.errors import OrderError
from common.randomness import Randomness
from simulations.empirical.findings import Check

NUMBERS: Final = 1_000_000
"""Normals drawn for the tests of their distribution."""
LEAST_P: Final = 1e-6
"""p-value below which a distribution is refused."""
CUT: Final = 5.77
"""Standard deviations at which a float32 normal ends."""
_FIRST: Final = 4096


def generator_checks(start: Callable[[], Randomness]) -> tuple[Check, ...]:
    """Distribution, tails, resolution, restarts and forks of what a site draws from.

    Args:
        start: makes the generator as a restarted site does.
    """
    numbers = start().normal(NUMBERS)
    return (
        _distribution(numbers),
        _resolution(numbers),
        _tail(),
        _restarts(start),
    )


def _distribution(numbers: NDArray[np.float64]) -> Check:
    """Kolmogorov-Smirnov, chi-squared over 1,000 equal cells, and a count beyond 4 sd."""
    cells = np.bincount((ndtr(numbers) * 1000).astype(int).clip(0, 999), minlength=1000)
    beyond = int((np.abs(numbers) > 4).sum())
    share = 2 * stats.norm.sf(4)
    tails = stats.binomtest(beyond, len(numbers), share).pvalue
    p = {
        "KS": float(stats.kstest(numbers, "norm").pvalue),
        "cells": float(stats.chisquare(cells).pvalue),
        "tails": float(tails),
    }
    worst = min(p, key=p.__getitem__)
    return Check(
        name="normals: KS, cells, tails",
        figure=f"p = {p[worst]:.2g} ({worst})",
        passes_at=f"p ≥ {LEAST_P:g}",
        passed=p[worst] >= LEAST_P,
    )


def _resolution(numbers: NDArray[np.float64]) -> Check:
    """Float32 normals meet by the thousand in a million draws; 52-bit ones do not."""
    equal = len(numbers) - len(np.unique(numbers))
    return Check(
        name="equal numbers in a million",
        figure=f"{equal}",
        passes_at="≤ 1",
        passed=equal <= 1,
    )


class _Words(randomness.Keystream):
    """A stream that says one word for ever."""

    def __init__(self, word: int) -> None:
        super().__init__(bytes(randomness.KEY_BYTES))
        self._word = np.uint64(word)

    def fill(self, words: NDArray[np.uint64]) -> None:
        words[:] = self._word


def _tail() -> Check:
    """The product's own transform of the least and the largest word."""
    low = float(randomness.normals(_Words(0), 1)[0])
    high = float(randomness.normals(_Words(2**64 - 1), 1)[0])
    reach = min(-low, high)
    return Check(
        name="farthest normal possible",
        figure=f"{reach:.2f} sd",
        passes_at=f"> {CUT} sd",
        passed=CUT < reach < np.inf,
    )


def _restarts(start: Callable[[], Randomness]) -> Check:
    """Two restarts and two forks of a running generator, each in a process of its own."""
    running = start()
    running.normal(1)
    drawn = [
        in_child(lambda: start().normal(_FIRST)),
        in_child(lambda: start().normal(_FIRST)),
        in_child(lambda: running.normal(_FIRST)),
        in_child(lambda: running.normal(_FIRST)),
        running.normal(_FIRST),
    ]
    everything = np.concatenate(drawn)
    repeats = len(everything) - len(np.unique(everything))
    return Check(
        name="repeats in restarts, forks",
        figure=f"{repeats} of {len(everything)}",
        passes_at="0",
        passed=repeats == 0,
    )


def in_child(draw: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
    """What a forked process draws.

    Raises:
        OrderError: the process ended without an answer.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(draw().tobytes())
        finally:
            os._exit(0)  # no clean-up of the parent's: threads, files and tests are not the child's
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if len(answer) != 8 * _FIRST:
        raise OrderError("Expected a forked process to draw numbers, got none.")
    return np.frombuffer(answer, np.float64)
