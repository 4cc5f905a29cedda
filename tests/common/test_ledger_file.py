import errno
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from common.errors import SecurityRefused
from common.ledger import Ledger
from common.ledger_file import LEDGER_NAME, LedgerFile, LedgerStore
from common.signing import SigningKey
from common.site_ledger import open_ledger, start_ledger
from common.verification import verify
from tests.children import (
    FLOCK,
    FSYNC,
    FTRUNCATE,
    deny,
    ended,
    fork,
    in_child,
    largest_file,
    needs_seccomp,
)
from tests.common.ledger_history_suite import HistorySuite
from tests.common.ledger_suite import (
    CAPS,
    LedgerSuite,
    StorageSuite,
    new_ledger,
    one_round,
    request,
    reserve,
)


class InAFile(StorageSuite):
    def make(self, tmp_path: Path) -> LedgerStore:
        return LedgerFile(tmp_path / "ledger")

    def again(self, store: LedgerStore) -> LedgerStore:
        assert isinstance(store, LedgerFile)
        return LedgerFile(store.folder)


class TestRoundsInAFile(InAFile, LedgerSuite):
    pass


class TestHistoryInAFile(InAFile, HistorySuite):
    pass


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def started(folder: Path) -> tuple[Ledger, SigningKey]:
    key = SigningKey.generate()
    ledger = new_ledger(LedgerFile(folder), key=key)
    ledger.plan(request())
    return ledger, key


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(told: dict[str, Any], *words: str) -> None:
    """One line, of the family that ends with exit status 3."""
    assert (told.get("error"), told.get("exit_code")) == ("SecurityRefused", 3), told
    assert "\n" not in told["text"]
    assert all(word in told["text"] for word in words), told["text"]


def test_all_that_a_ledger_writes_is_its_owners_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        ledger, _ = started(tmp_path / "deep" / "ledger")
        one_round(ledger)
    finally:
        os.umask(old)
    folder = tmp_path / "deep" / "ledger"
    assert mode(folder) == 0o700
    assert mode(folder / "outbox") == 0o700
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert {p.name for p in files} == {LEDGER_NAME, "run-1-000001-train"}
    assert {mode(p) for p in files} == {0o600}


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_ledger_that_is_no_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / LEDGER_NAME
    target = tmp_path / "elsewhere"
    if kind == "link":
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(SecurityRefused, match="plain file"):
        LedgerFile(tmp_path)
    assert not target.exists()


def test_a_ledger_that_became_a_link_while_it_was_used_is_refused(tmp_path: Path) -> None:
    ledger, _ = started(tmp_path)
    path, moved = tmp_path / LEDGER_NAME, tmp_path / "moved"
    path.rename(moved)
    before = moved.read_bytes()
    with pytest.raises(SecurityRefused, match="No such file"):
        reserve(ledger)
    path.symlink_to(moved)
    with pytest.raises(SecurityRefused, match="nothing was sent"):
        reserve(ledger)
    assert moved.read_bytes() == before


def test_bytes_are_touched_under_the_lock_alone(tmp_path: Path) -> None:
    store = LedgerFile(tmp_path)
    for call in (lambda: store.read(0), lambda: store.append(b"x"), lambda: store.set_aside(0)):
        with pytest.raises(SecurityRefused, match="locked"):
            call()


def test_a_second_process_that_finds_the_lock_held_says_so_in_one_line(tmp_path: Path) -> None:
    ledger, key = started(tmp_path)
    before = contents(tmp_path)
    with LedgerFile(tmp_path).locked():
        start = time.monotonic()
        told = in_child(lambda: Ledger(LedgerFile(tmp_path, wait=0.2), key))
        waited = time.monotonic() - start
    refused(told, "another process has held it for 0.2 s", "end that process")
    assert 0.2 <= waited < 5
    assert contents(tmp_path) == before
    reserve(ledger)


def test_a_process_waits_for_a_short_transaction_of_another(tmp_path: Path) -> None:
    ledger, _ = started(tmp_path)
    held = threading.Event()

    def hold() -> None:
        with LedgerFile(tmp_path).locked():
            held.set()
            time.sleep(0.15)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    reserve(ledger)
    thread.join()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    ledger, _ = started(tmp_path)

    def hold() -> None:
        with LedgerFile(tmp_path).locked():
            os._exit(0)

    assert ended(fork(hold)) == 0
    reserve(ledger)


def test_a_child_that_was_forked_under_the_lock_does_not_hold_it_on(tmp_path: Path) -> None:
    started(tmp_path)
    reading, writing = os.pipe()
    with LedgerFile(tmp_path).locked():
        child = fork(lambda: os.read(reading, 1))
    try:
        with LedgerFile(tmp_path, wait=0.2).locked():
            pass
    finally:
        os.write(writing, b"x")
        assert ended(child) == 0


# A disk that is full, read-only, without locks, or broken


def test_a_disk_that_is_full_at_the_reservation_spends_and_sends_nothing(tmp_path: Path) -> None:
    ledger, key = started(tmp_path)
    one_round(ledger)
    before = contents(tmp_path)
    largest = (tmp_path / LEDGER_NAME).stat().st_size + 100

    def body() -> str:
        opened = Ledger(LedgerFile(tmp_path), key)
        largest_file(largest)
        reserve(opened, 2)
        return "a grant"

    refused(in_child(body), "File too large", "nothing was sent")
    assert contents(tmp_path) == before
    reserve(ledger, 2)


