from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from common.chain import Fault
from common.entries import parse_line
from common.errors import PrivacyRefused, SecurityRefused
from common.journal import Journal, damage, stamp
from common.ledger import Ledger
from common.signing import SigningKey
from simulations.ledgers import MemoryStore
from tests.common.ledger_suite import A, bytes_of, kinds, new_ledger, one_round, request, reserve


class FailsOnce(MemoryStore):
    """Writes nothing the next time, as a disk that is full."""

    failing = False

    def append(self, data: bytes) -> None:
        if self.failing:
            self.failing = False
            raise SecurityRefused("Expected to write, got 'No space left on device'.")
        super().append(data)


def test_what_was_not_written_is_not_remembered() -> None:
    store = FailsOnce()
    ledger = new_ledger(store)
    ledger.plan(request())
    one_round(ledger)
    before = bytes_of(store)
    for call in (
        lambda: reserve(ledger, 2),
        lambda: ledger.add_cohort("b"),
        lambda: ledger.opt_out(A),
        lambda: ledger.plan(request("run-2"), whole=False),
        lambda: ledger.rotate(SigningKey.generate()),
    ):
        store.failing = True
        with pytest.raises(SecurityRefused, match="No space"):
            call()
        assert bytes_of(store) == before
        state = ledger.state()
        assert (len(state.reserved), list(state.spent), list(state.plans)) == (
            1,
            ["all"],
            ["run-1"],
        )
    reserve(ledger, 2)  # under the old key, in the old cohort
    assert kinds(store)[-1] == "reserve"


def test_a_release_that_was_not_written_sends_nothing_and_can_be_tried_again() -> None:
    store = FailsOnce()
    ledger = new_ledger(store)
    ledger.plan(request())
    grant = reserve(ledger)
    store.failing = True
    with pytest.raises(SecurityRefused, match="No space"):
        ledger.release(grant, b"noisy")
    assert ledger.stored(run="run-1", number=1, model_sha256="b" * 64) is None
    ledger.release(grant, b"noisy")
    assert ledger.stored(run="run-1", number=1, model_sha256="b" * 64) == b"noisy"


def test_entries_that_are_written_together_are_all_refused_for_one() -> None:
    store, key = MemoryStore(), SigningKey.generate()
    new_ledger(store, key=key)
    journal, before = Journal(store, key, lambda: datetime.now(UTC), lambda: None), bytes_of(store)
    with pytest.raises(PrivacyRefused, match="nothing was written"), journal.transaction():
        journal.append(
            journal.entry("cohort", details={"name": "b"}),
            journal.entry(
                "reserve",
                details={
                    "plan": 1,
                    "purpose": "train",
                    "cohorts": ["all"],
                    "noise": "secure",
                    "opt_outs": "0" * 64,
                },
            ),
        )
    assert bytes_of(store) == before
    with journal.transaction() as state:
        assert list(state.spent) == ["all"]


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_damaged_entry_stops_everything_and_is_named(at: int) -> None:
    store, key = MemoryStore(), SigningKey.generate()
    ledger = new_ledger(store, key=key)
    ledger.plan(request())
    one_round(ledger)
    lines = bytes_of(store).splitlines(keepends=True)
    lines[at] = lines[at].replace(b'"site":"clinic"', b'"site":"clinik"')
    store.set_aside(0)
    store.append(b"".join(lines))
    damaged = bytes_of(store)
    calls: list[Callable[[], object]] = [lambda: Ledger(store, key)]
    if at == 3:  # a process that goes on has checked the entries before its last one already
        calls.append(lambda: reserve(ledger, 2))
    for call in calls:
        with pytest.raises(SecurityRefused, match=f"entry {at} has a fault") as caught:
            call()
        assert "confed audit verify" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert bytes_of(store) == damaged


def test_an_exception_inside_of_a_transaction_frees_the_lock() -> None:
    store, key = MemoryStore(), SigningKey.generate()
    new_ledger(store, key=key)
    journal = Journal(store, key, lambda: datetime.now(UTC), lambda: None)
    with pytest.raises(KeyError), journal.transaction():
        raise KeyError("anything")
    with journal.transaction() as state:
        assert state.seq == 0


def test_times_are_utc_to_the_second() -> None:
    assert stamp(datetime(2026, 3, 2, 8, 5, 9, 999, tzinfo=UTC)) == "2026-03-02T08:05:09Z"
    store = MemoryStore()
    new_ledger(store)
    assert parse_line(bytes_of(store)[:-1]).entry.ts.endswith("Z")


def test_a_fault_is_told_in_one_line() -> None:
    told = damage(Fault(seq=7, code="chain", text="expected a, got b"))
    assert told.startswith(
        "Expected a whole ledger, entry 7 has a fault (chain): expected a, got b"
    )
