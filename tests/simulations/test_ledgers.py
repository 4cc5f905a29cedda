import pickle
from pathlib import Path

import pytest

from common.ledger import Ledger, PlanRequest
from common.ledger_file import KEY_NAME, LEDGER_NAME, PUBLIC_NAME, LedgerStore
from common.signing import read_public_key
from common.spending import events_of, noise_of
from common.verification import verify
from simulations.ledgers import FolderLedgers, MemoryLedgers, MemoryStore, caps_for
from simulations.unprotected import NoLedger
from tests.common.ledger_history_suite import HistorySuite
from tests.common.ledger_suite import A, LedgerSuite, StorageSuite, one_round
from tests.models import run_plan, site_of


class InMemory(StorageSuite):
    def make(self, tmp_path: Path) -> LedgerStore:
        return MemoryStore()

    def again(self, store: LedgerStore) -> LedgerStore:
        return store


class TestRoundsInMemory(InMemory, LedgerSuite):
    pass


class TestHistoryInMemory(InMemory, HistorySuite):
    pass


def test_each_site_of_each_run_has_a_new_ledger_in_memory() -> None:
    source, plan = MemoryLedgers(), run_plan()
    one, two = source(site_of(), plan, "1"), source(site_of(), plan, "1")
    assert isinstance(one, Ledger)
    assert isinstance(two, Ledger)
    assert one.public_key != two.public_key


@pytest.mark.parametrize("privacy", [{"noise_multiplier": 1.0}, {"epsilon": 3.0}])
def test_a_simulated_owner_allows_exactly_what_the_plan_costs(privacy: dict[str, object]) -> None:
    plan = run_plan(privacy={"noise_multiplier": None, **privacy})
    ledger = MemoryLedgers()(site_of(), plan, "1")
    assert isinstance(ledger, Ledger)
    events = events_of(plan, noise_of(plan))
    ledger.plan(PlanRequest(run="1", events=events, max_grad_norm=1.0, plan_sha256=A))
    for number in range(1, plan.federation.rounds + 1):
        one_round(ledger, number, "1")
    assert ledger.rounds_left(events["train"][0]) == 0
    assert ledger.spent().epsilon <= caps_for(plan).epsilon


def test_ledgers_in_a_folder_are_real_and_shared_by_processes(tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(FolderLedgers(tmp_path)))  # noqa: S301
    plan = run_plan()
    first, again = (source(site_of(), plan, "1") for _ in range(2))
    assert isinstance(first, Ledger)
    assert isinstance(again, Ledger)
    assert first.public_key == again.public_key
    first.add_cohort("b")
    folder = tmp_path / "north"
    found = verify((folder / LEDGER_NAME).read_bytes(), read_public_key(folder / PUBLIC_NAME))
    assert found.passed
    assert list(found.by_cohort) == ["all", "b"]


def test_what_is_left_of_a_run_holds_no_private_key_and_no_payload(tmp_path: Path) -> None:
    source, plan = FolderLedgers(tmp_path), run_plan()
    ledger = source(site_of(), plan, "1")
    assert isinstance(ledger, Ledger)
    event, _ = events_of(plan, noise_of(plan))["train"]
    request = PlanRequest(run="1", events={"train": (event, 1)}, max_grad_norm=1.0, plan_sha256=A)
    ledger.plan(request)
    one_round(ledger, 1, "1")
    assert (tmp_path / "north" / KEY_NAME).exists()
    source.forget_keys()
    left = {p.name for p in (tmp_path / "north").rglob("*")}
    assert left == {LEDGER_NAME, PUBLIC_NAME}
    FolderLedgers(tmp_path / "none").forget_keys()


def test_a_run_without_privacy_has_no_ledger(tmp_path: Path) -> None:
    plan = run_plan(privacy={"private": False, "noise_multiplier": None})
    for source in (MemoryLedgers(), FolderLedgers(tmp_path)):
        assert isinstance(source(site_of(), plan, "1"), NoLedger)
    assert not list(tmp_path.iterdir())
