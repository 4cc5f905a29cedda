"""Ledgers, keys and receipts are found where a site, a simulation and an auditor keep them."""

import json
import os
from pathlib import Path

import pytest

from common.audit_files import (
    find_ledgers,
    find_receipts,
    read_json,
    read_ledgers,
    read_plain,
    read_receipts,
)
from common.errors import ConfedError, ConfigError, DataError, SecurityRefused
from common.signing import SigningKey
from tests.ledgers import Made, Run, make_consortium, make_ledger

TWO = ("bank-1", "clinic-1")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    make_consortium(folder, sites=TWO, run=Run(rounds=2))
    return folder


def one(folder: Path) -> Made:
    return make_ledger(folder, runs=(Run(rounds=1),))


@pytest.mark.parametrize("under", ["", "ledgers"])
def test_a_simulation_and_a_folder_of_sites_hold_all_their_ledgers(out: Path, under: str) -> None:
    found = find_ledgers([out / under])
    assert [path.parent.name for path in found] == list(TWO)
    assert [path.parent for path in find_receipts(found, [out / under])] == [out / "ledgers"]


def test_a_site_and_a_ledger_are_found_alone(out: Path) -> None:
    ledger = out / "ledgers" / "bank-1" / "ledger.jsonl"
    assert find_ledgers([ledger.parent]) == find_ledgers([ledger]) == (ledger,)


def test_a_ledger_that_is_named_twice_is_read_once(out: Path) -> None:
    assert len(find_ledgers([out, out / "ledgers" / "bank-1", out / "ledgers"])) == 2


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_path_without_a_ledger_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="found none"):
        find_ledgers([tmp_path / name])


def test_the_key_beside_a_ledger_is_the_one(out: Path) -> None:
    read = read_ledgers(find_ledgers([out]), [])
    assert [Path(given.where).parent.name for given in read] == list(TWO)
    assert len({given.key for given in read}) == 2


def test_a_key_file_can_be_named_for_one_ledger_and_by_site_for_several(
    out: Path, tmp_path: Path
) -> None:
    other = SigningKey.generate()
    key = tmp_path / "other=key.pem"
    key.write_bytes(other.public.pem())
    ledgers = find_ledgers([out])
    named = read_ledgers(ledgers, [f"clinic-1={key}"])
    assert [given.key == other.public for given in named] == [False, True]
    assert read_ledgers(ledgers[:1], [str(key)])[0].key == other.public


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["a.pem"], "SITE=FILE for each of 2 ledgers"),
        (["a.pem", "b.pem"], "got two"),
        (["clinic-9={key}"], "got clinic-9"),
        (["clinic-1=nowhere.pem"], "found none"),
    ],
)
def test_keys_that_fit_no_ledger_are_refused(out: Path, keys: list[str], says: str) -> None:
    key = out / "ledgers" / "clinic-1" / "public-key.pem"
    with pytest.raises(ConfigError, match=says):
        read_ledgers(find_ledgers([out]), [text.format(key=key) for text in keys])


def test_a_ledger_without_any_key_is_refused(tmp_path: Path) -> None:
    made = one(tmp_path)
    (tmp_path / "public-key.pem").unlink()
    with pytest.raises(ConfigError, match="ask the site for its key"):
        read_ledgers([made.path], [])


def test_a_pipe_and_a_folder_are_no_ledger(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(SecurityRefused, match="plain file"):
            read_plain(tmp_path / name, 100)


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * 101)
    assert len(read_plain(tmp_path / "long", 101)) == 101
    with pytest.raises(DataError, match="at most 100 bytes"):
        read_plain(tmp_path / "long", 100)


def test_receipts_are_read_whole(out: Path) -> None:
    (file,) = read_receipts(find_receipts((), [out / "ledgers"]))
    assert len(file.receipts) == 4
    assert {receipt.server_key for receipt in file.receipts} == {file.server_key.hex}
    assert all(receipt.verifies() for receipt in file.receipts)


GOOD = {"server_key": "0" * 64, "receipts": []}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "{}",
        "[" * 9000,
        json.dumps({**GOOD, "more": 1}),
        json.dumps({**GOOD, "server_key": "no"}),
        json.dumps({**GOOD, "receipts": {}}),
        json.dumps({**GOOD, "receipts": [1]}),
        json.dumps({**GOOD, "receipts": [{"site": "a"}]}),
        json.dumps({**GOOD, "receipts": [{"site": "Jane Doe", "run": [], "round": "1"}]}),
    ],
)
def test_receipts_of_another_layout_are_refused_without_a_value(tmp_path: Path, text: str) -> None:
    path = tmp_path / "receipts.json"
    path.write_text(text)
    with pytest.raises(ConfedError) as refused:
        read_receipts([path])
    assert refused.value.exit_code == 2
    assert "Jane" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json"):
        read_json(tmp_path / "none.json", what="receipts")
