"""Where a ledger's lines lie: one append-only file under a lock, and the bytes of releases.

Every write is complete on disk before the call returns, or it has left no trace.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from common.durable import sync_folder, write_atomic
from common.errors import SecurityRefused

LEDGER_NAME: Final = "ledger.jsonl"
KEY_NAME: Final = "signing-key.pem"
PUBLIC_NAME: Final = "public-key.pem"
LOCK_SECONDS: Final = 10.0
"""How long a process waits for another one's transaction, which takes milliseconds."""
_POLL: Final = 0.005


class LedgerStore(Protocol):
    """What a ledger needs of its storage."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold everybody else off; no other call is made outside of it."""

    def read(self, offset: int) -> bytes:
        """Every byte from `offset` on."""

    def append(self, data: bytes) -> None:
        """Write at the end and make it durable, or leave everything as it was."""

    def set_aside(self, offset: int) -> None:
        """Move what lies from `offset` on out of the way, durably."""

    def keep(self, name: str, payload: bytes) -> None:
        """Store the bytes of a release, durably."""

    def kept(self, name: str) -> bytes | None:
        """The bytes of a release, or None."""

    def drop(self, name: str) -> None:
        """Forget the bytes of a release."""


class LedgerFile:
    """A folder with `ledger.jsonl` and `outbox/`, both the owner's alone.

    Args:
        folder: made if it is not there.
        wait: seconds until a lock that another process holds is given up.

    Raises:
        SecurityRefused: the folder cannot be written to, or the ledger is a link or no plain file.
    """

    def __init__(self, folder: Path, *, wait: float = LOCK_SECONDS) -> None:
        self.folder, self.path, self._wait = folder, folder / LEDGER_NAME, wait
        self._number: int | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
                raise SecurityRefused(f"Expected {self.path} to be a plain file, got another kind.")
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(self.path, flags, 0o600))
            sync_folder(folder)
        except OSError as error:
            raise _unwritable(self.path, error) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """As LedgerStore.

        Raises:
            SecurityRefused: another process holds the ledger, or the file system has no locks.
        """
        try:
            number = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        try:
            _lock(number, self.path, self._wait)
            self._number = number
            yield
        finally:
            self._number = None
            with contextlib.suppress(OSError):  # a child forked meanwhile holds the file open too
                fcntl.flock(number, fcntl.LOCK_UN)
            os.close(number)

    def _file(self) -> int:
        if self._number is None:
            raise SecurityRefused("Expected the ledger to be locked before it is touched.")
        return self._number

    def read(self, offset: int) -> bytes:
        """As LedgerStore."""
        number = self._file()
        parts, at = [], offset
        while block := os.pread(number, 1 << 20, at):
            parts.append(block)
            at += len(block)
        return b"".join(parts)

    def append(self, data: bytes) -> None:
        """As LedgerStore.

        Raises:
            SecurityRefused: the disk is full or not writable; the ledger's bytes are unchanged.
        """
        number = self._file()
        size = os.fstat(number).st_size
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(number, data[written:], size + written)
            os.fsync(number)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(number, size)
                os.fsync(number)
            raise _unwritable(self.path, error) from None

    def set_aside(self, offset: int) -> None:
        """As LedgerStore; the bytes go to a file beside the ledger."""
        torn = self.read(offset)
        name = f"torn-{hashlib.sha256(torn).hexdigest()[:12]}"
        try:
            write_atomic(self.folder / name, torn, mode=0o600)
            os.ftruncate(self._file(), offset)
            os.fsync(self._file())
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def keep(self, name: str, payload: bytes) -> None:
        """As LedgerStore.

        Raises:
            SecurityRefused: the disk is full or not writable.
        """
        try:
            (self.folder / "outbox").mkdir(exist_ok=True, mode=0o700)
            write_atomic(self.folder / "outbox" / name, payload, mode=0o600)
        except OSError as error:
            raise _unwritable(self.folder / "outbox", error) from None

    def kept(self, name: str) -> bytes | None:
        """As LedgerStore."""
        try:
            return (self.folder / "outbox" / name).read_bytes()
        except OSError:
            return None

    def drop(self, name: str) -> None:
        """As LedgerStore."""
        with contextlib.suppress(OSError):
            (self.folder / "outbox" / name).unlink()


def _lock(number: int, path: Path, wait: float) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise SecurityRefused(
                    f"Expected {path} to be free, another process has held it for "
                    f"{wait:.3g} s; end that process."
                ) from None
            time.sleep(_POLL)
        except OSError as error:
            raise SecurityRefused(
                f"Expected a file system with locks under {path.parent}, got "
                f"'{error.strerror}'; move the ledger to a local disk."
            ) from None
        else:
            return


def _unwritable(path: Path, error: OSError) -> SecurityRefused:
    told = f"Expected to write {path}, got '{error.strerror}'; nothing was sent."
    return SecurityRefused(told)