def test_a_disk_that_is_full_at_the_payload_sends_nothing_and_the_round_stays_paid(
    tmp_path: Path,
) -> None:
    ledger, key = started(tmp_path)
    size = (tmp_path / LEDGER_NAME).stat().st_size

    def body() -> str:
        opened = Ledger(LedgerFile(tmp_path), key)
        grant = reserve(opened)
        largest_file(size + 2000)
        return opened.release(grant, b"\0" * 10_000)

    refused(in_child(body), "File too large", "nothing was sent")
    state = verify((tmp_path / LEDGER_NAME).read_bytes(), key.public).state
    assert (len(state.reserved), len(state.released)) == (1, 0)
    assert not [p for p in (tmp_path / "outbox").iterdir() if p.stat().st_size]
    assert ledger.stored(run="run-1", number=1, model_sha256="b" * 64) is None


def test_a_disk_that_is_full_at_the_release_sends_nothing(tmp_path: Path) -> None:
    _, key = started(tmp_path)

    def body() -> str:
        opened = Ledger(LedgerFile(tmp_path), key)
        grant = reserve(opened)
        (tmp_path / "before").write_bytes((tmp_path / LEDGER_NAME).read_bytes())
        largest_file((tmp_path / LEDGER_NAME).stat().st_size + 100)
        return opened.release(grant, b"small")

    refused(in_child(body), "File too large", "nothing was sent")
    before = (tmp_path / "before").read_bytes()
    assert (tmp_path / LEDGER_NAME).read_bytes() == before
    opened = Ledger(LedgerFile(tmp_path), key)
    assert opened.stored(run="run-1", number=1, model_sha256="b" * 64) is None


@needs_seccomp
@pytest.mark.parametrize("cut", [True, False], ids=["cut back", "not even cut back"])
def test_a_disk_that_does_not_sync_gives_no_grant(tmp_path: Path, cut: bool) -> None:
    _, key = started(tmp_path)
    before = (tmp_path / LEDGER_NAME).read_bytes()

    def body() -> str:
        opened = Ledger(LedgerFile(tmp_path), key)
        deny(FSYNC, errno.EIO)
        if not cut:
            deny(FTRUNCATE, errno.EIO)
        reserve(opened)
        return "a grant"

    refused(in_child(body), "Input/output error", "nothing was sent")
    after = (tmp_path / LEDGER_NAME).read_bytes()
    assert after.startswith(before)
    assert (after == before) == cut  # else one too many is counted, never one too few
    assert verify(after, key.public).passed


@needs_seccomp
def test_a_file_system_without_locks_is_refused(tmp_path: Path) -> None:
    _, key = started(tmp_path)
    before = contents(tmp_path)

    def body() -> str:
        deny(FLOCK, errno.ENOLCK)
        Ledger(LedgerFile(tmp_path), key)
        return "opened"

    refused(in_child(body), "file system with locks", "move the ledger to a local disk")
    assert contents(tmp_path) == before


@pytest.fixture()
def open_folder() -> Iterator[Path]:
    """A folder that another user may reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="confed-test-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    rmtree(folder)


def as_an_ordinary_user(folder: Path, body: Callable[[], object]) -> dict[str, Any]:
    """Run a child that file modes bind: as nobody where the tests run as root."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534)

    def changed() -> object:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        return body()

    return in_child(changed)


def test_a_read_only_ledger_is_refused_and_stays_as_it_was(open_folder: Path) -> None:
    ledger = start_ledger(open_folder / "site", site="clinic", caps=CAPS)
    ledger.plan(request())
    folder = open_folder / "site"
    before = contents(folder)
    (folder / LEDGER_NAME).chmod(0o400)
    told = as_an_ordinary_user(folder, lambda: bool(open_ledger(folder, site="clinic")))
    refused(told, "Permission denied", "nothing was sent")
    assert contents(folder) == before


def test_a_read_only_folder_is_refused_before_a_payload_leaves(open_folder: Path) -> None:
    folder = open_folder / "site"
    ledger = start_ledger(folder, site="clinic", caps=CAPS)
    ledger.plan(request())

    def body() -> str:
        opened = open_ledger(folder, site="clinic")
        grant = reserve(opened)
        folder.chmod(0o500)
        return opened.release(grant, b"noisy")

    refused(as_an_ordinary_user(folder, body), "Permission denied", "nothing was sent")
    data = (folder / LEDGER_NAME).read_bytes()
    state = verify(data, None).state
    assert (len(state.reserved), len(state.released)) == (1, 0)


def test_a_folder_that_cannot_be_made_is_refused(open_folder: Path) -> None:
    open_folder.chmod(0o500)

    def body() -> bool:
        return bool(LedgerFile(open_folder / "new"))

    refused(as_an_ordinary_user(open_folder, body), "Permission denied")


def test_a_torn_tail_that_cannot_be_set_aside_stays_and_stops_everything(
    open_folder: Path,
) -> None:
    folder = open_folder / "site"
    start_ledger(folder, site="clinic", caps=CAPS)
    with (folder / LEDGER_NAME).open("ab") as file:
        file.write(b'{"details":')
    before = contents(folder)
    folder.chmod(0o500)

    def body() -> list[str]:
        said = []
        for _ in range(2):
            try:
                open_ledger(folder, site="clinic")
            except SecurityRefused as error:
                said.append(str(error))
        return said

    told = as_an_ordinary_user(folder, body)
    assert len(told["value"]) == 2
    assert all("Permission denied" in text for text in told["value"])
    assert contents(folder) == before
    folder.chmod(0o700)
    assert open_ledger(folder, site="clinic").state().seq == 0
    assert [p.read_bytes() for p in folder.glob("torn-*")] == [b'{"details":']
