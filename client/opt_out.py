"""Subjects who left: in no batch from the next round on; what was spent on them stays spent.

Sensitive: the list and its salt, files of the site alone. Public: the commitment, which says that
the list changed and neither who left nor how many.
"""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.durable import write_atomic
from common.entries import NO_HASH
from common.errors import ConfigError, DataError
from common.limits import LIMITS

LIST_NAME: Final = "opt-outs.txt"
SALT_NAME: Final = "opt-outs.salt"


@dataclass(frozen=True, kw_only=True, repr=False)
class OptOuts:
    """A list as it is at one moment.

    Attributes:
        subjects: ids.
        commitment: SHA-256 under the site's salt; NO_HASH for an empty list that always was.
    """

    subjects: frozenset[str]
    commitment: str

    def positions(self, subject_ids: tuple[str, ...]) -> NDArray[np.int64]:
        """Where those that left stand among the site's subjects, int64[k]."""
        found = [i for i, subject in enumerate(subject_ids) if subject in self.subjects]
        return np.array(found, np.int64)


NOBODY: Final = OptOuts(subjects=frozenset(), commitment=NO_HASH)


def read_opt_outs(folder: Path) -> OptOuts:
    """The list in a ledger's folder; nobody where there never was one.

    Raises:
        ConfigError: the list or its salt is gone or cannot be read; training would be wrong.
    """
    path = folder / LIST_NAME
    try:
        written, salt = _read(path), _read(folder / SALT_NAME)
        text = "" if written is None else written.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"Expected {path} to be readable UTF-8 text.") from None
    subjects = frozenset(line.strip() for line in text.splitlines() if line.strip())
    if salt is None and not subjects:
        return NOBODY
    if salt is None or written is None:
        missing = LIST_NAME if written is None else SALT_NAME
        raise ConfigError(
            f"Expected {LIST_NAME} and {SALT_NAME} in {folder}, {missing} is missing; bring it "
            "back, or add every subject by `confed site opt-out`."
        )
    body = "\n".join(sorted(subjects)).encode()
    return OptOuts(subjects=subjects, commitment=hashlib.sha256(salt + body).hexdigest())


def add_opt_out(folder: Path, subject: str) -> OptOuts:
    """Put a subject on the list, durably; twice is once.

    Raises:
        DataError: no id, or one that cannot be one.
        ConfigError: the folder cannot be written to.
    """
    subject = subject.strip()
    if not 0 < len(subject) <= LIMITS.id_characters or not subject.isprintable():
        raise DataError(f"Expected one subject id of 1 to {LIMITS.id_characters} characters.")
    try:
        with _alone(folder):
            if not (folder / LIST_NAME).exists() and not (folder / SALT_NAME).exists():
                write_atomic(folder / LIST_NAME, b"", mode=0o600)
            if not (folder / SALT_NAME).exists():
                write_atomic(folder / SALT_NAME, secrets.token_bytes(32), mode=0o600)
            known = read_opt_outs(folder).subjects
            text = "".join(f"{one}\n" for one in sorted(known | {subject}))
            write_atomic(folder / LIST_NAME, text.encode(), mode=0o600)
            return read_opt_outs(folder)
    except OSError as error:
        raise ConfigError(f"Expected to write into {folder}, got '{error.strerror}'.") from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold other writers of the list off: two that read and write at once would lose a subject."""
    number = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
