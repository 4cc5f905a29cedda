"""Where an auditor's ledgers, keys and receipts lie, and how they are read: bounded, plain files.

Public: everything that is read here. A folder is one of: a site's (`ledger.jsonl` and
`public-key.pem`), a folder of sites' folders, or what a simulation wrote (`ledgers/` inside).
"""

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.audit import LedgerInput
from common.entries import NAME, is_sha
from common.errors import ConfigError, DataError, SecurityRefused
from common.ledger_file import LEDGER_NAME, PUBLIC_NAME
from common.limits import LIMITS
from common.receipts import Receipt, receipt_from_plain
from common.signing import PublicKey, read_public_key

RECEIPTS_NAME: Final = "receipts.json"
LEDGERS_NAME: Final = "ledgers"


@dataclass(frozen=True, kw_only=True)
class ReceiptFile:
    """What a server kept of its countersignatures.

    Attributes:
        server_key: that it says signed all of them.
        receipts: of all sites.
    """

    server_key: PublicKey
    receipts: tuple[Receipt, ...]


def find_ledgers(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The ledgers under each path, in order, each once.

    Raises:
        ConfigError: a path that is not there or holds no ledger.
    """
    found = [ledger for path in paths for ledger in _under(path)]
    once = {ledger.resolve(): ledger for ledger in reversed(found)}
    return tuple(sorted(once.values(), key=found.index))


def _under(path: Path) -> list[Path]:
    if path.is_dir():
        for folder in (path, path / LEDGERS_NAME):
            if (folder / LEDGER_NAME).exists():
                return [folder / LEDGER_NAME]
            below = sorted(folder.glob(f"*/{LEDGER_NAME}"))
            if below:
                return below
        raise ConfigError(
            f"Expected {LEDGER_NAME} in {path}, in its folders or in {LEDGERS_NAME}/, found none."
        )
    if not path.exists():
        raise ConfigError(f"Expected a ledger or a folder at {path}, found none.")
    return [path]


def read_ledgers(ledgers: Sequence[Path], keys: Sequence[str]) -> tuple[LedgerInput, ...]:
    """Read ledgers, each with the public key beside it or the one that is named.

    Args:
        ledgers: files.
        keys: FILE for a single ledger, SITE=FILE for the site of that name.

    Raises:
        ConfigError: a ledger without a key, or a key for no ledger.
        DataError: a ledger that is too long to read.
        SecurityRefused: a ledger that is no plain file.
    """
    named, alone = _named_keys(keys)
    if alone is not None and len(ledgers) > 1:
        raise ConfigError(
            f"Expected --public-key SITE=FILE for each of {len(ledgers)} ledgers, got a FILE alone."
        )
    read = []
    for path in ledgers:
        data = read_plain(path, LIMITS.ledger_bytes)
        site = site_of(data)
        key = alone or (named.pop(site) if site in named else _beside(path))
        read.append(LedgerInput(where=str(path), data=data, key=read_public_key(key)))
    if named:
        raise ConfigError(f"Expected --public-key for sites that are here, got {sorted(named)[0]}.")
    return tuple(read)


def _named_keys(keys: Sequence[str]) -> tuple[dict[str, Path], Path | None]:
    named: dict[str, Path] = {}
    alone = None
    for text in keys:
        site, equals, file = text.partition("=")
        if equals and NAME.fullmatch(site):
            named[site] = Path(file)
        elif alone is None:
            alone = Path(text)
        else:
            raise ConfigError("Expected one --public-key FILE, or SITE=FILE for each, got two.")
    return named, alone


def _beside(ledger: Path) -> Path:
    key = ledger.parent / PUBLIC_NAME
    if not key.exists():
        raise ConfigError(
            f"Expected {PUBLIC_NAME} beside {ledger}, found none; ask the site for its key and "
            "give it with --public-key FILE."
        )
    return key


def site_of(data: bytes) -> str:
    """The site that a ledger's first line names; empty when it cannot be read."""
    try:
        first = json.loads(data.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return ""
    site = first.get("site") if isinstance(first, dict) else None
    return site if isinstance(site, str) else ""


def find_receipts(ledgers: Sequence[Path], paths: Sequence[Path]) -> tuple[Path, ...]:
    """Receipt files beside the ledgers, one folder above them, or in the folders named."""
    folders = [ledger.parent for ledger in ledgers]
    folders += [folder.parent for folder in folders]
    folders += [path for path in paths if path.is_dir()]
    files = {(folder / RECEIPTS_NAME).resolve() for folder in folders}
    return tuple(sorted(file for file in files if file.is_file()))


def read_receipts(files: Iterable[Path]) -> tuple[ReceiptFile, ...]:
    """Read what servers kept.

    Raises:
        ConfigError: a file that is not there.
        DataError: another layout.
    """
    return tuple(_receipts(path) for path in files)


def _receipts(path: Path) -> ReceiptFile:
    values = read_json(path, what="receipts")
    listed = values.get("receipts")
    if set(values) != {"server_key", "receipts"} or not isinstance(listed, list):
        raise DataError(f"Expected server_key and receipts in {path}, got other keys.")
    if not is_sha(values["server_key"]):
        raise DataError(f"Expected server_key as 64 hexadecimal digits in {path}, got other text.")
    made = []
    for number, plain in enumerate(listed):
        try:
            made.append(receipt_from_plain(plain if isinstance(plain, Mapping) else {}))
        except (SecurityRefused, TypeError):
            raise DataError(
                f"Expected the eight fields of a receipt at number {number} of {path}, got others."
            ) from None
    return ReceiptFile(
        server_key=PublicKey.from_hex(str(values["server_key"])), receipts=tuple(made)
    )


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Read an object of JSON from a plain file.

    Raises:
        ConfigError: no such file.
        DataError: other text.
    """
    try:
        values = json.loads(read_plain(path, LIMITS.audit_json_bytes))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise DataError(f"Expected {what} as an object of JSON in {path}, got other text.")
    return values


def read_plain(path: Path, most: int) -> bytes:
    """Read a plain file of at most `most` bytes; pipes, folders and devices are refused.

    Raises:
        ConfigError: it cannot be opened.
        DataError: it is longer.
        SecurityRefused: it is no plain file.
    """
    try:
        # Without O_NONBLOCK a pipe would hold the command up for ever.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"Expected to read {path}, got '{error.strerror}'.") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise SecurityRefused(f"Expected {path} to be a plain file, got another kind.")
    with os.fdopen(number, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DataError(f"Expected at most {most:,} bytes in {path}, got more.")
    return data
