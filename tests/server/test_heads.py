import json
from pathlib import Path

import pytest

from common.errors import ConfigError, SecurityRefused
from common.ledger import Ledger, create_ledger
from common.receipts import Head, heads_sha256, require_same_heads
from common.signing import SigningKey
from server.heads import RECEIPTS_NAME, HeadBook
from simulations.ledgers import MemoryStore
from tests.children import ended as exit_status
from tests.children import fork, kill_me
from tests.common.ledger_suite import (
    CAPS,
    bytes_of,
    new_ledger,
    one_round,
    receipt_for,
    request,
    reserve,
)

SERVER = SigningKey.generate()


class Site:
    """A site's ledger, and what it shows of it."""

    def __init__(self) -> None:
        self.store, self.key = MemoryStore(), SigningKey.generate()
        self.ledger = new_ledger(self.store, key=self.key)
        self.ledger.plan(request())
        self.payload = b""

    def answer(self, number: int) -> bytes:
        self.payload = one_round(self.ledger, number)
        return self.payload

    def put_back(self, data: bytes) -> None:
        self.store.set_aside(0)
        self.store.append(data)
        self.ledger = Ledger(self.store, self.key)

    @property
    def data(self) -> bytes:
        return bytes_of(self.store)


def book_after(site: Site, folder: Path | None = None) -> HeadBook:
    """A server that has seen one round of the site and countersigned it."""
    book = HeadBook(SERVER, folder)
    site.answer(1)
    book.admit("clinic", site.data)
    book.countersign(run="run-1", number=1)
    return book


def seen(book: HeadBook) -> int:
    return book.receipts[0].seq


def test_a_site_shows_the_lines_after_its_receipt_and_the_server_knows_the_whole() -> None:
    site = Site()
    book = book_after(site)
    for number in (2, 3):
        site.answer(number)
        book.admit("clinic", site.ledger.lines_after(seen(book)))
        book.require_paid("clinic", run="run-1", number=number, payload=site.payload)
        (receipt,) = book.countersign(run="run-1", number=number)
        assert receipt.verifies()
        assert site.ledger.knows(receipt.seq, receipt.head)
        assert receipt.seq == site.ledger.state().seq


def test_all_heads_of_a_round_are_signed_together() -> None:
    book = HeadBook(SERVER)
    heads = []
    for name in ("a", "b"):
        store = MemoryStore()
        ledger = create_ledger(store, site=name, caps=CAPS, key=SigningKey.generate())
        book.admit(name, bytes_of(store))
        heads.append(Head(site=name, seq=0, head=ledger.state().head))
    receipts = book.countersign(run="run-1", number=1)
    require_same_heads(receipts)
    assert {r.heads_sha256 for r in receipts} == {heads_sha256(heads)}


def test_an_old_backup_is_refused() -> None:
    site = Site()
    backup = site.data
    book = book_after(site)
    site.answer(2)
    book.admit("clinic", site.ledger.lines_after(seen(book)))
    book.countersign(run="run-1", number=2)
    site.put_back(backup)
    site.answer(1)  # the budget of round 1, a second time
    for lines in (site.data, site.ledger.lines_after(1)):
        with pytest.raises(SecurityRefused):
            book.admit("clinic", lines)
    book.admit("clinic", b"")  # nothing shown, nothing paid
    with pytest.raises(SecurityRefused, match="no release"):
        book.require_paid("clinic", run="run-1", number=1, payload=b"new noise")


def test_a_fork_of_the_same_length_is_refused() -> None:
    site = Site()
    backup = site.data
    book = book_after(site)
    length = site.ledger.state().seq
    site.put_back(backup)
    site.ledger.release(reserve(site.ledger), b"another answer to round 1")
    assert site.ledger.state().seq == length
    site.answer(2)
    with pytest.raises(SecurityRefused):
        book.admit("clinic", site.ledger.lines_after(seen(book)))


