"""A ledger under random sequences of what a site may do, and what it may not."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.chain import State, advance
from common.entries import parse_line
from common.errors import ConfedError, OrderError, PrivacyRefused
from common.grant import ReservedGrant
from common.ledger import Ledger, create_ledger
from common.mechanism import Event, Gaussian, PoissonSampled, Repeated, leaves
from common.signing import SigningKey
from common.verification import verify
from simulations.ledgers import MemoryStore
from tests.common.ledger_suite import (
    CAPS,
    B,
    bytes_of,
    new_ledger,
    one_round,
    receipt_for,
    request,
    reserve,
)

EVENTS: tuple[Event, ...] = (
    PoissonSampled(sample_rate=0.25, event=Gaussian(noise_multiplier=2.0)),
    Gaussian(noise_multiplier=8.0),
    Repeated(count=3, event=PoissonSampled(sample_rate=0.1, event=Gaussian(noise_multiplier=2.0))),
)
RUNS = tuple(f"run-{i}" for i in range(4))


class AnyOrder(RuleBasedStateMachine):
    """Accepted or refused, never torn; what is spent stays spent."""

    def __init__(self) -> None:
        super().__init__()
        self.store, self.key = MemoryStore(), SigningKey.generate()
        self.first = self.key.public
        self.ledger = new_ledger(self.store, key=self.key)
        self.grants: list[ReservedGrant] = []
        self.counts: dict[str, int] = {}
        self.lines = b""
        self.reserved = 0

    @contextmanager
    def maybe(self) -> Iterator[None]:
        """Whatever is refused has left every byte as it was."""
        before = bytes_of(self.store)
        try:
            yield
        except ConfedError:
            assert bytes_of(self.store) == before

    @initialize()
    def first_plan(self) -> None:
        self.ledger.plan(request("run-0", {"train": (EVENTS[0], 9)}))

    @rule(run=st.sampled_from(RUNS), event=st.sampled_from(EVENTS), rounds=st.integers(1, 40))
    def plan(self, run: str, event: Event, rounds: int) -> None:
        with self.maybe():
            self.ledger.plan(request(run, {"train": (event, rounds)}), whole=rounds % 2 == 0)

    @rule(run=st.sampled_from(RUNS), number=st.integers(0, 12))
    def reserve(self, run: str, number: int) -> None:
        with self.maybe():
            self.grants.append(reserve(self.ledger, number, run))
            self.reserved += 1

    @rule(run=st.sampled_from(RUNS), numbers=st.integers(2, 14))
    def many_rounds(self, run: str, numbers: int) -> None:
        for number in range(1, numbers):
            with self.maybe():
                grant = reserve(self.ledger, number, run)
                self.reserved += 1
                self.ledger.release(grant, b"update")

    @precondition(lambda self: self.grants)
    @rule(which=st.integers(0, 50), payload=st.binary(max_size=20))
    def release(self, which: int, payload: bytes) -> None:
        with self.maybe():
            self.ledger.release(self.grants[which % len(self.grants)], payload)

    @rule(name=st.sampled_from(("all", "b", "c", "not a name")))
    def cohort(self, name: str) -> None:
        with self.maybe():
            self.ledger.add_cohort(name)

    @rule(commitment=st.sampled_from(("0" * 64, "a" * 64, "b" * 64, "subject-7")))
    def opt_out(self, commitment: str) -> None:
        with self.maybe():
            self.ledger.opt_out(commitment)

    @rule()
    def rotate(self) -> None:
        self.key = SigningKey.generate()
        self.ledger.rotate(self.key)

    @rule(true=st.booleans())
    def receipt(self, true: bool) -> None:
        told = receipt_for(self.ledger.state()).details()
        with self.maybe():
            self.ledger.acknowledge("run-0", told if true else {**told, "head": "a" * 64})

    @rule()
    def open_again(self) -> None:
        self.ledger = Ledger(self.store, self.key)

    @invariant()
    def only_grows(self) -> None:
        data = bytes_of(self.store)
        assert data.startswith(self.lines)
        self.lines = data
        state = self.ledger.state()
        assert len(state.reserved) == self.reserved
        for cohort, spent in state.spent.items():
            steps = sum(spent.values())
            assert steps >= self.counts.get(cohort, 0)
            self.counts[cohort] = steps
        for asked, released in state.released.items():
            assert state.reserved[released.reserve].asked == asked
            assert released.reserve < released.seq

    def teardown(self) -> None:
        found, state = verify(bytes_of(self.store), self.first), self.ledger.state()
        assert found.passed, found.faults
        assert (found.head, found.entries) == (state.head, state.seq + 1)
        assert found.spent.epsilon == self.ledger.spent().epsilon
        for spent in found.by_cohort.values():
            assert spent.epsilon <= CAPS.epsilon
        assert found.state.spent == state.spent
        assert found.adaptive == state.adaptive


AnyOrder.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def test_epsilon_never_falls_from_one_entry_to_the_next() -> None:
    store = MemoryStore()
    ledger = new_ledger(store)
    ledger.plan(request("run-1", {"train": (EVENTS[0], 20)}), whole=False)
    for number in (1, 2, 3):
        one_round(ledger, number)
    ledger.add_cohort("b")
    ledger.opt_out("a" * 64)
    ledger.plan(request("run-2", {"train": (EVENTS[1], 20)}), whole=False)
    ledger.rotate(SigningKey.generate())
    reserve(ledger, 1, "run-2")
    reserve(ledger, 4, "run-1")
    lines = bytes_of(store).splitlines(keepends=True)
    each = [verify(b"".join(lines[:n]), None) for n in range(1, len(lines) + 1)]
    assert all(found.passed for found in each)
    spent = [found.spent.epsilon for found in each]
    assert spent == sorted(spent)
    assert spent[0] == 0 < spent[-1]


def test_what_was_appended_alone_is_what_all_together_add_up_to() -> None:
    store = MemoryStore()
    ledger = new_ledger(store)
    ledger.plan(request())
    one_round(ledger)
    state = State()
    for line in bytes_of(store).splitlines():
        assert not advance(state, parse_line(line))
    assert state == ledger.state()


def test_a_clock_that_is_set_back_makes_no_ledger_invalid() -> None:
    times = iter([datetime(2026, 1, 2, tzinfo=UTC) - timedelta(days=d) for d in range(9)])
    store, key = MemoryStore(), SigningKey.generate()
    ledger = create_ledger(store, site="clinic", caps=CAPS, key=key, clock=lambda: next(times))
    ledger.plan(request())
    one_round(ledger)
    assert verify(bytes_of(store), key.public).passed
    assert {parse_line(x).entry.ts for x in bytes_of(store).splitlines()} == {
        "2026-01-02T00:00:00Z"
    }


def test_what_is_refused_says_what_was_needed_and_what_is_left() -> None:
    ledger = new_ledger(MemoryStore())
    with pytest.raises(PrivacyRefused) as caught:
        ledger.plan(request(events={"train": (EVENTS[1], 100)}))
    told = str(caught.value)
    assert told.startswith("Expected epsilon of at most 2 at this site, needed ")
    assert "left 2; nothing was spent." in told
    assert caught.value.exit_code == 3


def test_a_reservation_is_charged_by_its_steps() -> None:
    ledger = new_ledger(MemoryStore())
    ledger.plan(request(events={"train": (EVENTS[2], 4)}))
    grant = reserve(ledger)
    assert grant.steps == 3
    assert sum(ledger.state().spent["all"].values()) == 3
    assert set(leaves(EVENTS[2])) == set(ledger.state().spent["all"])


def test_a_grant_of_another_ledger_is_not_released_here() -> None:
    one, two = new_ledger(MemoryStore()), new_ledger(MemoryStore())
    one.plan(request())
    two.plan(request())
    foreign, _ = reserve(one), reserve(two)
    with pytest.raises(OrderError, match="reservation"):
        two.release(foreign, b"noisy")
    assert two.stored(run="run-1", number=1, model_sha256=B) is None
