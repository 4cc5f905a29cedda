"""Subjects who left: in no batch from the next round on; what was spent on them stays spent.

Sensitive: the list and its salt, files of the site alone. Public: the commitment, which says that
the list changed and neither who left nor how many.
"""

import hashlib
import secrets
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
    """The list in a ledger's folder; nobody where there is none.

    Raises:
        ConfigError: the list cannot be read; training without it would be wrong.
    """
    try:
        text = (folder / LIST_NAME).read_text(encoding="utf-8")
        salt = (folder / SALT_NAME).read_bytes()
    except FileNotFoundError:
        return NOBODY
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"Expected {folder / LIST_NAME} to be readable UTF-8 text.") from None
    subjects = frozenset(line.strip() for line in text.splitlines() if line.strip())
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
        if not (folder / SALT_NAME).exists():
            write_atomic(folder / SALT_NAME, secrets.token_bytes(32), mode=0o600)
        known = read_opt_outs(folder).subjects
        text = "".join(f"{one}\n" for one in sorted(known | {subject}))
        write_atomic(folder / LIST_NAME, text.encode(), mode=0o600)
    except OSError as error:
        raise ConfigError(f"Expected to write into {folder}, got '{error.strerror}'.") from None
    return read_opt_outs(folder)