def test_a_fork_between_receipts_is_refused() -> None:
    """The server has seen more than it countersigned: a round that was never closed."""
    site = Site()
    book = book_after(site)
    backup = site.data
    site.answer(2)
    book.admit("clinic", site.ledger.lines_after(seen(book)))
    site.put_back(backup)
    site.ledger.release(reserve(site.ledger, 2), b"another answer to round 2")
    with pytest.raises(SecurityRefused, match="old backup or a fork"):
        book.admit("clinic", site.ledger.lines_after(seen(book)))
    with pytest.raises(SecurityRefused, match="old backup or a fork"):
        book.admit("clinic", b"")


def test_the_same_lines_shown_twice_are_taken_once() -> None:
    site = Site()
    book = book_after(site)
    site.answer(2)
    lines = site.ledger.lines_after(seen(book))
    for _ in range(3):
        book.admit("clinic", lines)
    book.countersign(run="run-1", number=2)
    assert seen(book) == site.ledger.state().seq


def test_a_server_that_starts_again_still_refuses_what_is_old(tmp_path: Path) -> None:
    site = Site()
    backup = site.data
    book_after(site, tmp_path)
    again = HeadBook(SERVER, tmp_path)
    assert again.receipts[0].verifies()
    site.answer(2)
    again.admit("clinic", site.ledger.lines_after(seen(again)))
    again.countersign(run="run-1", number=2)

    last = HeadBook(SERVER, tmp_path)
    site.put_back(backup)
    site.answer(1)
    for lines in (site.data, site.ledger.lines_after(1)):
        with pytest.raises(SecurityRefused):
            last.admit("clinic", lines)


def test_a_server_killed_between_its_files_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site()
    book_after(site, tmp_path)
    site.answer(2)

    def round_two() -> None:
        book = HeadBook(SERVER, tmp_path)
        book.admit("clinic", site.ledger.lines_after(seen(book)))
        monkeypatch.setattr(HeadBook, "write_receipts", lambda *_: kill_me())
        book.countersign(run="run-1", number=2)

    assert exit_status(fork(round_two)) < 0
    again = HeadBook(SERVER, tmp_path)
    assert seen(again) == 3  # of round 1; the site shows its lines from there on
    again.admit("clinic", site.ledger.lines_after(seen(again)))
    again.countersign(run="run-1", number=2)
    assert seen(again) == site.ledger.state().seq


