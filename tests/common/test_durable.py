import errno
import os
import stat
from pathlib import Path

import pytest

from common.durable import write_atomic
from tests.children import FSYNC, deny, fork, in_child, kill_me, largest_file, needs_seccomp
from tests.children import ended as exit_status


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_whole_with_its_mode_and_no_draft_beside_it(tmp_path: Path) -> None:
    write_atomic(tmp_path / "new" / "a.bin", b"one", mode=0o600)
    write_atomic(tmp_path / "new" / "a.bin", b"two", mode=0o600)
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"two"
    assert stat.S_IMODE((tmp_path / "new" / "a.bin").stat().st_mode) == 0o600
    assert names(tmp_path / "new") == ["a.bin"]


def _failing(path: Path) -> int:
    try:
        write_atomic(path, b"x" * 5000)
    except OSError as error:
        return int(error.errno or 0)
    return 0


def test_on_a_full_disk_the_old_file_stays_and_no_draft_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")

    def body() -> int:
        largest_file(1000)
        return _failing(path)

    assert in_child(body) == {"value": errno.EFBIG}
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@needs_seccomp
def test_what_was_not_synced_does_not_replace_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")

    def body() -> int:
        deny(FSYNC, errno.EIO)
        return _failing(path)

    assert in_child(body) == {"value": errno.EIO}
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_process_killed_while_it_writes_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")

    def body() -> None:
        monkeypatch.setattr(os, "fsync", lambda _number: kill_me())
        write_atomic(path, b"new")

    assert exit_status(fork(body)) < 0
    assert path.read_bytes() == b"old"
    write_atomic(path, b"newer")
    assert path.read_bytes() == b"newer"
