"""The rules of a ledger as a pure state machine on values: no file, no clock, no private key.

A site's ledger and an auditor run the same code. The steps for each entry, numbered in `advance`:
(1) site and time, (2) place in the chain, (3) signature, (4) order, (5) caps, (6) what it means.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from common.caps import SiteCaps, caps_from_plain
from common.entries import MOST_COHORTS, NO_HASH, Entry, Signed, canonical
from common.errors import ConfedError
from common.mechanism import Composed, Event, Leaf, PoissonSampled, Repeated, leaves
from common.signing import RECEIPT, ROTATION, PublicKey

Asked = tuple[str, int, str]
"""Run, round and purpose: what one reservation pays for."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that a ledger must not hold.

    Attributes:
        seq: number of the entry, counted from 0 in the file.
        code: one of a closed list: line, chain, signature, order, caps, plan, receipt, budget.
        text: expected and got, one line.
    """

    seq: int
    code: str
    text: str


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """What a run may reserve.

    Attributes:
        seq: of the plan's entry.
        run: of the plan.
        events: by purpose, the event of one round and how many rounds.
        details: of the entry.
    """

    seq: int
    run: str
    events: Mapping[str, tuple[Event, int]]
    details: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """A reservation; spent from here on, whatever becomes of it."""

    seq: int
    asked: Asked
    plan: int
    event: Event
    model_sha256: str
    cohorts: tuple[str, ...]
    noise: str


@dataclass(frozen=True, kw_only=True)
class Released:
    """A release: the bytes that may be sent, now or again."""

    seq: int
    reserve: int
    model_sha256: str
    payload_sha256: str


@dataclass
class State:
    """What all entries so far add up to."""

    site: str = ""
    key: PublicKey | None = None
    caps: SiteCaps = field(default_factory=SiteCaps)
    order: float = 0.0
    time: str = ""
    heads: list[str] = field(default_factory=list)
    plans: dict[str, PlanFacts] = field(default_factory=dict)
    reserved: dict[int, Reserved] = field(default_factory=dict)
    released: dict[Asked, Released] = field(default_factory=dict)
    runs_released: set[str] = field(default_factory=set)
    receipts: list[tuple[int, Entry]] = field(default_factory=list)
    spent: dict[str, Counter[Leaf]] = field(default_factory=dict)
    keys: list[PublicKey] = field(default_factory=list)
    opt_outs: str = NO_HASH
    opt_out_entries: int = 0
    adaptive: bool = False
    """Whether a plan was made, or chosen among several, after a release that it may depend on."""

    @property
    def seq(self) -> int:
        """Number of the last entry; -1 before the first."""
        return len(self.heads) - 1

    @property
    def head(self) -> str:
        """Hash of the last line; NO_HASH before the first."""
        return self.heads[-1] if self.heads else NO_HASH

    def rounds_reserved(self, run: str, purpose: str) -> int:
        """Reservations of a run so far."""
        return sum(r.asked[0] == run and r.asked[2] == purpose for r in self.reserved.values())

    def follows_results(self, run: str) -> bool:
        """Whether a reservation of this run may be chosen by what other runs released."""
        return self.adaptive or bool(self.runs_released - {run})

    @property
    def seeded(self) -> bool:
        """Whether some noise was seeded: there is no privacy claim then."""
        return any(r.noise == "seeded" for r in self.reserved.values())


def event_of(spent: Mapping[Leaf, int]) -> Event:
    """The composition of counted releases."""
    ordered = sorted(spent.items(), key=repr)
    return Composed(events=tuple(Repeated(count=n, event=leaf) for leaf, n in ordered))


def advance(state: State, signed: Signed) -> list[Fault]:
    """Check one entry against everything before it and take it in; the faults found, if any.

    An entry with faults is taken in all the same as far as it can be, so that an audit goes on
    and names the next one; a site's own ledger stops at the first.
    """
    entry, seq = signed.entry, state.seq + 1
    faults = [
        Fault(seq=seq, code=code, text=text)
        for check in (_belongs, _chained, _signed, _in_order)  # (1) (2) (3) (4)
        for code, text in check(state, signed)
    ]
    state.heads.append(signed.sha256)
    state.time = max(state.time, entry.ts)
    if not faults or entry.kind in _FOLLOWED or (entry.kind == "genesis" and seq == 0):
        faults += [
            Fault(seq=seq, code=code, text=text)
            for code, text in _TAKE[entry.kind](state, entry, seq)  # (5) (6)
        ]
    return faults


Found = Iterator[tuple[str, str]]
_FOLLOWED: Final = frozenset({"plan", "reserve", "cohort", "opt-out"})
"""Kinds that later entries build on: taken in with their faults, so that only those are named."""


def _belongs(state: State, signed: Signed) -> Found:
    entry = signed.entry
    if state.seq >= 0 and entry.site != state.site:
        yield "chain", f"expected an entry of site {state.site}, got one of another site"
    if entry.ts < state.time:
        yield "chain", f"expected a time of {state.time} or later, got {entry.ts}"


def _chained(state: State, signed: Signed) -> Found:
    entry = signed.entry
    if entry.seq != state.seq + 1:
        yield "chain", f"expected seq {state.seq + 1}, got {entry.seq}"
    if entry.prev != state.head:
        yield "chain", "expected prev to be the hash of the line before, got another"


def _signed(state: State, signed: Signed) -> Found:
    key = state.key
    if key is None and signed.entry.kind == "genesis":
        key = PublicKey.from_hex(str(signed.entry.details["public_key"]))
    if key is None or not signed.verifies(key):
        yield "signature", "expected a signature by the key in force, got another"


def _in_order(state: State, signed: Signed) -> Found:
    first = state.seq < 0
    if first and signed.entry.kind != "genesis":
        yield "order", f"expected a genesis first, got a {signed.entry.kind}"
    if not first and signed.entry.kind == "genesis":
        yield "order", "expected one genesis, got another"


def _genesis(state: State, entry: Entry, _seq: int) -> Found:
    details = entry.details
    state.site = entry.site
    state.key = PublicKey.from_hex(str(details["public_key"]))
    state.keys.append(state.key)
    state.order = float(details["order"])
    state.spent[str(details["cohort"])] = Counter()
    try:
        state.caps = caps_from_plain(details["caps"])
    except ConfedError as error:
        yield "caps", str(error)


def _plan(state: State, entry: Entry, seq: int) -> Found:
    purposes = list(entry.details["purposes"])
    parts = entry.event.events if isinstance(entry.event, Composed) else ()
    if len(parts) != len(purposes) or not all(isinstance(p, Repeated) for p in parts):
        yield "plan", "expected one repeated event a purpose in a plan"
        return
    if entry.run in state.plans or not entry.run:
        yield "plan", "expected a run that has no plan yet"
        return
    events = {
        purpose: (part.event, part.count)
        for purpose, part in zip(purposes, parts, strict=True)
        if isinstance(part, Repeated)
    }
    yield from _within_caps(state.caps, entry, events)
    state.adaptive = state.adaptive or bool(state.released)
    state.plans[entry.run] = PlanFacts(seq=seq, run=entry.run, events=events, details=entry.details)


def _within_caps(caps: SiteCaps, entry: Entry, events: Mapping[str, tuple[Event, int]]) -> Found:
    if float(entry.details["max_grad_norm"]) > caps.max_grad_norm:
        yield "caps", f"expected max_grad_norm of at most {caps.max_grad_norm:g}"
    for event, count in events.values():
        if not leaves(event):
            yield "plan", "expected an event that releases something"
        if count > caps.rounds:
            yield "caps", f"expected at most {caps.rounds} rounds, got {count}"
        for leaf in leaves(event):
            rate = leaf.sample_rate if isinstance(leaf, PoissonSampled) else 1.0
            gaussian = leaf.event if isinstance(leaf, PoissonSampled) else leaf
            noise = getattr(gaussian, "noise_multiplier", 0.0)
            if noise < caps.noise_multiplier:
                yield "caps", f"expected noise_multiplier of at least {caps.noise_multiplier:g}"
            if isinstance(leaf, PoissonSampled) and rate > caps.sample_rate:
                yield "caps", f"expected sample_rate of at most {caps.sample_rate:g}"


def _reserve(state: State, entry: Entry, seq: int) -> Found:
    details = entry.details
    purpose, cohorts = str(details["purpose"]), tuple(details["cohorts"])
    asked = (entry.run, entry.round, purpose)
    plan = state.plans.get(entry.run)
    yield from _against_plan(state, entry, plan, purpose)
    if not set(cohorts) <= set(state.spent):
        yield "order", "expected cohorts that the ledger has, got another"
    if details["opt_outs"] != state.opt_outs:
        yield "order", "expected the opt-outs in force, got others"
    if entry.event is None:
        return
    # Whatever else is wrong: noise may have been drawn, so it counts.
    state.adaptive = state.follows_results(entry.run)
    for cohort in cohorts:
        state.spent.setdefault(cohort, Counter()).update(leaves(entry.event))
    state.reserved[seq] = Reserved(
        seq=seq,
        asked=asked,
        plan=int(details["plan"]),
        event=entry.event,
        model_sha256=entry.model_sha256,
        cohorts=cohorts,
        noise=str(details["noise"]),
    )


def _against_plan(state: State, entry: Entry, plan: PlanFacts | None, purpose: str) -> Found:
    if plan is None or plan.seq != entry.details["plan"]:
        yield "plan", "expected a plan of this run before its reservation"
        return
    event, rounds = plan.events.get(purpose, (None, 0))
    if entry.event is None or entry.event != event:
        yield "plan", "expected the event of one round of the plan, got another"
    if not 1 <= entry.round <= rounds:
        yield "plan", f"expected a round from 1 to {rounds}, got {entry.round}"
    if (entry.run, entry.round, purpose) in state.released:
        yield "order", "expected no reservation for a round that was released"


def _release(state: State, entry: Entry, seq: int) -> Found:
    reserved = state.reserved.get(int(entry.details["reserve"]))
    if reserved is None:
        yield "order", "expected a reservation before its release"
        return
    same = reserved.asked[:2] == (entry.run, entry.round)
    if not same or reserved.model_sha256 != entry.model_sha256:
        yield "order", "expected run, round and model of the reservation, got others"
    if reserved.asked in state.released:
        yield "order", "expected one release a round, got another"
        return
    state.runs_released.add(reserved.asked[0])
    state.released[reserved.asked] = Released(
        seq=seq,
        reserve=reserved.seq,
        model_sha256=entry.model_sha256,
        payload_sha256=str(entry.details["payload_sha256"]),
    )


def _cohort(state: State, entry: Entry, _seq: int) -> Found:
    name = str(entry.details["name"])
    if name in state.spent:
        yield "order", "expected a new cohort, got one that is there"
        return
    if len(state.spent) >= MOST_COHORTS:
        yield "order", f"expected at most {MOST_COHORTS} cohorts"
    state.spent[name] = Counter()


def _opt_out(state: State, entry: Entry, _seq: int) -> Found:
    state.opt_outs = str(entry.details["commitment"])
    state.opt_out_entries += 1
    if state.opt_outs == NO_HASH:
        yield "order", "expected a list of opt-outs, which is never taken back"


def _rotate(state: State, entry: Entry, seq: int) -> Found:
    key = PublicKey.from_hex(str(entry.details["public_key"]))
    body = rotation_body(site=entry.site, seq=seq, prev=entry.prev)
    if not key.verifies(ROTATION, body, bytes.fromhex(str(entry.details["proof"]))):
        yield "signature", "expected the new key's own signature in a rotation"
        return
    state.key = key
    state.keys.append(key)


def rotation_body(*, site: str, seq: int, prev: str) -> bytes:
    """What a new key signs to show that its owner holds it."""
    return canonical({"site": site, "seq": seq, "prev": prev})


def _receipt(state: State, entry: Entry, seq: int) -> Found:
    known = int(entry.details["seq"])
    if known >= seq or state.heads[known] != entry.details["head"]:
        yield "receipt", "expected a receipt of this ledger's own past, got one of another"
        return
    if not receipt_verifies(entry.site, entry.run, entry.round, entry.details):
        yield "receipt", "expected the server's signature in a receipt"
    state.receipts.append((seq, entry))


def receipt_body(site: str, run: str, number: int, details: Mapping[str, Any]) -> bytes:
    """What a server signs: site, its head, and the hash of all heads of that round."""
    told = {name: details[name] for name in ("seq", "head", "heads_sha256")}
    return canonical({"site": site, "run": run, "round": number, **told})


def receipt_verifies(site: str, run: str, number: int, details: Mapping[str, Any]) -> bool:
    """Whether the server key that a receipt names signed it."""
    key = PublicKey.from_hex(str(details["server_key"]))
    body = receipt_body(site, run, number, details)
    return key.verifies(RECEIPT, body, bytes.fromhex(str(details["signature"])))


_TAKE: Final = {
    "genesis": _genesis,
    "plan": _plan,
    "reserve": _reserve,
    "release": _release,
    "cohort": _cohort,
    "opt-out": _opt_out,
    "key-rotate": _rotate,
    "receipt": _receipt,
}
