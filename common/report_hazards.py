"""What goes wrong in practice with differential privacy, each hazard with its test and result.

After the factors of NIST SP 800-226 (Guidelines for Evaluating Differential Privacy Guarantees,
March 2025): the guarantee, its algorithms, what surrounds them. Grouping and wording are ours. A
result is measured by `confed audit empirical`, computed from the ledgers, or said to be neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from common.audit import Audit

NOT_RUN: Final = "not run: run confed audit empirical"
State = Literal["passed", "failed", "open", "design"]


@dataclass(frozen=True, kw_only=True)
class Hazard:
    """One hazard.

    Attributes:
        name: what may go wrong.
        test: what was looked at.
        result: what was found.
        state: passed or failed; open where nobody has looked; design where it follows from how
            the software is built and its own tests hold it.
    """

    name: str
    test: str
    result: str
    state: State


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """A hazard that `confed audit empirical` tests: the tier, and how its checks begin."""

    name: str
    test: str
    tier: str
    checks: tuple[str, ...]


_MEASURED: Final = (
    _Measured(
        name="One person's contribution is not bounded (sensitivity)",
        test="one person more (gradients of 1e30, 50 rows, NaN) moves the sum by at most the clip",
        tier="a",
        checks=("subject ",),
    ),
    _Measured(
        name="The noise is smaller than declared, or missing somewhere",
        test="standard deviation of the noise in every tensor over 200 updates",
        tier="a",
        checks=("noise std", "noise on every tensor"),
    ),
    _Measured(
        name="Noise that repeats or can be guessed (random numbers)",
        test="repeats between updates, restarts and forks; distribution of the generator",
        tier="a",
        checks=("noise never repeats", "repeats in restarts", "normals", "equal numbers"),
    ),
    _Measured(
        name="Floating-point numbers give the true sum away",
        test="farthest normal possible; equal numbers in a million draws",
        tier="a",
        checks=("farthest normal", "equal numbers"),
    ),
    _Measured(
        name="Batches that are not drawn as they are accounted",
        test="mean, variance and dependence of 300 batches against Poisson sampling",
        tier="a",
        checks=("batch",),
    ),
    _Measured(
        name="A fault that no single test foresees",
        test="one-run audit: canaries in the product's own training step",
        tier="b",
        checks=("",),
    ),
    _Measured(
        name="Membership can be told from the released model",
        test="likelihood-ratio attack (LiRA), beside a model without noise as positive control",
        tier="c",
        checks=("",),
    ),
)


def hazards(audit: Audit, empirical: Mapping[str, Any] | None) -> tuple[Hazard, ...]:
    """Every hazard in the order of the guarantee, the algorithms and what surrounds them."""
    tiers = {} if empirical is None else dict(empirical.get("tiers", {}))
    return (
        *_of_the_guarantee(audit),
        *(_measured(one, tiers) for one in _MEASURED),
        *_SURROUNDINGS,
    )


def _measured(one: _Measured, tiers: Mapping[str, Any]) -> Hazard:
    checks = [
        check
        for check in tiers.get(one.tier, {}).get("checks", [])
        if str(check["name"]).startswith(one.checks)
    ]
    if not checks:
        return Hazard(name=one.name, test=one.test, result=NOT_RUN, state="open")
    failed = [str(check["name"]) for check in checks if not check["passed"]]
    told = f"tier {one.tier.upper()}: {len(checks) - len(failed)} of {len(checks)} checks passed"
    if failed:
        return Hazard(
            name=one.name, test=one.test, result=f"{told}; failed: {failed[0]}", state="failed"
        )
    return Hazard(name=one.name, test=one.test, result=told, state="passed")


def _of_the_guarantee(audit: Audit) -> tuple[Hazard, ...]:
    seeded, faults = audit.seeded, [f for site in audit.sites for f in site.faults]
    over = [fault for fault in faults if fault.code == "budget"]
    adaptive = any(site.verdict.adaptive for site in audit.sites)
    return (
        Hazard(
            name="The unit of privacy is smaller than a person",
            test="unit and adjacency that every ledger's first entry fixes",
            result="subject; one person added or removed, with all records",
            state="passed",
        ),
        Hazard(
            name="The budget is spent again for every release (composition)",
            test="one ledger over all runs and models; epsilon of all reservations against it",
            result="over the budget" if over else "within the budget, all releases composed",
            state="failed" if over else "passed",
        ),
        Hazard(
            name="Parameters are chosen after looking at earlier results",
            test="plans declared before their first round; a filter where they may depend",
            result="a filter's bound is published" if adaptive else "every plan was fixed first",
            state="passed",
        ),
        Hazard(
            name="The record of what was spent is edited, incomplete or old",
            test="hash chain, signatures, order, caps, server receipts",
            result=f"{len(faults)} faults" if faults else "every ledger verifies",
            state="failed" if faults else "passed",
        ),
        Hazard(
            name="Noise that somebody can subtract",
            test="how each reservation says that its noise was drawn",
            result="drawn from a seed: no privacy claim"
            if seeded
            else "operating system's entropy",
            state="failed" if seeded else "passed",
        ),
    )


_SURROUNDINGS: Final = (
    Hazard(
        name="Side channels: errors, timing, exact counts",
        test="closed list of error codes, allow-list of fields, reply at the deadline on request",
        result="by design, held by the software's own tests; not measured at this site",
        state="design",
    ),
    Hazard(
        name="Preparation of the data outside of the accounting",
        test="catalog and frozen model are public and named by hash in every plan",
        result="by design; selection of records before training is the controller's to describe",
        state="design",
    ),
    Hazard(
        name="Somebody reaches the raw records (access, storage, collection)",
        test="none by this audit",
        result="to be assessed by the controller",
        state="open",
    ),
    Hazard(
        name="Noise serves small groups worse (bias)",
        test="quality for people with few records and for rare items, where a summary is given",
        result="to be assessed by the controller",
        state="open",
    ),
)
