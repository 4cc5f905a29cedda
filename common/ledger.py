"""A site's ledger: one per subject population, across runs and models.

The order of a round, never another: (1) lock, (2) would the budget still hold? (3) append the
reservation, (4) fsync, (5) train and draw noise, (6) append the release with the payload's hash,
(7) fsync, (8) send. Epsilon is computed from reservations; nothing is ever refunded. Public:
every line. Sensitive: the signing key.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from common.accounting import Spent
from common.caps import SiteCaps
from common.chain import PlanFacts, Reserved, State, advance, event_of, rotation_body
from common.entries import NO_HASH, Entry, signed
from common.errors import ConfigError, OrderError, PrivacyRefused, SecurityRefused
from common.grant import LEDGER, Grant, ReservedGrant, steps_of
from common.journal import Clock, Journal, MakeEntry, stamp, utc_now
from common.ledger_file import LedgerStore
from common.mechanism import Composed, Event, Leaf, Repeated, leaves
from common.outbox import kept_name, sent_again
from common.privacy_filter import Budget, fits, order_for, rounds_left
from common.randomness import Randomness, SecureRandomness
from common.signing import ROTATION, SigningKey
from common.verification import spent_of

COHORT: Final = "all"
"""Cohort of the subjects that a site begins with."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What a run will ask of a site, declared before its first round.

    Attributes:
        run: name of the run.
        events: by purpose, the event of one round and the number of rounds.
        max_grad_norm: clip, or the length of one subject's metrics.
        plan_sha256: of the whole run plan.
        backbone_sha256: of the frozen model.
        catalog_sha256: of the domain's public catalog.
    """

    run: str
    events: Mapping[str, tuple[Event, int]]
    max_grad_norm: float
    plan_sha256: str
    backbone_sha256: str = NO_HASH
    catalog_sha256: str = NO_HASH


class Ledger:
    """Reads, checks and extends a ledger; every call is a transaction of its own.

    Args:
        store: the lines.
        key: the site's signing key.
        clock: UTC now.

    Raises:
        SecurityRefused: the ledger is damaged, or signed with another key.
        OrderError: there is no genesis yet; use `create`.
    """

    def __init__(self, store: LedgerStore, key: SigningKey, clock: Clock = utc_now) -> None:
        self._covered: dict[tuple[str, bool], Counter[Leaf]] = {}
        self._journal = Journal(store, key, clock, self._covered.clear)
        with self._journal.transaction() as state:
            if state.seq < 0:
                raise OrderError("Expected a ledger with a genesis, got an empty one; create it.")
            if state.key != key.public:
                raise SecurityRefused(
                    "Expected the signing key of this ledger, got another; nothing was written."
                )

    # Plans, reservations, releases

    def plan(self, request: PlanRequest, *, whole: bool = True) -> PlanFacts:
        """Declare a run; the same declaration twice is one.

        Args:
            request: the declaration.
            whole: refuse a run whose last round would not fit the budget any more; else only one
                whose first would not.

        Raises:
            PrivacyRefused: the plan breaks a cap, does not fit, or the run has another already.
            ConfigError: a round is not one kind of step, so that no grant could be made for it.
        """
        details = {
            "purposes": sorted(request.events, reverse=True),
            "max_grad_norm": float(request.max_grad_norm),
            "plan_sha256": request.plan_sha256,
            "backbone_sha256": request.backbone_sha256,
            "catalog_sha256": request.catalog_sha256,
        }
        event = schedule_of(request.events)
        for one, _ in request.events.values():
            steps_of(one)
        with self._journal.transaction() as state:
            known = state.plans.get(request.run)
            if known is not None:
                if dict(known.details) == details and known.events == dict(request.events):
                    return known
                raise PrivacyRefused(
                    "Expected the plan of the run's first message, got another; start a new run."
                )
            ones = {purpose: (one, 1) for purpose, (one, _) in request.events.items()}
            self._require_fit(event if whole else schedule_of(ones))
            self._journal.append(
                self._journal.entry("plan", run=request.run, event=event, details=details)
            )
            return state.plans[request.run]

    def reserve(
        self,
        *,
        run: str,
        number: int,
        model_sha256: str,
        randomness: Randomness,
        purpose: str = "train",
        receipt: Mapping[str, Any] | None = None,
    ) -> ReservedGrant:
        """Pay for one round; the answer draws its noise.

        Args:
            run: declared before.
            number: of the round, from 1.
            model_sha256: the order that is answered, plan and adapter.
            randomness: secure at a site; a seeded one is recorded as such.
            purpose: "train" or "evaluate".
            receipt: of the server for an earlier head, kept in the same write.

        Raises:
            PrivacyRefused: over the budget, outside of the plan, or released before.
            SecurityRefused: the ledger is damaged or cannot be written; nothing is spent.
        """
        with self._journal.transaction() as state:
            facts = state.plans.get(run)
            if facts is None or purpose not in facts.events:
                raise OrderError("Expected a plan for this run and purpose before a reservation.")
            event, rounds = facts.events[purpose]
            if not 1 <= number <= rounds or (run, number, purpose) in state.released:
                raise PrivacyRefused(
                    f"Expected a new round between 1 and {rounds}, got {number}: its noise "
                    "would not be in the plan."
                )
            self._require_budget(facts, event)
            entries = [self._receipt_entry(run, receipt)] if receipt else []
            entries.append(
                self._journal.entry(
                    "reserve",
                    run=run,
                    round=number,
                    event=event,
                    model_sha256=model_sha256,
                    details={
                        "plan": facts.seq,
                        "purpose": purpose,
                        "cohorts": sorted(state.spent),
                        "noise": "secure" if type(randomness) is SecureRandomness else "seeded",
                        "opt_outs": state.opt_outs,
                    },
                )
            )
            self._journal.append(*entries)
            return ReservedGrant(
                LEDGER, seq=state.seq, head=state.head, event=event, randomness=randomness
            )

    def release(self, grant: Grant, payload: bytes) -> str:
        """Store and record what is about to be sent; the answer is its SHA-256.

        Raises:
            SecurityRefused: it cannot be written; then nothing may be sent.
        """
        with self._journal.transaction() as state:
            reserved = _reserved_by(state, grant)
            digest = hashlib.sha256(payload).hexdigest()
            self._journal.store.keep(kept_name(reserved.asked), payload)
            run, number, purpose = reserved.asked
            details = {"reserve": reserved.seq, "payload_sha256": digest, "bytes": len(payload)}
            self._journal.append(
                self._journal.entry(
                    "release",
                    run=run,
                    round=number,
                    model_sha256=reserved.model_sha256,
                    details=details,
                )
            )
            if number > 2:  # a server asks for the last rounds again, never for older ones
                self._journal.store.drop(kept_name((run, number - 2, purpose)))
            return digest

    def stored(
        self, *, run: str, number: int, model_sha256: str, purpose: str = "train"
    ) -> bytes | None:
        """The bytes that were released for a round, to be sent again free of charge.

        Raises:
            PrivacyRefused: the round was released for another model, or its bytes are gone.
        """
        with self._journal.transaction() as state:
            released = state.released.get((run, number, purpose))
            if released is None:
                return None
            payload = self._journal.store.kept(kept_name((run, number, purpose)))
        return sent_again(released, payload, model_sha256)

    def _require_budget(self, facts: PlanFacts, event: Event) -> None:
        """Refuse before anything is spent; what is known to fit is not computed again."""
        state, budget = self._journal.state, self.budget
        adaptive = state.follows_results(facts.run)
        for cohort, spent in state.spent.items():
            after, name = spent + Counter(leaves(event)), (cohort, adaptive)
            known = self._covered.get(name)
            if known is not None and all(known[leaf] >= n for leaf, n in after.items()):
                continue
            whole = spent + self._left_of(facts)
            if fits(budget, event_of(spent), event_of(whole - spent), adaptive=adaptive):
                self._covered[name] = whole
            elif fits(budget, event_of(spent), event, adaptive=adaptive):
                self._covered[name] = after
            else:
                raise self._over_budget(spent, event, adaptive=adaptive)

    def _left_of(self, facts: PlanFacts) -> Counter[Leaf]:
        left: Counter[Leaf] = Counter()
        for purpose, (event, rounds) in facts.events.items():
            rest = max(rounds - self._journal.state.rounds_reserved(facts.run, purpose), 1)
            left.update(leaves(Repeated(count=rest, event=event)))
        return left

    def _require_fit(self, event: Event) -> None:
        state = self._journal.state
        # A plan made after a release may depend on it: from then on the filter counts.
        adaptive = state.adaptive or bool(state.released)
        for spent in state.spent.values():
            if not fits(self.budget, event_of(spent), event, adaptive=adaptive):
                raise self._over_budget(spent, event, adaptive=adaptive)

    def _over_budget(self, spent: Counter[Leaf], event: Event, *, adaptive: bool) -> PrivacyRefused:
        state = replace(self._journal.state, adaptive=adaptive)
        now = spent_of(state, event_of(spent)).epsilon
        after = spent_of(state, event_of(spent + Counter(leaves(event)))).epsilon
        budget = state.caps.epsilon
        return PrivacyRefused(
            f"Expected epsilon of at most {budget:g} at this site, needed {after - now:.4g} more, "
            f"left {max(budget - now, 0):.4g}; nothing was spent."
        )

    # Everything else that a ledger records

    def add_cohort(self, name: str) -> None:
        """Open a block of new subjects, disjoint from all before; their spending starts at 0."""
        with self._journal.transaction():
            self._journal.append(self._journal.entry("cohort", details={"name": name}))

    def opt_out(self, commitment: str) -> None:
        """Record that the list of opted-out subjects changed; SHA-256 of the list under a salt.

        Raises:
            SecurityRefused: there is no list any more, though the ledger names one.
        """
        with self._journal.transaction() as state:
            if state.opt_outs != commitment:
                if commitment == NO_HASH:
                    raise SecurityRefused(
                        "Expected the list of opt-outs that the ledger names, found none; bring "
                        "it back."
                    )
                self._journal.append(
                    self._journal.entry("opt-out", details={"commitment": commitment})
                )

    def rotate(self, new: SigningKey) -> None:
        """Hand over to a new key; the old one signs that, the new one shows that it is held."""
        with self._journal.transaction() as state:
            body = rotation_body(site=state.site, seq=state.seq + 1, prev=state.head)
            details = {"public_key": new.public.hex, "proof": new.sign(ROTATION, body).hex()}
            self._journal.append(self._journal.entry("key-rotate", details=details))
            self._journal.key = new

    def acknowledge(self, run: str, receipt: Mapping[str, Any]) -> None:
        """Record a server's receipt for an earlier head.

        Raises:
            SecurityRefused: it is for another ledger's past: an old backup or a fork.
        """
        with self._journal.transaction():
            self._journal.append(self._receipt_entry(run, receipt))

    def _receipt_entry(self, run: str, receipt: Mapping[str, Any]) -> MakeEntry:
        details = {k: v for k, v in receipt.items() if k != "round"}
        return self._journal.entry("receipt", run=run, round=int(receipt["round"]), details=details)

    # What is known

    @property
    def budget(self) -> Budget:
        """The owner's budget."""
        state = self._journal.state
        return Budget(epsilon=state.caps.epsilon, delta=state.caps.delta, order=state.order)

    def state(self) -> State:
        """What all entries add up to, read anew; not to be changed."""
        with self._journal.transaction() as state:
            return state

    @property
    def public_key(self) -> str:
        """Of the key that the ledger began with, 64 hexadecimal digits."""
        return self.state().keys[0].hex

    def knows(self, seq: int, head: str) -> bool:
        """Whether the line of that number has that hash."""
        heads = self.state().heads
        return 0 <= seq < len(heads) and heads[seq] == head

    def lines_after(self, seq: int) -> bytes:
        """The lines from `seq` + 1 on, for a server that has seen the ones before."""
        with self._journal.transaction():
            return b"".join(self._journal.store.read(0).splitlines(keepends=True)[seq + 1 :])

    def spent_events(self) -> list[Event]:
        """What each cohort has had done to it."""
        return [event_of(spent) for spent in self.state().spent.values()]

    def spent(self) -> Spent:
        """Epsilon of the cohort that spent most, at the budget's delta."""
        state = self.state()
        found = [spent_of(state, event_of(spent)) for spent in state.spent.values()]
        return max(found, key=lambda spent: spent.epsilon)

    def rounds_left(self, event: Event) -> int:
        """How many more rounds of this event fit into the budget."""
        state = self.state()
        return min(
            rounds_left(self.budget, event_of(spent), event, adaptive=state.adaptive)
            for spent in state.spent.values()
        )


