"""The audit audits itself: every broken mechanism has to be caught, by the tiers that say so."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import track

from simulations.empirical.broken import BROKEN
from simulations.empirical.findings import TIERS, TierName
from simulations.empirical.run import Audit, Request, audit
from simulations.empirical.table import WIDTH

PRODUCT = "product"


@dataclass(frozen=True, kw_only=True)
class Case:
    """How one mechanism fared.

    Attributes:
        name: of the mechanism.
        fault: what is wrong with it.
        caught: by tier, the checks that did not pass; a tier that was not run is missing.
        wanted: tiers that were run and have to catch it.
    """

    name: str
    fault: str
    caught: dict[TierName, tuple[str, ...]]
    wanted: tuple[TierName, ...]

    @property
    def passed(self) -> bool:
        """Whether what was wanted came, and nothing for the product itself."""
        if self.name == PRODUCT:
            return not any(self.caught.values())
        return bool(self.wanted) and all(self.caught[tier] for tier in self.wanted)


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """Every mechanism's case, the product first."""

    cases: tuple[Case, ...]

    @property
    def passed(self) -> bool:
        """Whether every case is as it should be."""
        return all(case.passed for case in self.cases)

    def as_json(self) -> dict[str, Any]:
        """The cases with JSON-ready values."""
        return {
            "format": "confed-empirical-self-test-1",
            "passed": self.passed,
            "cases": {
                case.name: {
                    "fault": case.fault,
                    "wanted": list(case.wanted),
                    "caught": {tier: list(names) for tier, names in case.caught.items()},
                    "passed": case.passed,
                }
                for case in self.cases
            },
        }


def self_test(request: Request) -> SelfTest:
    """Audit the product and every broken mechanism with the tiers of the request.

    Each gets the tiers that have to catch it and a and b besides; tier c, the slow one, runs only
    where it has to.
    """
    bars = Console(stderr=True, width=WIDTH)
    names = [PRODUCT, *BROKEN]
    cases = [
        _case(name, request)
        for name in track(names, "auditing", console=bars, transient=True)
        if name == PRODUCT or set(BROKEN[name].caught_by) & set(request.tiers)
    ]
    return SelfTest(cases=tuple(cases))


def _case(name: str, request: Request) -> Case:
    wanted: tuple[TierName, ...] = () if name == PRODUCT else BROKEN[name].caught_by
    tiers = tuple(t for t in request.tiers if t != "c" or name == PRODUCT or t in wanted)
    mine = Request(
        tiers=tiers, probes=request.probes, seeds=request.seeds, canaries=request.canaries
    )
    found = audit(None if name == PRODUCT else name, mine, progress=lambda _name, _total: _quiet)
    return Case(
        name=name,
        fault="none" if name == PRODUCT else BROKEN[name].fault,
        caught=caught_by(found),
        wanted=tuple(tier for tier in wanted if tier in tiers),
    )


def caught_by(found: Audit) -> dict[TierName, tuple[str, ...]]:
    """The checks of each tier that did not pass."""
    return {tier.name: tier.failures for tier in found.tiers}


def _quiet() -> None:
    """Nothing to tell: one bar stands for all."""


__all__ = ["PRODUCT", "TIERS", "Case", "SelfTest", "caught_by", "self_test"]
