"""What a site's owner allows at most, whatever a server asks. Public: it stands in the ledger."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from common.accounting import check_clip, check_delta, check_epsilon
from common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SiteCaps:
    """The owner's side of the contract.

    Attributes:
        epsilon: budget of every subject, over all runs and models.
        delta: that the budget is meant at, and largest of a plan.
        sample_rate: largest.
        max_grad_norm: largest clip.
        noise_multiplier: least.
        rounds: most of one run.
        private_only: whether a plan without privacy is refused; not in the ledger, which such a
            plan never reaches.
    """

    epsilon: float = 10.0
    delta: float = 1e-4
    sample_rate: float = 1.0
    max_grad_norm: float = 10.0
    noise_multiplier: float = 0.3
    rounds: int = 10_000
    private_only: bool = True

    def plain(self) -> dict[str, Any]:
        """As a ledger's first entry holds it."""
        values = asdict(self)
        del values["private_only"]
        return values


def caps_from_plain(values: dict[str, Any]) -> SiteCaps:
    """Read what `plain` wrote.

    Raises:
        ConfigError: a number out of range.
    """
    check_epsilon(values["epsilon"])
    check_delta(values["delta"])
    check_clip(values["max_grad_norm"])
    if not 0 < values["sample_rate"] <= 1:
        raise ConfigError(f"Expected a sample rate in (0, 1], got {values['sample_rate']!r}.")
    if not 0 <= values["noise_multiplier"] < math.inf:
        got = repr(values["noise_multiplier"])
        raise ConfigError(f"Expected a least noise multiplier of 0 or more, got {got}.")
    if values["rounds"] < 1 or values["rounds"] != int(values["rounds"]):
        raise ConfigError(f"Expected rounds as a count from 1, got {values['rounds']!r}.")
    return SiteCaps(
        epsilon=float(values["epsilon"]),
        delta=float(values["delta"]),
        sample_rate=float(values["sample_rate"]),
        max_grad_norm=float(values["max_grad_norm"]),
        noise_multiplier=float(values["noise_multiplier"]),
        rounds=int(values["rounds"]),
    )