def create_ledger(
    store: LedgerStore,
    *,
    site: str,
    caps: SiteCaps,
    key: SigningKey,
    clock: Clock = utc_now,
) -> Ledger:
    """Write the genesis of a new ledger and open it.

    Raises:
        SecurityRefused: there is a ledger already, or it cannot be written.
        ConfigError: the site's name or a cap is out of range.
    """
    entry = Entry(
        site=site,
        seq=0,
        prev=NO_HASH,
        ts=stamp(clock()),
        kind="genesis",
        details={
            "version": 1,
            "public_key": key.public.hex,
            "unit": "subject",
            "adjacency": "add-or-remove",
            "caps": caps.plain(),
            "order": order_for(caps.epsilon, caps.delta),
            "cohort": COHORT,
        },
    )
    line = signed(entry, key)
    faults = advance(State(), line)
    if faults:
        raise ConfigError(f"Expected caps that a ledger can hold, got others: {faults[0].text}.")
    with store.locked():
        if store.read(0):
            raise SecurityRefused("Expected no ledger yet, found one; it is never overwritten.")
        store.append(line.line + b"\n")
    return Ledger(store, key, clock)


def schedule_of(events: Mapping[str, tuple[Event, int]]) -> Event:
    """The whole cost of a run, one repeated event a purpose."""
    ordered = sorted(events, reverse=True)
    return Composed(events=tuple(Repeated(count=events[p][1], event=events[p][0]) for p in ordered))


def _reserved_by(state: State, grant: Grant) -> Reserved:
    if isinstance(grant, ReservedGrant) and state.heads[grant.seq : grant.seq + 1] == [grant.head]:
        reserved = state.reserved.get(grant.seq)
        if reserved is not None and reserved.asked not in state.released:
            return reserved
    raise OrderError("Expected a reservation without a release, got another.")
