"""The same schedule through Opacus's accountants: other code, other mathematics, one answer.

A third opinion is compared, never published: Opacus's PRV accountant (Gopi, Lee, Wutschitz 2021)
is an estimate with an error bound, and its RDP orders end at 63.
"""

import warnings
from typing import Final, NoReturn

import numpy as np
from opacus.accountants import PRVAccountant, RDPAccountant

from common.accounting import schedule
from common.errors import ConfigError
from common.mechanism import Event, Gaussian, Leaf, RepeatAndSelect, leaves

ACCOUNTANTS: Final = {"prv": PRVAccountant, "rdp": RDPAccountant}
AGREEMENT: Final = 0.03
"""How far PRV may lie from PLD before one of them is wrong."""


def opacus_epsilon(
    noise_multiplier: float, sample_rate: float, steps: int, delta: float
) -> dict[str, float]:
    """Compute epsilon of a Poisson-sampled schedule as Opacus does, by "prv" and by "rdp"."""
    event = schedule(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps)
    return {name: opacus_opinion(event, delta, by=name) for name in ACCOUNTANTS}


def opacus_opinion(event: Event, delta: float, *, by: str = "prv") -> float:
    """Compute epsilon of any event that Opacus knows, by one of ACCOUNTANTS.

    Raises:
        ConfigError: An event with a selected best run, which Opacus does not account for, or
            another accountant.
    """
    if by not in ACCOUNTANTS:
        raise ConfigError(f"Expected one of {', '.join(ACCOUNTANTS)}, got {by!r}.")
    accountant = ACCOUNTANTS[by]()
    accountant.history = [(*_step(leaf), count) for leaf, count in leaves(event).items()]
    if not accountant.history:
        return 0.0
    # Opacus warns of its short list of orders and of log(0) at rate 1; both answers hold.
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta))


def _step(leaf: Leaf) -> tuple[float, float]:
    if isinstance(leaf, RepeatAndSelect):
        raise ConfigError("Expected Gaussian releases, got a selected best run; Opacus has none.")
    if isinstance(leaf, Gaussian):
        return leaf.noise_multiplier, 1.0
    return leaf.event.noise_multiplier, leaf.sample_rate


def shuffled_epsilon() -> NoReturn:
    """Refuse: shuffled batches have no amplification that these accountants could compute.

    At the same noise the Poisson figure can be a fourth of the truth (4.8 instead of 17.9).

    Raises:
        ConfigError: Always.
    """
    raise ConfigError("Expected Poisson sampling, got shuffled batches: no accountant covers them.")
