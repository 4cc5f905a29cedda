"""What a ledger's storage must give beyond rounds: cohorts, plans that follow results, opt-outs,
keys, receipts, backups and torn tails; the same tests for memory and for files.
"""

import itertools

import pytest

from common.accounting import spent
from common.caps import SiteCaps
from common.entries import NO_HASH, parse_line
from common.errors import ConfigError, OrderError, PrivacyRefused, SecurityRefused
from common.ledger import Ledger
from common.ledger_file import LedgerStore
from common.mechanism import Gaussian, Repeated
from common.randomness import SecureRandomness
from common.signing import SigningKey
from common.verification import verify
from tests.common.ledger_suite import (
    CAPS,
    OTHER,
    STEP,
    A,
    B,
    C,
    StorageSuite,
    bytes_of,
    kinds,
    new_ledger,
    one_round,
    receipt_for,
    request,
    reserve,
    verdict_of,
)


class HistorySuite(StorageSuite):
    """Everything that a ledger records besides rounds."""

    # Cohorts

    def test_a_new_cohort_begins_at_nothing_and_the_old_one_goes_on(
        self, store: LedgerStore
    ) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        one_round(ledger)
        ledger.add_cohort("year-2")
        one_round(ledger, 2)
        found = verdict_of(store)
        assert found.passed
        assert (
            found.by_cohort["all"].epsilon
            == spent(Repeated(count=2, event=STEP), delta=CAPS.delta).epsilon
        )
        assert found.by_cohort["year-2"].epsilon == spent(STEP, delta=CAPS.delta).epsilon
        assert found.spent == found.by_cohort["all"]  # in parallel: the largest, not the sum

    def test_a_cohort_whose_budget_is_spent_stops_all(self, store: LedgerStore) -> None:
        ledger = new_ledger(store)
        most = ledger.rounds_left(STEP)
        ledger.plan(request(events={"train": (STEP, 60)}), whole=False)
        for number in range(1, most + 1):
            one_round(ledger, number)
        ledger.add_cohort("newcomers")
        with pytest.raises(PrivacyRefused, match="nothing was spent"):
            reserve(ledger, most + 1)
        assert verdict_of(store).by_cohort["newcomers"].epsilon == 0

    def test_a_cohort_has_one_name_and_there_are_not_too_many(self, store: LedgerStore) -> None:
        ledger = new_ledger(store)
        for name in ("all", "../x", "Mrs Miller, born 1970"):
            with pytest.raises((OrderError, ConfigError)):
                ledger.add_cohort(name)
        for number in range(2, 65):
            ledger.add_cohort(f"c{number}")
        with pytest.raises(OrderError, match="at most 64"):
            ledger.add_cohort("c65")
        ledger.plan(request())
        reserve(ledger)  # every reservation names them all
        assert verdict_of(store).passed

    # Plans that may depend on results

    def test_a_plan_after_a_release_is_counted_by_the_filter_and_keeps_the_budget(
        self, store: LedgerStore
    ) -> None:
        ledger = new_ledger(store)
        ledger.plan(request("run-1"))
        one_round(ledger)
        assert not verdict_of(store).adaptive
        ledger.plan(request("run-2", {"train": (OTHER, 90)}), whole=False)
        done = _until_refused(ledger, "run-2")
        assert done > 0
        found = verdict_of(store)
        assert found.passed
        assert found.adaptive
        assert "Renyi" in found.spent.accountant
        assert found.spent.epsilon <= CAPS.epsilon

    def test_what_was_known_to_fit_is_counted_anew_once_plans_may_depend_on_results(
        self, store: LedgerStore
    ) -> None:
        """A whole run that PLD allows may be more than the filter allows."""
        whole = Repeated(count=6, event=STEP)
        exact = spent(whole, delta=CAPS.delta).epsilon
        ledger = new_ledger(store, SiteCaps(epsilon=exact, delta=CAPS.delta))
        ledger.plan(request())
        one_round(ledger)
        small = Gaussian(noise_multiplier=1000.0)
        ledger.plan(request("run-2", {"train": (small, 1)}))
        done = _until_refused(ledger, "run-1", first=2)
        assert done < 5
        found = verdict_of(store)
        assert found.adaptive
        assert found.passed

    def test_choosing_among_plans_by_what_one_released_is_counted_by_the_filter(
        self, store: LedgerStore
    ) -> None:
        ledger = new_ledger(store)
        ledger.plan(request("run-1"))
        ledger.plan(request("run-2", {"train": (OTHER, 90)}), whole=False)
        one_round(ledger, 1, "run-1")
        assert not ledger.state().adaptive
        one_round(ledger, 1, "run-2")
        assert ledger.state().adaptive
        _until_refused(ledger, "run-2", first=2)
        _until_refused(ledger, "run-1", first=2)
        assert verdict_of(store).passed

    def test_a_run_up_to_the_last_of_the_budget_leaves_nothing_for_one_that_follows_it(
        self, store: LedgerStore
    ) -> None:
        """Declared before or after: its reservation, or its plan, would break the filter."""
        exact = spent(Repeated(count=6, event=STEP), delta=CAPS.delta).epsilon
        ledger = new_ledger(store, SiteCaps(epsilon=exact * 1.001, delta=CAPS.delta))
        small = {"train": (Gaussian(noise_multiplier=1000.0), 2)}
        ledger.plan(request())
        ledger.plan(request("run-2", small))
        for number in range(1, 7):
            one_round(ledger, number)
        before = bytes_of(store)
        with pytest.raises(PrivacyRefused, match="nothing was spent"):
            reserve(ledger, 1, "run-2")
        for whole in (True, False):
            with pytest.raises(PrivacyRefused, match="nothing was spent"):
                ledger.plan(request("run-3", small), whole=whole)
        assert bytes_of(store) == before
        assert verdict_of(store).passed

    # Opt-outs, keys, receipts

    def test_a_reservation_names_the_opt_outs_in_force(self, store: LedgerStore) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        reserve(ledger)
        ledger.opt_out(C)
        ledger.opt_out(C)
        reserve(ledger)
        named = [
            entry.details["opt_outs"]
            for line in bytes_of(store).splitlines()
            if (entry := parse_line(line).entry).kind == "reserve"
        ]
        assert named == [NO_HASH, C]
        assert kinds(store).count("opt-out") == 1

    def test_a_list_of_opt_outs_that_is_gone_is_not_taken_for_an_empty_one(
        self, store: LedgerStore
    ) -> None:
        ledger = new_ledger(store)
        ledger.opt_out(NO_HASH)  # there never was one
        ledger.opt_out(C)
        before = bytes_of(store)
        with pytest.raises(SecurityRefused, match="bring it back"):
            ledger.opt_out(NO_HASH)
        assert bytes_of(store) == before

    def test_after_a_rotation_the_new_key_signs_and_the_old_one_is_refused(
        self, store: LedgerStore
    ) -> None:
        old, new = SigningKey.generate(), SigningKey.generate()
        ledger, beside = new_ledger(store, key=old), Ledger(self.again(store), old)
        ledger.rotate(new)
        ledger.plan(request())
        before = bytes_of(store)
        with pytest.raises(SecurityRefused, match="key in force"):
            beside.add_cohort("late")
        with pytest.raises(SecurityRefused, match="signing key"):
            Ledger(self.again(store), old)
        assert bytes_of(store) == before
        Ledger(self.again(store), new).add_cohort("late")
        found = verify(bytes_of(store), old.public)
        assert found.passed
        assert found.state.keys == [old.public, new.public]

    def test_a_receipt_is_kept_with_the_reservation_in_one_write(self, store: LedgerStore) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        one_round(ledger)
        receipt = receipt_for(ledger.state())
        ledger.reserve(
            run="run-1",
            number=2,
            model_sha256=B,
            randomness=SecureRandomness(),
            receipt=receipt.details(),
        )
        assert kinds(store)[-2:] == ["receipt", "reserve"]
        assert verdict_of(store).receipts == 1

    def test_a_receipt_of_another_past_stops_the_reservation_too(self, store: LedgerStore) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        one_round(ledger)
        good, before = receipt_for(ledger.state()).details(), bytes_of(store)
        for wrong in ({"head": A}, {"seq": 99}, {"seq": 1}, {"signature": "0" * 128}, {"round": 2}):
            with pytest.raises(SecurityRefused):
                ledger.reserve(
                    run="run-1",
                    number=2,
                    model_sha256=B,
                    randomness=SecureRandomness(),
                    receipt={**good, **wrong},
                )
            with pytest.raises(SecurityRefused):
                ledger.acknowledge("run-1", {**good, **wrong})
        assert bytes_of(store) == before

    def test_two_objects_on_one_ledger_see_each_others_entries(self, store: LedgerStore) -> None:
        one = new_ledger(store)
        two = Ledger(self.again(store), one._journal.key)
        one.plan(request())
        for number, ledger in zip(range(1, 7), itertools.cycle((one, two)), strict=False):
            one_round(ledger, number)
        assert one.spent() == two.spent()
        assert verdict_of(store).passed

    def test_a_ledger_that_was_put_back_from_a_backup_is_refused_by_a_process_that_saw_more(
        self, store: LedgerStore
    ) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        backup = bytes_of(store)
        one_round(ledger)
        _put(store, backup)
        for _ in range(2):
            with pytest.raises(SecurityRefused, match="old backup or a fork"):
                reserve(ledger, 2)
        reserve(Ledger(self.again(store), ledger._journal.key), 1)  # as long as before, a fork
        with pytest.raises(SecurityRefused, match="old backup or a fork"):
            reserve(ledger, 2)

    def test_a_torn_tail_is_set_aside_and_what_follows_goes_on(self, store: LedgerStore) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        whole = bytes_of(store)
        reserve(ledger)
        torn = bytes_of(store)[:-1]
        _put(store, torn)
        opened = Ledger(self.again(store), ledger._journal.key)
        assert bytes_of(store) == whole
        one_round(opened)
        assert verdict_of(store).passed

    def test_an_empty_or_a_used_storage_is_told_apart(self, store: LedgerStore) -> None:
        key = SigningKey.generate()
        with pytest.raises(OrderError, match="genesis"):
            Ledger(store, key)
        new_ledger(store, key=key)
        before = bytes_of(store)
        with pytest.raises(SecurityRefused, match="never overwritten"):
            new_ledger(self.again(store), key=key)
        with pytest.raises(SecurityRefused, match="signing key"):
            Ledger(self.again(store), SigningKey.generate())
        assert bytes_of(store) == before

    def test_lines_after_a_number_are_the_rest_of_the_ledger(self, store: LedgerStore) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        one_round(ledger)
        whole = bytes_of(store)
        assert ledger.lines_after(-1) == whole
        assert ledger.lines_after(1) == b"".join(whole.splitlines(keepends=True)[2:])
        assert ledger.lines_after(3) == b""

    def test_a_ledger_knows_its_own_heads_alone(self, store: LedgerStore) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        heads = ledger.state().heads
        assert all(ledger.knows(seq, head) for seq, head in enumerate(heads))
        assert not ledger.knows(0, heads[1])
        assert not ledger.knows(2, heads[1])
        assert not ledger.knows(-1, heads[-1])


def _until_refused(ledger: Ledger, run: str, *, first: int = 1) -> int:
    """Go through a run's rounds until the budget or the plan ends; how many were answered."""
    rounds = ledger.state().plans[run].events["train"][1]
    for number in range(first, rounds + 1):
        try:
            one_round(ledger, number, run)
        except PrivacyRefused:
            return number - first
    return rounds - first + 1


def _put(store: LedgerStore, data: bytes) -> None:
    with store.locked():
        store.set_aside(0)
        store.append(data)
