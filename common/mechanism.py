"""What a site did to its records, as frozen values apart from any accountant.

Public: all of it; a mechanism holds no record and no count of subjects. An accountant turns a
value into an epsilon (`common.accounting`), a ledger stores its plain form and recomputes. The
codec knows five kinds and refuses the rest: no name in stored text is ever imported.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from common.errors import ConfigError

MAX_DEPTH: Final = 8
"""Deepest nesting of events, written or read."""
MAX_COUNT: Final = 10_000_000
"""Most repetitions of one event; a thousand times the longest run."""
MAX_SHAPE: Final = 1_000.0
"""Largest finite shape of a random number of runs; above it Poisson is the better choice."""


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """A sum of clipped contributions plus normal noise, one release.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the clip (the sensitivity), above 0.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        if not (_is_number(self.noise_multiplier) and self.noise_multiplier > 0):
            got = repr(self.noise_multiplier)
            raise ConfigError(f"Expected noise_multiplier above 0 and below 1e300, got {got}.")


@dataclass(frozen=True, kw_only=True)
class PoissonSampled:
    """A Gaussian release of a batch in which each subject stands with probability `sample_rate`.

    Only a Gaussian may be sampled: the accountants know amplification for no other event here.
    """

    sample_rate: float
    event: Gaussian

    def __post_init__(self) -> None:
        if not (_is_number(self.sample_rate) and 0 < self.sample_rate <= 1):
            raise ConfigError(f"Expected sample_rate in (0, 1], got {self.sample_rate!r}.")
        if not isinstance(self.event, Gaussian):
            raise ConfigError(f"Expected a Gaussian to sample, got {type(self.event).__name__}.")


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """One event run `count` times on the same subjects, each with fresh noise."""

    count: int
    event: "Event"

    def __post_init__(self) -> None:
        if not (type(self.count) is int and 1 <= self.count <= MAX_COUNT):
            raise ConfigError(f"Expected count from 1 to {MAX_COUNT}, got {self.count!r}.")
        _check_event(self.event)
        _check_depth(self)


@dataclass(frozen=True, kw_only=True)
class Composed:
    """Events on the same subjects, one after the other; none at all spends nothing."""

    events: tuple["Event", ...]

    def __post_init__(self) -> None:
        if not isinstance(self.events, tuple):
            raise ConfigError(f"Expected a tuple of events, got {type(self.events).__name__}.")
        for event in self.events:
            _check_event(event)
        _check_depth(self)


@dataclass(frozen=True, kw_only=True)
class RepeatAndSelect:
    """An event run a random number of times, of which only the best run is released.

    Tuning on private records: the losing runs are thrown away, and the best one is charged for
    all of them (Papernot and Steinke 2022).

    Attributes:
        event: One run.
        mean: Expected number of runs, from 1 to MAX_COUNT.
        shape: How the number is drawn: truncated negative binomial of this shape (0 is the
            logarithmic, 1 the geometric distribution; at most MAX_SHAPE), Poisson when infinite.
    """

    event: "Event"
    mean: float
    shape: float

    def __post_init__(self) -> None:
        _check_event(self.event)
        if not (_is_number(self.mean) and 1 <= self.mean <= MAX_COUNT):
            raise ConfigError(f"Expected mean from 1 to {MAX_COUNT}, got {self.mean!r}.")
        shape_fits = _is_number(self.shape) and 0 <= self.shape <= MAX_SHAPE
        if not (shape_fits or self.shape == math.inf):
            raise ConfigError(
                f"Expected shape from 0 to {MAX_SHAPE:g}, or infinite, got {self.shape!r}."
            )
        _check_depth(self)


Event: TypeAlias = Gaussian | PoissonSampled | Repeated | Composed | RepeatAndSelect
Leaf: TypeAlias = Gaussian | PoissonSampled | RepeatAndSelect


def leaves(event: Event) -> dict[Leaf, int]:
    """Count how often each single release happens; the order of releases changes no epsilon.

    A selected best run is one release, whatever was run to find it.
    """
    if isinstance(event, Repeated):
        return {leaf: n * event.count for leaf, n in leaves(event.event).items()}
    if isinstance(event, Composed):
        total: dict[Leaf, int] = {}
        for part in event.events:
            for leaf, n in leaves(part).items():
                total[leaf] = total.get(leaf, 0) + n
        return total
    return {event: 1}


