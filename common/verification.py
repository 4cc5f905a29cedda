"""An auditor's check of a ledger: bytes and public keys in, a verdict out. Nothing else is needed.

(1) lines, (2) chain, signatures, order, caps, receipts (`common.chain`), (3) the server's own
receipts, (4) epsilon from the reservations, against the budget, (5) plan against actual.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from common.accounting import Spent, spent
from common.chain import Fault, State, advance, event_of, receipt_verifies
from common.entries import parse_line
from common.errors import ConfigError, SecurityRefused
from common.mechanism import Event, Leaf, leaves
from common.privacy_filter import adaptive_epsilon
from common.signing import PublicKey

SLACK: Final = 1e-9
"""Relative: rounding that is no overspending."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Plan against actual for one purpose of one run.

    Attributes:
        run: name.
        purpose: "train" or "evaluate".
        planned: rounds declared.
        reserved: reservations, each paid for.
        released: answers.
        event: of one round.
    """

    run: str
    purpose: str
    planned: int
    reserved: int
    released: int
    event: Event


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a ledger shows.

    Attributes:
        site: name.
        entries: lines read.
        head: hash of the last whole line.
        key: fingerprint of the first key; empty when there is none.
        faults: all that were found; none means that the ledger verifies.
        spent: of the cohort that spent most, at the budget's delta.
        by_cohort: of each cohort.
        adaptive: whether a later plan may depend on earlier results, so that a filter counts.
        runs: plan against actual.
        receipts: the server's countersignatures inside the ledger.
        seeded: whether noise was seeded: no privacy claim then.
        state: everything, for a report.
    """

    site: str
    entries: int
    head: str
    key: str
    faults: tuple[Fault, ...]
    spent: Spent
    by_cohort: Mapping[str, Spent]
    adaptive: bool
    runs: tuple[RunFacts, ...]
    receipts: int
    seeded: bool
    state: State

    @property
    def passed(self) -> bool:
        """Whether no fault was found."""
        return not self.faults


def verify(
    data: bytes, key: PublicKey | None, *, receipts: Sequence[Mapping[str, Any]] = ()
) -> Verdict:
    """Check a whole ledger.

    Args:
        data: the file.
        key: the site's first public key, from another channel; None trusts the genesis.
        receipts: that the server holds for this site, each with site, run and round.
    """
    state, faults = State(), []
    body, torn = _whole(data)
    for number, line in enumerate(body):  # (1) (2)
        faults += _take(state, line, number)
        if number == 0 and key is not None and state.keys and state.keys[0] != key:
            text = "expected the ledger of the given public key, got another's"
            faults.append(Fault(seq=0, code="signature", text=text))
    if torn:
        text = "expected a whole last line, got a torn one"
        faults.append(Fault(seq=len(body), code="line", text=text))
    if not body:
        faults.append(Fault(seq=0, code="order", text="expected a genesis, got no entry"))
    faults += _against_receipts(state, receipts)  # (3)
    by_cohort = {name: _spent(state, s) for name, s in state.spent.items()}  # (4)
    faults += _over_budget(state, by_cohort)
    most = max(by_cohort.values(), key=lambda s: s.epsilon, default=None)
    return Verdict(
        site=state.site,
        entries=len(body),
        head=state.head,
        key=state.keys[0].fingerprint if state.keys else "",
        faults=tuple(sorted(faults, key=lambda fault: fault.seq)),
        spent=most if most is not None else spent(event_of({}), delta=state.caps.delta),
        by_cohort=by_cohort,
        adaptive=state.adaptive,
        runs=tuple(_runs(state)),  # (5)
        receipts=len(state.receipts),
        seeded=state.seeded,
        state=state,
    )


def spent_of(state: State, event: Event) -> Spent:
    """Epsilon of an event under a ledger's rules, at its budget's delta.

    Where plans may depend on earlier results, only the Renyi filter's bound holds, at the order
    that the genesis fixed.
    """
    both = spent(event, delta=state.caps.delta)
    if not state.adaptive:
        return both
    bound = adaptive_epsilon(event, delta=state.caps.delta, order=state.order)
    return replace(
        both, epsilon=bound, accountant=f"Renyi filter at order {state.order:.4g} (adaptive plans)"
    )


def _spent(state: State, counted: Mapping[Leaf, int]) -> Spent:
    """Epsilon of counted releases; infinite where no accountant computes with so many or such."""
    try:
        event = event_of(counted)
        return spent_of(state, event) if counted else spent(event, delta=state.caps.delta)
    except ConfigError:
        return Spent(
            epsilon=math.inf,
            pld=math.inf,
            rdp=math.inf,
            delta=state.caps.delta,
            accountant="none: noise or order outside of what accountants compute with",
            discretisation=0.0,
            error=math.inf,
        )


def _whole(data: bytes) -> tuple[list[bytes], bytes]:
    *lines, torn = data.split(b"\n")
    return lines, torn


def _take(state: State, line: bytes, number: int) -> list[Fault]:
    try:
        return advance(state, parse_line(line))
    except SecurityRefused as error:
        # The chain goes on from the bytes that are there, so that only this entry is named.
        state.heads.append(hashlib.sha256(line).hexdigest())
        text = str(error).rstrip(".")
        return [Fault(seq=number, code="line", text=text[0].lower() + text[1:])]


def _against_receipts(state: State, receipts: Sequence[Mapping[str, Any]]) -> list[Fault]:
    faults = []
    for receipt in receipts:
        if receipt["site"] != state.site:
            continue
        seq = int(receipt["seq"])
        if not receipt_verifies(state.site, str(receipt["run"]), int(receipt["round"]), receipt):
            text = "expected the server's signature in its receipt, got another"
            faults.append(Fault(seq=seq, code="receipt", text=text))
        elif seq > state.seq:
            text = f"expected entry {seq}, which the server has seen: this is an old copy"
            faults.append(Fault(seq=state.seq + 1, code="receipt", text=text))
        elif state.heads[seq] != receipt["head"]:
            text = "expected the entry that the server has seen, got another: this is a fork"
            faults.append(Fault(seq=seq, code="receipt", text=text))
    return faults


def _over_budget(state: State, by_cohort: Mapping[str, Spent]) -> list[Fault]:
    most = state.caps.epsilon
    return [
        Fault(
            seq=_first_over(state, cohort),
            code="budget",
            text=f"expected epsilon of at most {most:g}, got {found.epsilon:.4g}",
        )
        for cohort, found in by_cohort.items()
        if found.epsilon > most * (1 + SLACK)
    ]


def _first_over(state: State, cohort: str) -> int:
    """The reservation that passed the budget, by bisection: epsilon only grows."""
    taken = [r for r in state.reserved.values() if cohort in r.cohorts]
    low, high = 0, len(taken)
    while low < high:
        middle = (low + high) // 2
        total: Counter[Leaf] = Counter()
        for reserved in taken[: middle + 1]:
            total.update(leaves(reserved.event))
        if _spent(state, total).epsilon > state.caps.epsilon * (1 + SLACK):
            high = middle
        else:
            low = middle + 1
    return taken[min(low, len(taken) - 1)].seq


def _runs(state: State) -> list[RunFacts]:
    found = []
    for run, plan in state.plans.items():
        for purpose, (event, planned) in plan.events.items():
            found.append(
                RunFacts(
                    run=run,
                    purpose=purpose,
                    planned=planned,
                    reserved=state.rounds_reserved(run, purpose),
                    released=sum(a[0] == run and a[2] == purpose for a in state.released),
                    event=event,
                )
            )
    return found