@pytest.mark.parametrize(
    "damage", ["no lines", "older lines", "flipped byte", "no json", "other json", "receipt of 0"]
)
def test_a_servers_folder_that_is_not_whole_is_refused_in_one_line(
    tmp_path: Path, damage: str
) -> None:
    site = Site()
    book_after(site, tmp_path)
    lines, receipts = tmp_path / "clinic.jsonl", tmp_path / RECEIPTS_NAME
    whole = lines.read_bytes()
    if damage == "no lines":
        lines.unlink()
    elif damage == "older lines":
        lines.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    elif damage == "flipped byte":
        lines.write_bytes(whole.replace(b"clinic", b"clinik", 1))
    elif damage == "no json":
        receipts.write_bytes(b"{")
    elif damage == "other json":
        receipts.write_text(json.dumps({"receipts": [{"site": "clinic"}]}))
    else:
        told = json.loads(receipts.read_text())
        told["receipts"][0]["head"] = "0" * 64
        receipts.write_text(json.dumps(told))
    with pytest.raises(SecurityRefused, match="newest copy") as caught:
        HeadBook(SERVER, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_a_line_about_it(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_bytes(b"")
    site, book = Site(), HeadBook(SERVER, taken / "folder")
    site.answer(1)
    book.admit("clinic", site.data)
    with pytest.raises(ConfigError, match="write into"):
        book.countersign(run="run-1", number=1)


def test_another_sites_ledger_is_refused_and_nothing_of_it_remembered() -> None:
    site, book = Site(), HeadBook(SERVER)
    site.answer(1)
    with pytest.raises(SecurityRefused, match="another site's"):
        book.admit("shop", site.data)
    with pytest.raises(SecurityRefused, match="another site's"):
        book.admit("shop", b"")
    assert not book.countersign(run="run-1", number=1)
    book.admit("clinic", site.data)


def test_a_ledger_under_another_key_than_the_contracts_is_refused() -> None:
    site = Site()
    book = HeadBook(SERVER, keys={"clinic": SigningKey.generate().public})
    with pytest.raises(SecurityRefused, match="another key"):
        book.admit("clinic", site.data)
    pinned = HeadBook(SERVER, keys={"clinic": site.key.public})
    pinned.admit("clinic", site.data)
    site.ledger.rotate(SigningKey.generate())
    pinned.admit("clinic", site.data)  # the contract's key handed over


@pytest.mark.parametrize("at", range(4))
def test_a_fault_in_the_lines_is_named_and_nothing_of_them_is_remembered(at: int) -> None:
    site, book = Site(), HeadBook(SERVER)
    site.answer(1)
    lines = site.data.splitlines(keepends=True)
    wrong = list(lines)
    wrong[at] = wrong[at].replace(b'"round":', b'"round":1', 1)
    with pytest.raises(SecurityRefused):
        book.admit("clinic", b"".join(wrong))
    book.admit("clinic", b"".join(lines))
    book.require_paid("clinic", run="run-1", number=1, payload=site.payload)


@pytest.mark.parametrize("junk", [b"\n", b"{}\n", b"\xff" * 50 + b"\n", b"[" * 99_999 + b"\n"])
def test_junk_is_refused_and_the_site_goes_on(junk: bytes) -> None:
    site = Site()
    book = book_after(site)
    with pytest.raises(SecurityRefused):
        book.admit("clinic", junk)
    site.answer(2)
    book.admit("clinic", site.ledger.lines_after(seen(book)))


def test_good_lines_before_a_bad_one_are_not_remembered_either() -> None:
    site = Site()
    book = book_after(site)
    site.answer(2)
    lines = site.ledger.lines_after(seen(book))
    with pytest.raises(SecurityRefused):
        book.admit("clinic", lines.splitlines(keepends=True)[0] + b"junk\n")
    book.admit("clinic", lines)


def test_an_update_that_the_ledger_does_not_show_is_not_paid_for() -> None:
    site = Site()
    book = book_after(site)
    book.require_paid("clinic", run="run-1", number=1, payload=site.payload)
    for asked in (
        {"run": "run-1", "number": 1, "payload": site.payload + b"\0"},
        {"run": "run-1", "number": 2, "payload": site.payload},
        {"run": "run-2", "number": 1, "payload": site.payload},
        {"run": "run-1", "number": 1, "payload": site.payload, "purpose": "evaluate"},
    ):
        with pytest.raises(SecurityRefused, match="no release"):
            book.require_paid("clinic", **asked)  # type: ignore[arg-type]
    with pytest.raises(SecurityRefused, match="no release"):
        book.require_paid("shop", run="run-1", number=1, payload=site.payload)


def test_a_reservation_without_a_release_is_not_an_answer() -> None:
    site, book = Site(), HeadBook(SERVER)
    reserve(site.ledger)
    book.admit("clinic", site.data)
    with pytest.raises(SecurityRefused, match="no release"):
        book.require_paid("clinic", run="run-1", number=1, payload=b"")


def test_a_receipt_of_this_server_is_accepted_by_the_ledger_it_is_for() -> None:
    site = Site()
    book = book_after(site)
    site.ledger.acknowledge("run-1", book.receipts[0].details())
    other = receipt_for(Site().ledger.state())
    with pytest.raises(SecurityRefused, match="own past"):
        site.ledger.acknowledge("run-1", other.details())