def to_plain(event: Event) -> dict[str, Any]:
    """Write an event as JSON-ready dicts, lists, strings and numbers; `from_plain` inverts it."""
    if isinstance(event, Gaussian):
        return {"kind": "gaussian", "noise_multiplier": float(event.noise_multiplier)}
    if isinstance(event, PoissonSampled):
        rate = float(event.sample_rate)
        return {"kind": "poisson-sampled", "sample_rate": rate, "event": to_plain(event.event)}
    if isinstance(event, Repeated):
        return {"kind": "repeated", "count": event.count, "event": to_plain(event.event)}
    if isinstance(event, Composed):
        return {"kind": "composed", "events": [to_plain(part) for part in event.events]}
    if isinstance(event, RepeatAndSelect):
        # JSON has no infinity, so the Poisson distribution goes by its name.
        shape = "poisson" if event.shape == math.inf else float(event.shape)
        plain = {"kind": "repeat-and-select", "mean": float(event.mean), "shape": shape}
        return {**plain, "event": to_plain(event.event)}
    raise ConfigError(f"Expected an event, got {type(event).__name__}.")


def from_plain(value: object) -> Event:
    """Read an event from plain values, exactly the five kinds with exactly their keys.

    Raises:
        ConfigError: An unknown kind, a missing or extra key, a number out of range or not finite,
            or nesting deeper than MAX_DEPTH.
    """
    return _read(value, MAX_DEPTH)


def _read(value: object, depth: int) -> Event:
    if depth == 0:
        raise ConfigError(f"Expected events nested at most {MAX_DEPTH} deep, got more.")
    if not isinstance(value, Mapping):
        raise ConfigError(f"Expected an event as an object, got {type(value).__name__}.")
    kind = value.get("kind")
    keys = _KEYS.get(kind) if isinstance(kind, str) else None
    if keys is None:
        raise ConfigError(f"Expected kind to be one of {', '.join(_KEYS)}; got another.")
    if set(value) != keys:
        raise ConfigError(f"Expected the keys {', '.join(sorted(keys))} in a {kind} event.")
    if kind == "gaussian":
        return Gaussian(noise_multiplier=_number(value["noise_multiplier"]))
    if kind == "composed":
        return Composed(events=tuple(_read(part, depth - 1) for part in _list(value["events"])))
    inner = _read(value["event"], depth - 1)
    if kind == "repeated":
        return Repeated(count=value["count"], event=inner)
    if kind == "repeat-and-select":
        mean, shape = _number(value["mean"]), value["shape"]
        drawn = math.inf if shape == "poisson" else _number(shape)
        return RepeatAndSelect(event=inner, mean=mean, shape=drawn)
    if not isinstance(inner, Gaussian):
        raise ConfigError("Expected a gaussian event to sample, got another kind.")
    return PoissonSampled(sample_rate=_number(value["sample_rate"]), event=inner)


_KEYS: Final[dict[str, set[str]]] = {
    "gaussian": {"kind", "noise_multiplier"},
    "poisson-sampled": {"kind", "sample_rate", "event"},
    "repeated": {"kind", "count", "event"},
    "composed": {"kind", "events"},
    "repeat-and-select": {"kind", "event", "mean", "shape"},
}


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e300
        and math.isfinite(value)
    )


def _number(value: object) -> float:
    if isinstance(value, int | float) and _is_number(value):
        return float(value)
    raise ConfigError("Expected a finite number in an event, got another value.")


def _list(value: object) -> list[Any]:
    if isinstance(value, list):
        return value
    raise ConfigError(f"Expected events as a list, got {type(value).__name__}.")


def _check_event(event: object) -> None:
    if not isinstance(event, Gaussian | PoissonSampled | Repeated | Composed | RepeatAndSelect):
        raise ConfigError(f"Expected an event, got {type(event).__name__}.")


def _check_depth(event: Event) -> None:
    if _depth(event) > MAX_DEPTH:
        raise ConfigError(f"Expected events nested at most {MAX_DEPTH} deep, got more.")


def _depth(event: Event) -> int:
    if isinstance(event, Composed):
        return 1 + max((_depth(part) for part in event.events), default=0)
    return 1 if isinstance(event, Gaussian) else 1 + _depth(event.event)
