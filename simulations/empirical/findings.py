"""What an audit finds, as frozen values: checks, tiers, and their JSON form.

Public: all of it. The audited records are made up, so no figure speaks of a person.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

TierName = Literal["a", "b", "c"]
TIERS: Final[Mapping[TierName, str]] = {
    "a": "mechanism tests",
    "b": "one-run audit with canaries",
    "c": "membership inference (LiRA)",
}
NOT_A_PROOF: Final = "a lower bound is not a proof of privacy"
"""What stands beside every measured epsilon."""
TOO_WEAK: Final = "attack too weak"
"""The verdict where the attack fails on the model that has no privacy: it shows nothing then."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One figure against its limit.

    Attributes:
        name: what was checked, a few words.
        figure: what was measured, in words.
        passes_at: the limit, in words.
        passed: whether the figure is within the limit.
        verdict: what to print; by default passed or FAILED.
    """

    name: str
    figure: str
    passes_at: str
    passed: bool
    verdict: str = ""

    @property
    def said(self) -> str:
        """The verdict in a word or three."""
        return self.verdict or ("passed" if self.passed else "FAILED")

    def as_json(self) -> dict[str, Any]:
        """The check with JSON-ready values."""
        return {
            "name": self.name,
            "figure": self.figure,
            "passes_at": self.passes_at,
            "passed": self.passed,
            "verdict": self.said,
        }


@dataclass(frozen=True, kw_only=True)
class Tier:
    """The checks of one tier, and the figures behind them.

    Attributes:
        name: a, b or c.
        checks: in the order they were run.
        seconds: how long the tier took.
        figures: JSON-ready numbers behind the checks.
    """

    name: TierName
    checks: tuple[Check, ...]
    seconds: float
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the checks that did not pass."""
        return tuple(check.name for check in self.checks if not check.passed)

    def as_json(self) -> dict[str, Any]:
        """The tier with JSON-ready values."""
        return {
            "title": TIERS[self.name],
            "passed": self.passed,
            "seconds": round(self.seconds, 1),
            "checks": [check.as_json() for check in self.checks],
            **self.figures,
        }
