from pathlib import Path

from common.ledger_file import LedgerStore
from simulations.ledgers import MemoryStore
from tests.common.ledger_suite import LedgerSuite


class TestLedgerInMemory(LedgerSuite):
    def make(self, tmp_path: Path) -> LedgerStore:
        return MemoryStore()

    def again(self, store: LedgerStore) -> LedgerStore:
        return store
