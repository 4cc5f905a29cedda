"""Timing in alternation: variants take turns, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one variant, one entry a turn."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Middle of the turns, seconds."""
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        """Fastest turn, seconds."""
        return min(self.seconds)

    def plain(self) -> dict[str, Any]:
        """Median, fastest, spread (half the middle half over the median) and n."""
        low, _, high = (
            statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else (0,) * 3
        )
        return {
            "median_ms": round(self.median * 1e3, 3),
            "best_ms": round(self.best * 1e3, 3),
            "spread": round((high - low) / 2 / self.median, 4),
            "n": len(self.seconds),
        }


def alternate(variants: Mapping[str, Work], *, turns: int, warm: int = 2) -> dict[str, Timing]:
    """Time A B C A B C ..., `turns` times each after `warm` untimed turns."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warm + turns):
        for name, work in variants.items():
            start = time.perf_counter()
            work()
            end = time.perf_counter()
            if turn >= warm:
                taken[name].append(end - start)
    return {name: Timing(seconds=tuple(values)) for name, values in taken.items()}


def ratio(over: Timing, under: Timing) -> float:
    """Median of the turn-by-turn ratios: both sides of each saw the same load."""
    return statistics.median(a / b for a, b in zip(over.seconds, under.seconds, strict=True))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
