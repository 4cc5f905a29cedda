"""The same schedule through Opacus's accountants: other code, other mathematics, one answer.

A third opinion is compared, never published: Opacus's PRV accountant (Gopi, Lee, Wutschitz 2021)
is an estimate with an error bound, and its RDP orders end at 63.
"""

import warnings
from typing import NoReturn

import numpy as np
from opacus.accountants import PRVAccountant, RDPAccountant

from common.accounting import schedule
from common.errors import ConfigError

AGREEMENT = 0.03
"""How far PRV may lie from PLD before one of them is wrong."""


def opacus_epsilon(
    noise_multiplier: float, sample_rate: float, steps: int, delta: float
) -> dict[str, float]:
    """Compute epsilon of a Poisson-sampled schedule as Opacus does, by "prv" and by "rdp"."""
    schedule(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps)
    opinions = {}
    for name, accountant in (("prv", PRVAccountant()), ("rdp", RDPAccountant())):
        accountant.history = [(noise_multiplier, sample_rate, steps)]
        # Opacus warns of its short list of orders and of log(0) at rate 1; both answers hold.
        with warnings.catch_warnings(), np.errstate(divide="ignore"):
            warnings.simplefilter("ignore")
            opinions[name] = float(accountant.get_epsilon(delta))
    return opinions


def shuffled_epsilon() -> NoReturn:
    """Refuse: shuffled batches have no amplification that these accountants could compute.

    At the same noise the Poisson figure can be a fourth of the truth (4.8 instead of 17.9).

    Raises:
        ConfigError: Always.
    """
    raise ConfigError("Expected Poisson sampling, got shuffled batches: no accountant covers them.")
