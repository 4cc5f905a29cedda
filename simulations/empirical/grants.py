"""Permissions to draw, for an audit: real reservations, in ledgers that live in memory.

Every noisy update is paid for in a ledger of its own, by the product's own code; nobody's budget
is touched, since nobody is in the records.
"""

from functools import cache
from typing import Final

from common.caps import SiteCaps
from common.entries import NO_HASH
from common.grant import Grant
from common.ledger import Ledger, PlanRequest, create_ledger
from common.mechanism import Gaussian, PoissonSampled, Repeated
from common.randomness import Randomness
from common.signing import SigningKey
from simulations.ledgers import MemoryStore

CAPS: Final = SiteCaps(epsilon=50.0, delta=1e-5, noise_multiplier=0.01, max_grad_norm=1e3)
_RUN: Final = "audit"


def reserved(
    *, noise_multiplier: float, sample_rate: float, steps: int, clip: float, randomness: Randomness
) -> Grant:
    """Reserve so many Poisson-sampled Gaussian steps and return what draws them."""
    ledger = _empty_ledger()
    step = PoissonSampled(
        sample_rate=sample_rate, event=Gaussian(noise_multiplier=noise_multiplier)
    )
    event = Repeated(count=steps, event=step)
    ledger.plan(
        PlanRequest(run=_RUN, events={"train": (event, 1)}, max_grad_norm=clip, plan_sha256=NO_HASH)
    )
    return ledger.reserve(run=_RUN, number=1, model_sha256=NO_HASH, randomness=randomness)


def _empty_ledger() -> Ledger:
    return create_ledger(MemoryStore(), site=_RUN, caps=CAPS, key=_key())


@cache
def _key() -> SigningKey:
    """One key an audit: making it is the slow part of a ledger."""
    return SigningKey.generate()
