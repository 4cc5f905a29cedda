"""The server's memory of every site's ledger: it refuses an older or a forked one.

Each round the server checks the lines that a site shows, by the same rules as the site and the
auditor (`common.chain`), and countersigns all heads together. With a folder the lines and the
receipts outlive the process. Public: all of it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common.chain import State, advance
from common.durable import write_atomic
from common.entries import parse_line
from common.errors import ConfigError, SecurityRefused
from common.receipts import Head, Receipt, countersign, receipt_from_plain
from common.signing import PublicKey, SigningKey

RECEIPTS_NAME: Final = "receipts.json"


@dataclass
class _Known:
    """One site's ledger as far as the server has seen it."""

    state: State = field(default_factory=State)
    lines: list[bytes] = field(default_factory=list)

    @property
    def seq(self) -> int:
        return self.state.seq


class HeadBook:
    """What the server has seen of each ledger.

    Args:
        key: of the server; signs receipts.
        folder: keeps lines and receipts between runs; None keeps them in memory.
        keys: first public key by site, from the contract; a site that is not there is trusted at
            its first ledger.
    """

    def __init__(
        self,
        key: SigningKey,
        folder: Path | None = None,
        keys: Mapping[str, PublicKey] | None = None,
    ) -> None:
        self.key, self._folder, self._keys = key, folder, dict(keys or {})
        self._known: dict[str, _Known] = {}
        self.receipts: tuple[Receipt, ...] = ()
        if folder is not None:
            self._read(folder)

    def admit(self, site: str, lines: bytes) -> None:
        """Take in what a site shows after the line that its last receipt is for.

        Raises:
            SecurityRefused: an old backup, a fork, a fault, or another site's ledger.
        """
        base = next((r.seq for r in self.receipts if r.site == site), -1)
        known = self._known.get(site, _Known())
        shown, seen = lines.split(b"\n")[:-1], known.lines[base + 1 :]
        if shown[: len(seen)] != seen:
            raise SecurityRefused("the ledger shown is an old backup or a fork")
        try:
            for line in shown[len(seen) :]:
                _take(known.state, line)
            self._require_site(site, known.state)
        except SecurityRefused:
            known.state = _replayed(known.lines)  # nothing bad is remembered
            raise
        known.lines += shown[len(seen) :]
        self._known[site] = known

    def require_paid(
        self, site: str, *, run: str, number: int, payload: bytes, purpose: str = "train"
    ) -> None:
        """Refuse an update that the site's ledger does not show as paid for and released.

        Raises:
            SecurityRefused: no release of this round, or of other bytes.
        """
        known = self._known.get(site, _Known())
        released = known.state.released.get((run, number, purpose))
        if released is None or released.payload_sha256 != hashlib.sha256(payload).hexdigest():
            raise SecurityRefused("the ledger shown has no release of this update")

    def _require_site(self, site: str, state: State) -> None:
        if state.site != site:
            raise SecurityRefused("the ledger shown is another site's")
        pinned = self._keys.get(site)
        if pinned is not None and state.keys[0] != pinned:
            raise SecurityRefused("the ledger shown is signed with another key than the contract's")

    def state_of(self, site: str) -> State | None:
        """What a site's ledger adds up to as far as it was shown; None if it was not."""
        known = self._known.get(site)
        return None if known is None else known.state

    def countersign(self, *, run: str, number: int) -> tuple[Receipt, ...]:
        """Receipts for all heads that are known after a round."""
        heads = [
            Head(site=site, seq=known.seq, head=known.state.head)
            for site, known in self._known.items()
        ]
        self.receipts = countersign(heads, run=run, number=number, key=self.key)
        if self._folder is not None:
            self.write(self._folder)
        return self.receipts

    def write(self, folder: Path) -> None:
        """Write each site's lines, then the receipts: never a receipt for lines that are not there.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        try:
            for site, known in self._known.items():
                write_atomic(folder / f"{site}.jsonl", b"".join(x + b"\n" for x in known.lines))
        except OSError as error:
            raise ConfigError(f"Expected to write into {folder}, got '{error.strerror}'.") from None
        self.write_receipts(folder)

    def write_receipts(self, folder: Path) -> None:
        """Write `receipts.json`, which an auditor lays beside the sites' ledgers.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        told = {
            "server_key": self.key.public.hex,
            "receipts": [receipt.plain() for receipt in self.receipts],
        }
        try:
            write_atomic(folder / RECEIPTS_NAME, json.dumps(told, indent=1).encode())
        except OSError as error:
            raise ConfigError(f"Expected to write into {folder}, got '{error.strerror}'.") from None

    def _read(self, folder: Path) -> None:
        path = folder / RECEIPTS_NAME
        if not path.is_file():
            return
        try:
            told = json.loads(path.read_bytes())
            self.receipts = tuple(receipt_from_plain(values) for values in told["receipts"])
            for receipt in self.receipts:
                self._known[receipt.site] = _whole(folder / f"{receipt.site}.jsonl", receipt)
        except (OSError, ValueError, TypeError, KeyError, SecurityRefused) as error:
            raise SecurityRefused(
                f"Expected receipts and the lines that they are for in {folder}, got others; "
                "bring the server's newest copy back."
            ) from error


def _whole(path: Path, receipt: Receipt) -> _Known:
    lines = path.read_bytes().splitlines()
    known = _Known(state=_replayed(lines), lines=lines)
    if known.seq < receipt.seq or known.state.heads[receipt.seq] != receipt.head:
        raise SecurityRefused("the lines are older than the receipt, or others")
    return known


def _replayed(lines: list[bytes]) -> State:
    state = State()
    for line in lines:
        _take(state, line)
    return state


def _take(state: State, line: bytes) -> None:
    faults = advance(state, parse_line(line))
    if faults:
        first = faults[0]
        raise SecurityRefused(f"the ledger shown has a fault in entry {first.seq} ({first.code})")
