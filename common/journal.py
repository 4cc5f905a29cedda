"""Signed lines under a lock: reads what others wrote, checks it, appends, all or nothing.

Holds no rule about privacy: those stand in `common.chain`, and what may be reserved in
`common.ledger`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from common.chain import Fault, State, advance
from common.entries import Entry, parse_line, signed
from common.errors import OrderError, PrivacyRefused, RefusedError, SecurityRefused
from common.ledger_file import LedgerStore
from common.signing import SigningKey

Clock = Callable[[], datetime]
MakeEntry = Callable[[], Entry]


def utc_now() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)


class Journal:
    """A ledger's lines and what they add up to; every transaction sees the newest.

    Args:
        store: the lines.
        key: the site's signing key.
        clock: UTC now.
        forgotten: told when everything is read anew.
    """

    def __init__(
        self, store: LedgerStore, key: SigningKey, clock: Clock, forgotten: Callable[[], None]
    ) -> None:
        self.store, self.key = store, key
        self._clock, self._forgotten = clock, forgotten
        self._mutex = threading.RLock()
        self._seen: tuple[int, str] | None = None
        self._forget()

    def _forget(self) -> None:
        self.state, self._offset, self._last = State(), 0, b""
        self._forgotten()

    @contextmanager
    def transaction(self) -> Iterator[State]:
        """Hold everybody else off and yield the newest state.

        Raises:
            SecurityRefused: the ledger is damaged, locked or cannot be read.
        """
        with self._mutex, self.store.locked():
            try:
                self._catch_up()
                yield self.state
            except BaseException:
                # What was not written must not be remembered: read it all anew next time.
                self._forget()
                raise

    def _catch_up(self) -> None:
        data = self.store.read(self._offset - len(self._last))
        if not data.startswith(self._last):  # not the file that was read before
            self._forget()
            data = self.store.read(0)
        data = data[len(self._last) :]
        whole = data.rfind(b"\n") + 1
        for line in data[:whole].split(b"\n")[:-1]:
            self._take(line)
        self._require_seen()
        if whole < len(data):
            # Torn before its fsync returned, so nothing was drawn for it.
            self.store.set_aside(self._offset + whole)
        self._went_on(data[:whole])

    def _require_seen(self) -> None:
        """Refuse a file that lacks what this process has seen: it was put back from a backup."""
        if self._seen is None:
            return
        seq, head = self._seen
        if self.state.seq < seq or self.state.heads[seq] != head:
            raise SecurityRefused(
                f"Expected entry {seq} as this process saw it, got an old backup or a fork; bring "
                "the newest ledger back."
            )

    def _went_on(self, data: bytes) -> None:
        self._offset += len(data)
        if data:
            self._last = data[data.rfind(b"\n", 0, -1) + 1 :]
            self._seen = (self.state.seq, self.state.head)

    def _take(self, line: bytes) -> None:
        seq = self.state.seq + 1
        try:
            faults = advance(self.state, parse_line(line))
        except SecurityRefused as error:
            faults = [Fault(seq=seq, code="line", text=str(error).rstrip("."))]
        if faults:
            self._forget()
            raise SecurityRefused(damage(faults[0]))

    def append(self, *entries: MakeEntry) -> None:
        """Sign, check against everything before, write and fsync, in one piece.

        Raises:
            RefusedError: an entry breaks a rule of the chain, or cannot be written.
            OrderError: an entry comes at the wrong time.
        """
        made = []
        for make in entries:
            line = signed(make(), self.key)
            faults = advance(self.state, line)
            if faults:
                raise _refusal(faults[0])
            made.append(line.line + b"\n")
        data = b"".join(made)
        self.store.append(data)
        self._went_on(data)

    def entry(self, kind: str, **fields: Any) -> MakeEntry:
        """An entry that takes its place in the chain when it is appended."""
        now = stamp(self._clock())

        def make() -> Entry:
            state = self.state
            return Entry(
                site=state.site,
                seq=state.seq + 1,
                prev=state.head,
                ts=max(now, state.time),  # a clock set back must not make the chain invalid
                kind=kind,
                **fields,
            )

        return make


def stamp(when: datetime) -> str:
    """A time as entries hold it."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def damage(fault: Fault) -> str:
    """A fault as the line that refuses the ledger."""
    return (
        f"Expected a whole ledger, entry {fault.seq} has a fault ({fault.code}): {fault.text}; "
        "run `confed audit verify`, and restore nothing before it is understood."
    )


def _refusal(fault: Fault) -> RefusedError | OrderError:
    text = f"{fault.text[0].upper()}{fault.text[1:]}; nothing was written."
    if fault.code in {"caps", "plan", "budget"}:
        return PrivacyRefused(text)
    return SecurityRefused(text) if fault.code in {"receipt", "signature"} else OrderError(text)
