from pathlib import Path

from common.ledger_file import LedgerFile, LedgerStore
from tests.common.ledger_suite import LedgerSuite


class TestLedgerInAFile(LedgerSuite):
    def make(self, tmp_path: Path) -> LedgerStore:
        return LedgerFile(tmp_path / "ledger")

    def again(self, store: LedgerStore) -> LedgerStore:
        assert isinstance(store, LedgerFile)
        return LedgerFile(store.folder)
