"""What every storage of a ledger must give: the same tests for memory and for files."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import pytest

from common.accounting import spent
from common.caps import SiteCaps
from common.chain import State
from common.entries import NO_HASH, parse_line
from common.errors import ConfigError, OrderError, PrivacyRefused, SecurityRefused
from common.grant import ReservedGrant
from common.ledger import Ledger, PlanRequest, create_ledger
from common.ledger_file import LedgerStore
from common.mechanism import Composed, Event, Gaussian, PoissonSampled, Repeated
from common.randomness import Randomness, SecureRandomness
from common.receipts import Head, Receipt, countersign
from common.signing import SigningKey
from common.verification import Verdict, verify
from simulations.seeded import SeededRandomness

A, B, C = "a" * 64, "b" * 64, "c" * 64
CAPS = SiteCaps(epsilon=2.0, delta=1e-5, noise_multiplier=0.5, max_grad_norm=1.0, rounds=100)
STEP = PoissonSampled(sample_rate=0.25, event=Gaussian(noise_multiplier=2.0))
OTHER = Gaussian(noise_multiplier=6.0)
WEAK = PoissonSampled(sample_rate=1e-3, event=Gaussian(noise_multiplier=0.45))
Events = Mapping[str, tuple[Event, int]]


def request(run: str = "run-1", events: Events | None = None, clip: float = 1.0) -> PlanRequest:
    asked = {"train": (STEP, 6)} if events is None else events
    return PlanRequest(run=run, events=asked, max_grad_norm=clip, plan_sha256=A)


def new_ledger(store: LedgerStore, caps: SiteCaps = CAPS, key: SigningKey | None = None) -> Ledger:
    key = key if key is not None else SigningKey.generate()
    return create_ledger(store, site="clinic", caps=caps, key=key)


def reserve(
    ledger: Ledger, number: int = 1, run: str = "run-1", purpose: str = "train"
) -> ReservedGrant:
    return ledger.reserve(
        run=run, number=number, model_sha256=B, randomness=SecureRandomness(), purpose=purpose
    )


def one_round(ledger: Ledger, number: int = 1, run: str = "run-1") -> bytes:
    payload = f"{run} {number}".encode()
    ledger.release(reserve(ledger, number, run), payload)
    return payload


def bytes_of(store: LedgerStore) -> bytes:
    with store.locked():
        return store.read(0)


def verdict_of(store: LedgerStore) -> Verdict:
    return verify(bytes_of(store), None)


def kinds(store: LedgerStore) -> list[str]:
    return [parse_line(line).entry.kind for line in bytes_of(store).splitlines()]


def receipt_for(state: State, *, run: str = "run-1", number: int = 1) -> Receipt:
    head = Head(site=state.site, seq=state.seq, head=state.head)
    return countersign([head], run=run, number=number, key=SigningKey.generate())[0]


class LedgerSuite(ABC):
    """Subclasses say where the lines lie; `again` opens the same lines a second time."""

    @abstractmethod
    def make(self, tmp_path: Path) -> LedgerStore:
        """An empty storage."""

    @abstractmethod
    def again(self, store: LedgerStore) -> LedgerStore:
        """The same lines for another process or object."""

    @pytest.fixture()
    def store(self, tmp_path: Path) -> LedgerStore:
        return self.make(tmp_path)

    def test_a_round_is_a_reservation_and_then_a_release(self, store: LedgerStore) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        grant = reserve(ledger)
        assert kinds(store) == ["genesis", "plan", "reserve"]
        assert ledger.stored(run="run-1", number=1, model_sha256=B) is None
        ledger.release(grant, b"noisy")
        assert kinds(store) == ["genesis", "plan", "reserve", "release"]
        assert ledger.stored(run="run-1", number=1, model_sha256=B) == b"noisy"
        assert verdict_of(store).passed

    def test_epsilon_is_that_of_the_reservations_whatever_was_released(
        self, store: LedgerStore
    ) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        for _ in range(3):
            reserve(ledger)
        event = Composed(events=(Repeated(count=3, event=STEP),))
        assert ledger.spent().epsilon == spent(event, delta=CAPS.delta).epsilon
        assert verdict_of(store).spent.epsilon == ledger.spent().epsilon
        assert verdict_of(store).runs[0].released == 0

    def test_a_released_round_is_sent_again_free_and_never_drawn_again(
        self, store: LedgerStore
    ) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        payload, before = one_round(ledger), bytes_of(store)
        opened = Ledger(self.again(store), ledger._journal.key)
        assert opened.stored(run="run-1", number=1, model_sha256=B) == payload
        with pytest.raises(PrivacyRefused, match="new round"):
            reserve(opened)
        with pytest.raises(PrivacyRefused, match="another"):
            opened.stored(run="run-1", number=1, model_sha256=C)
        assert bytes_of(store) == before

    def test_stored_bytes_that_changed_are_not_sent(self, store: LedgerStore) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        one_round(ledger)
        with store.locked():
            store.keep("run-1-000001-train", b"other")
        with pytest.raises(PrivacyRefused, match="gone"):
            ledger.stored(run="run-1", number=1, model_sha256=B)

    def test_a_run_to_refusal_keeps_the_budget_and_one_more_would_not(
        self, store: LedgerStore
    ) -> None:
        ledger = new_ledger(store)
        ledger.plan(request(events={"train": (STEP, 50)}), whole=False)
        left = ledger.rounds_left(STEP)
        with pytest.raises(PrivacyRefused, match=r"needed 0\.\d+ more, left 0\.\d+"):
            for number in range(1, 51):
                one_round(ledger, number)
        done = len(ledger.state().released)
        assert 5 < done == left < 50
        assert ledger.rounds_left(STEP) == 0
        found = verdict_of(store)
        assert found.passed
        assert found.spent.epsilon <= CAPS.epsilon
        assert spent(Repeated(count=done + 1, event=STEP), delta=CAPS.delta).epsilon > CAPS.epsilon

    def test_a_whole_run_over_the_budget_is_refused_before_its_first_round(
        self, store: LedgerStore
    ) -> None:
        ledger = new_ledger(store)
        before = bytes_of(store)
        with pytest.raises(PrivacyRefused, match="nothing was spent"):
            ledger.plan(request(events={"train": (STEP, 100)}))
        assert bytes_of(store) == before

    @pytest.mark.parametrize(
        ("asked", "error", "match"),
        [
            (request(clip=1.5), PrivacyRefused, "max_grad_norm"),
            (request(events={"train": (STEP, 101)}), PrivacyRefused, "rounds"),
            (
                request(events={"train": (WEAK, 1)}),
                PrivacyRefused,
                "noise_multiplier",
            ),
            (request(events={"train": (Composed(events=()), 3)}), ConfigError, "one kind"),
            (request(events={"train": (Composed(events=(STEP, OTHER)), 3)}), ConfigError, "kind"),
            (request(run="../up"), ConfigError, "run to be a name"),
            (request(run=""), PrivacyRefused, "plan"),
            (request(events={"guess": (STEP, 1)}), ConfigError, "purposes"),
        ],
    )
    def test_a_plan_outside_of_the_caps_or_of_any_sense_is_not_written(
        self, store: LedgerStore, asked: PlanRequest, error: type[Exception], match: str
    ) -> None:
        ledger = new_ledger(store)
        before = bytes_of(store)
        with pytest.raises(error, match=match):
            ledger.plan(asked, whole=False)
        assert bytes_of(store) == before
        ledger.plan(request())  # nothing of it is remembered either

    def test_a_cap_on_the_rate_holds(self, store: LedgerStore) -> None:
        ledger = new_ledger(store, SiteCaps(epsilon=2.0, delta=1e-5, sample_rate=0.2))
        with pytest.raises(PrivacyRefused, match="sample_rate"):
            ledger.plan(request(clip=1.0))

    def test_a_plan_declared_twice_is_one_and_a_changed_one_is_refused(
        self, store: LedgerStore
    ) -> None:
        ledger = new_ledger(store)
        assert ledger.plan(request()) == ledger.plan(request())
        with pytest.raises(PrivacyRefused, match="another"):
            ledger.plan(request(events={"train": (STEP, 5)}))
        assert kinds(store) == ["genesis", "plan"]

    def test_a_round_without_a_plan_or_outside_of_it_is_refused(self, store: LedgerStore) -> None:
        ledger = new_ledger(store)
        with pytest.raises(OrderError, match="plan"):
            reserve(ledger)
        ledger.plan(request())
        for number in (-1, 0, 7):
            with pytest.raises(PrivacyRefused, match="between 1 and 6"):
                reserve(ledger, number)
        with pytest.raises(OrderError, match="purpose"):
            reserve(ledger, purpose="evaluate")
        assert kinds(store) == ["genesis", "plan"]

    def test_a_grant_is_released_once_and_none_is_released_without_one(
        self, store: LedgerStore
    ) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        first, second = reserve(ledger), reserve(ledger)
        ledger.release(second, b"sent")
        before = bytes_of(store)
        for grant in (first, second):
            with pytest.raises(OrderError, match="without a release"):
                ledger.release(grant, b"other")
        assert bytes_of(store) == before
        assert ledger.stored(run="run-1", number=1, model_sha256=B) == b"sent"

    def test_seeded_noise_is_recorded_as_no_claim(self, store: LedgerStore) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        seeded: Randomness = SeededRandomness(
            seed=1, site="clinic", round_number=1, purpose="noise"
        )
        ledger.reserve(run="run-1", number=1, model_sha256=B, randomness=seeded)
        assert verdict_of(store).seeded

    def test_two_purposes_of_one_round_are_paid_and_kept_apart(self, store: LedgerStore) -> None:
        ledger = new_ledger(store)
        ledger.plan(request(events={"train": (STEP, 2), "evaluate": (OTHER, 2)}))
        ledger.release(reserve(ledger), b"update")
        ledger.release(reserve(ledger, purpose="evaluate"), b"metric")
        again = [
            ledger.stored(run="run-1", number=1, model_sha256=B, purpose=purpose)
            for purpose in ("train", "evaluate")
        ]
        assert again == [b"update", b"metric"]
        both = Composed(events=(STEP, OTHER))
        assert ledger.spent().epsilon == spent(both, delta=CAPS.delta).epsilon

    def test_the_last_two_rounds_bytes_are_kept_and_older_ones_are_not(
        self, store: LedgerStore
    ) -> None:
        ledger = new_ledger(store)
        ledger.plan(request())
        sent = [one_round(ledger, number) for number in (1, 2, 3)]
        assert ledger.stored(run="run-1", number=2, model_sha256=B) == sent[1]
        assert ledger.stored(run="run-1", number=3, model_sha256=B) == sent[2]
        with pytest.raises(PrivacyRefused, match="gone"):
            ledger.stored(run="run-1", number=1, model_sha256=B)

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
