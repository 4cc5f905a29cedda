"""An audit of ledgers: every edit named by its entry, old copies and forks refused."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.accounting import spent
from common.audit import Audit, LedgerInput, audit
from common.caps import SiteCaps
from common.entries import canonical, parse_line, signed
from common.errors import ConfigError
from common.mechanism import Composed, Gaussian, PoissonSampled, Repeated
from common.receipts import Receipt, countersign
from common.signing import ENTRY, PublicKey, SigningKey
from tests.ledgers import (
    CAPS,
    Made,
    Run,
    declare,
    extend,
    make_ledger,
    one_round,
)

Lines = list[bytes]
RESERVE, RELEASE, PLAN = 6, 7, 1
"""Entries of the ledger under test: a genesis, a plan, then pairs of reserve and release."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_ledger(tmp_path_factory.mktemp("site"), runs=(Run(rounds=8),))


def checked(made: Made, data: bytes | None = None, **options: Any) -> Audit:
    given = LedgerInput(
        where="ledger.jsonl", data=made.data if data is None else data, key=made.key.public
    )
    return audit([given], **options)


def faults(made: Made, data: bytes, **options: Any) -> list[tuple[int, str]]:
    return [(f.seq, f.code) for f in checked(made, data, **options).sites[0].faults]


def edited(line: bytes, change: Callable[[dict[str, Any]], None], key: SigningKey | None) -> bytes:
    """The canonical line with other values: under its old signature, or signed by `key`."""
    plain = json.loads(line)
    change(plain)
    if key is not None:
        plain.pop("signature")
        signature = key.sign(ENTRY, canonical(plain))
        plain["signature"] = signature.hex()
    return canonical(plain)


def chained_again(lines: Lines, start: int) -> Lines:
    """Mend every hash from `start` on, as an editor without the key would."""
    mended = lines[:start]
    for line in lines[start:]:
        head = parse_line(mended[-1]).sha256
        mended.append(edited(line, lambda plain, head=head: plain.update(prev=head), None))
    return mended


def claim_more_noise(plain: dict[str, Any]) -> None:
    plain["event"]["event"]["event"]["noise_multiplier"] = 9.5


def more_noise(lines: Lines) -> Lines:
    lines[RESERVE] = edited(lines[RESERVE], claim_more_noise, None)
    return lines


def more_noise_and_mend_the_chain(lines: Lines) -> Lines:
    return chained_again(more_noise(lines), RESERVE + 1)


def other_payload(lines: Lines) -> Lines:
    def change(plain: dict[str, Any]) -> None:
        plain["details"]["payload_sha256"] = "0" * 64

    lines[RELEASE] = edited(lines[RELEASE], change, None)
    return lines


def delete(lines: Lines) -> Lines:
    del lines[RESERVE]
    return lines


def duplicate(lines: Lines) -> Lines:
    return [*lines[: RESERVE + 1], lines[RESERVE], *lines[RESERVE + 1 :]]


def swap(lines: Lines) -> Lines:
    lines[RESERVE], lines[RELEASE] = lines[RELEASE], lines[RESERVE]
    return lines


def foreign_entry(lines: Lines) -> Lines:
    def change(plain: dict[str, Any]) -> None:
        plain["round"] = 3

    lines[RESERVE] = edited(lines[RESERVE], change, SigningKey.generate())
    return lines


def larger_budget(lines: Lines) -> Lines:
    def change(plain: dict[str, Any]) -> None:
        plain["details"]["caps"]["epsilon"] = 100.0

    lines[0] = edited(lines[0], change, None)
    return lines


def moved_signature(lines: Lines) -> Lines:
    other = json.loads(lines[RELEASE])["signature"]
    lines[RESERVE] = edited(lines[RESERVE], lambda plain: plain.update(signature=other), None)
    return lines


EDITS: tuple[tuple[Callable[[Lines], Lines], int], ...] = (
    (more_noise, RESERVE),
    (more_noise_and_mend_the_chain, RESERVE),
    (other_payload, RELEASE),
    (delete, RESERVE),
    (duplicate, RESERVE + 1),
    (swap, RESERVE),
    (foreign_entry, RESERVE),
    (larger_budget, 0),
    (moved_signature, RESERVE),
)


