"""What every storage of a ledger must give: the same tests for memory and for files."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import pytest

from common.accounting import spent
from common.caps import SiteCaps
from common.chain import State
from common.entries import parse_line
from common.errors import ConfigError, OrderError, PrivacyRefused
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


class StorageSuite(ABC):
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


class LedgerSuite(StorageSuite):
    """Plans, reservations, releases and the budget."""

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
