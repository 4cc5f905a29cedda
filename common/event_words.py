"""An event in words: what one round costs, for somebody who reads a ledger."""

import math

from common.mechanism import Composed, Event, Gaussian, PoissonSampled, RepeatAndSelect, leaves


def event_words(event: Event) -> str:
    """A few words on one event; equal releases are counted together."""
    parts = [_leaf(leaf) + (f", {n:,} steps" if n > 1 else "") for leaf, n in leaves(event).items()]
    return "; ".join(parts) or "nothing is released"


def _leaf(event: Event) -> str:
    if isinstance(event, Gaussian):
        return f"everybody, noise {event.noise_multiplier:.4g}"
    if isinstance(event, PoissonSampled):
        return f"rate {event.sample_rate:.4g}, noise {event.event.noise_multiplier:.4g}"
    if isinstance(event, RepeatAndSelect):
        drawn = "Poisson" if event.shape == math.inf else f"shape {event.shape:.4g}"
        return f"best of {event.mean:.4g} runs on average ({drawn}) of: {event_words(event.event)}"
    return event_words(event) if isinstance(event, Composed) else "another event"