@pytest.mark.parametrize(("edit", "entry"), EDITS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_an_edit_is_named_by_its_entry(
    made: Made, edit: Callable[[Lines], Lines], entry: int
) -> None:
    lines = edit(made.data.split(b"\n")[:-1])
    found = faults(made, b"\n".join(lines) + b"\n")
    assert found
    assert found[0][0] == entry


def flipped_bit(data: bytes, start: int, end: int) -> bytes:
    middle = (start + end) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def zeroed(data: bytes, start: int, end: int) -> bytes:
    return data[:start] + bytes(end - start) + data[end:]


def torn(data: bytes, start: int, end: int) -> bytes:
    return data[: end - 40]


def spaced(data: bytes, start: int, end: int) -> bytes:
    return data[:start] + data[start:end].replace(b":", b": ") + data[end:]


def blank_line(data: bytes, start: int, end: int) -> bytes:
    return data[:start] + b"\n" + data[start:]


@pytest.mark.parametrize("fault", [flipped_bit, zeroed, torn, spaced, blank_line])
def test_a_byte_fault_is_named_by_its_entry(
    made: Made, fault: Callable[[bytes, int, int], bytes]
) -> None:
    lines = made.data.split(b"\n")
    start = sum(len(line) + 1 for line in lines[:RESERVE])
    found = faults(made, fault(made.data, start, start + len(lines[RESERVE])))
    assert found
    assert found[0] == (RESERVE, found[0][1])
    assert found[0][1] in {"line", "signature"}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_byte_can_be_changed_unseen(made: Made, data: st.DataObject) -> None:
    raw = made.data
    place = data.draw(st.integers(0, len(raw) - 1))
    changed = raw[place] ^ data.draw(st.integers(1, 255))
    found = faults(made, raw[:place] + bytes([changed]) + raw[place + 1 :])
    assert found
    assert found[0][0] == raw[:place].count(b"\n")


@pytest.mark.parametrize("edit", [more_noise, other_payload, foreign_entry, moved_signature])
def test_an_edit_in_one_line_faults_that_line_and_the_next_alone(
    made: Made, edit: Callable[[Lines], Lines]
) -> None:
    found = faults(made, b"\n".join(edit(made.data.split(b"\n")[:-1])) + b"\n")
    assert {seq for seq, _ in found} <= {found[0][0], found[0][0] + 1}


def test_a_whole_ledger_of_another_key_is_named_at_its_genesis(made: Made, tmp_path: Path) -> None:
    forged = make_ledger(tmp_path, runs=(Run(rounds=2),))
    assert faults(made, forged.data) == [(0, "signature")]


def test_an_untouched_ledger_verifies_with_the_epsilon_of_its_reservations(made: Made) -> None:
    found = checked(made)
    gaussian = Gaussian(noise_multiplier=1.2)
    event = Repeated(count=8, event=PoissonSampled(sample_rate=0.25, event=gaussian))
    assert found.passed
    assert found.sites[0].verdict.spent == spent(event, delta=CAPS.delta)
    assert found.sites[0].left == CAPS.epsilon - found.sites[0].verdict.spent.epsilon


# Row 14: an old backup and a fork verify alone, and not beside the server's receipts.


def history(folder: Path) -> tuple[Made, bytes, list[Receipt]]:
    """A ledger, a copy of it from two rounds before its end, and the receipts of every round."""
    run, server = Run(rounds=4), SigningKey.generate()
    made = make_ledger(folder, runs=())
    declare(made, run)
    backup, receipts = b"", []
    for number in range(1, 5):
        one_round(made, run, number)
        receipts += countersign([made.head], run=run.name, number=number, key=server)
        backup = made.data if number == 2 else backup
    return made, backup, receipts


def test_an_old_backup_is_refused_with_the_servers_receipts(tmp_path: Path) -> None:
    made, backup, receipts = history(tmp_path)
    assert faults(made, backup) == []
    assert faults(made, made.data, receipts=receipts) == []
    found = checked(made, backup, receipts=receipts).sites[0].faults
    assert found[0].seq == len(backup.splitlines())
    assert "old copy" in found[0].text


def test_a_fork_of_the_same_length_is_refused_with_the_servers_receipts(tmp_path: Path) -> None:
    made, backup, receipts = history(tmp_path / "real")
    (tmp_path / "fork").mkdir()
    (tmp_path / "fork" / "ledger.jsonl").write_bytes(backup)
    fork = reopened(tmp_path / "fork", made)
    for number in (3, 4):
        one_round(fork, Run(rounds=4), number)
    assert len(fork.data.splitlines()) == len(made.data.splitlines())
    assert faults(made, fork.data) == []
    found = checked(made, fork.data, receipts=receipts).sites[0].faults
    assert found[0].seq >= len(backup.splitlines())
    assert "fork" in found[0].text


def reopened(folder: Path, made: Made) -> Made:
    from common.ledger import Ledger
    from common.ledger_file import LedgerFile

    ledger = Ledger(LedgerFile(folder), made.key)
    return replace(made, folder=folder, ledger=ledger)


def test_two_copies_of_one_ledger_are_held_against_each_other(tmp_path: Path) -> None:
    made, backup, _ = history(tmp_path / "real")
    (tmp_path / "fork").mkdir()
    (tmp_path / "fork" / "ledger.jsonl").write_bytes(backup)
    fork = reopened(tmp_path / "fork", made)
    one_round(fork, Run(rounds=4), 3)
    found = audit(
        [
            LedgerInput(where=name, data=data, key=made.key.public)
            for name, data in (("whole", made.data), ("old", backup), ("fork", fork.data))
        ]
    )
    told = {site.where: [fault.text for fault in site.faults] for site in found.sites}
    assert any("old copy" in text for text in told["old"])
    assert any("fork" in text for text in told["whole"])
    assert any("fork" in text for text in told["fork"])


def test_a_receipt_that_the_server_did_not_sign_is_a_fault(tmp_path: Path) -> None:
    made, _, receipts = history(tmp_path)
    forged = replace(receipts[0], heads_sha256="f" * 64)
    assert (receipts[0].seq, "receipt") in faults(made, made.data, receipts=[forged])


def test_a_receipt_of_another_server_is_a_fault(tmp_path: Path) -> None:
    made, _, receipts = history(tmp_path)
    mine = PublicKey.from_hex(receipts[0].server_key)
    other = SigningKey.generate().public
    assert faults(made, made.data, receipts=receipts, server_keys=[mine]) == []
    assert {c for _, c in faults(made, made.data, receipts=receipts, server_keys=[other])} == {
        "receipt"
    }


def test_an_earlier_run_may_have_had_another_server(tmp_path: Path) -> None:
    made, _, receipts = history(tmp_path)
    extend(made, Run(name="run-2", rounds=1, noise=3.0))
    later = SigningKey.generate()
    told = countersign([made.head], run="run-2", number=1, key=later)
    one_of_run_1 = receipts[-1]
    made.ledger.acknowledge("run-1", one_of_run_1.details())
    assert faults(made, made.data, receipts=told, server_keys=[later.public]) == []


@pytest.mark.parametrize("k", [0, 3])
def test_more_or_fewer_sites_per_subject_than_there_are_is_refused(made: Made, k: int) -> None:
    with pytest.raises(ConfigError, match="--sites-per-subject from 1 to 1"):
        checked(made, sites_per_subject=k)


def test_seeded_noise_leaves_no_claim(tmp_path: Path) -> None:
    made = make_ledger(tmp_path, seeded=True)
    found = checked(made)
    assert found.passed
    assert found.seeded
    assert found.sites[0].claim.startswith("no privacy claim")


def test_a_ledger_that_does_not_verify_has_no_claim(made: Made) -> None:
    found = checked(made, made.data[:-1])
    assert not found.passed
    assert found.sites[0].claim.startswith("no privacy claim")


@pytest.mark.parametrize("data", [b"", b"\n", b"\0" * 300, b"{}\n", b"[" * 5000 + b"\n"])
def test_no_ledger_at_all_is_a_fault_at_entry_0(made: Made, data: bytes) -> None:
    found = faults(made, data)
    assert found[0][0] == 0
    assert checked(made, data).sites[0].claim.startswith("no privacy claim")


def test_noise_that_no_accountant_computes_with_is_a_fault_and_unbounded(tmp_path: Path) -> None:
    caps = SiteCaps(epsilon=8.0, delta=1e-5, noise_multiplier=0.0)
    made = make_ledger(tmp_path, runs=(Run(rounds=1),), caps=caps)
    run, state = Run(name="run-2", rounds=1, noise=1e-9), made.ledger.state()
    plan = parse_line(made.data.splitlines()[PLAN]).entry
    reserve = parse_line(made.data.splitlines()[2]).entry
    lines = made.data
    head, seq = state.head, state.seq
    for entry in (
        replace(plan, event=Composed(events=(Repeated(count=1, event=run.event),))),
        replace(reserve, event=run.event, details={**reserve.details, "plan": seq + 1}),
    ):
        seq += 1
        line = signed(replace(entry, seq=seq, prev=head, ts=state.time, run="run-2"), made.key)
        lines, head = lines + line.line + b"\n", line.sha256
    found = checked(made, lines).sites[0]
    assert math.isinf(found.verdict.spent.epsilon)
    assert [(fault.seq, fault.code) for fault in found.faults] == [(seq, "budget")]


def test_rounds_after_the_budget_are_named_by_the_first_of_them(tmp_path: Path) -> None:
    generous = make_ledger(tmp_path / "a", caps=replace(CAPS, epsilon=20.0), runs=())
    extend(generous, Run(rounds=12, noise=0.8))
    poor = edited(
        generous.data.splitlines()[0],
        lambda plain: plain["details"]["caps"].update(epsilon=5.0),
        generous.key,
    )
    lines = [poor]
    for line in generous.data.splitlines()[1:]:
        head = parse_line(lines[-1]).sha256
        again = edited(line, lambda plain, head=head: plain.update(prev=head), generous.key)
        lines.append(again)
    found = checked(generous, b"\n".join(lines) + b"\n").sites[0]
    (fault,) = found.faults
    assert fault.code == "budget"
    before = [r for r in found.reservations if r.seq < fault.seq]
    events = Composed(events=tuple(r.event for r in before))
    assert spent(events, delta=CAPS.delta).epsilon <= 5.0
    over = Composed(events=(*events.events, Run(noise=0.8).event))
    assert spent(over, delta=CAPS.delta).epsilon > 5.0
