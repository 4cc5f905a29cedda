"""Files that are there whole or not at all, whatever ends the process."""

import os
import secrets
from pathlib import Path


def write_atomic(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file by temporary file, fsync, replace and fsync of the folder.

    Args:
        path: of the file; its folder is made.
        content: bytes.
        mode: less the process's umask.

    Raises:
        OSError: the folder cannot be written to; the old file is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
