"""`confed audit verify` by command line: any machine, no torch, 80 columns, faults by entry."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from common.cli import main
from common.signing import SigningKey
from tests.ledgers import Run, long_ledger, make_consortium, make_ledger

BARE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "flwr", "opacus", "polars", "jinja2"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from common.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    make_consortium(folder, run=Run(rounds=3, evaluate=30.0))
    return folder


def said(
    words: list[str | Path], capsys: pytest.CaptureFixture[str], status: int = 0
) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    shown = capsys.readouterr()
    assert ended.value.code == status, shown
    return shown.out, shown.err


def found(words: list[str | Path], capsys: pytest.CaptureFixture[str], status: int = 0) -> Any:
    return json.loads(said(["audit", "verify", "--json", *words], capsys, status)[0])


def test_a_stranger_finds_the_same_epsilon_on_a_clean_machine_without_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_ledger(
        tmp_path / "site", runs=(Run(rounds=60, noise=3.0), Run(name="run-2", noise=5.0))
    )
    mine = found([made.folder], capsys)["sites"][0]["epsilon"]
    away = tmp_path / "auditor"
    (away / "home").mkdir(parents=True)
    for name in ("ledger.jsonl", "public-key.pem"):
        shutil.copy(made.folder / name, away)
    shutil.rmtree(made.folder)
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-I", "-c", BARE, "audit", "verify", "--json", "."],
        cwd=away,
        env={"HOME": str(away / "home"), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert time.monotonic() - began <= 10
    theirs = json.loads(ended.stdout)["sites"][0]["epsilon"]
    for bound in ("published", "pld", "rdp"):
        assert theirs[bound] == pytest.approx(mine[bound], abs=1e-6)
    assert sorted(p.name for p in away.iterdir()) == ["home", "ledger.jsonl", "public-key.pem"]


def test_ten_thousand_entries_are_verified_within_twenty_seconds(tmp_path: Path) -> None:
    data, key = long_ledger(10_000)
    (tmp_path / "ledger.jsonl").write_bytes(data)
    (tmp_path / "public-key.pem").write_bytes(key.public.pem())
    ended = subprocess.run(
        [sys.executable, "-m", "common.cli", "audit", "verify", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert ended.returncode == 0, ended.stderr
    assert "10,000" in ended.stdout


def test_what_is_printed_fits_80_columns_and_names_the_figures(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, errors = said(["audit", "verify", out], capsys)
    assert errors == ""
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "bank-1 verifies",
        "PLD ",
        "RDP ",
        "published",
        "left",
        "at 3 sites",
        "rate 0.25, noise 1.2",
        "3 from the server",
        "3 rounds compared, 3 computed again",
        "3 ledgers verify; every subject at one site",
    ):
        assert words in " ".join(text.split()), words


def test_a_wide_path_and_a_long_name_still_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "x" * 64
    make_ledger(tmp_path / name, site=name, runs=(Run(name="y" * 64, rounds=1),))
    text, _ = said(["audit", "verify", tmp_path], capsys)
    assert max(map(len, text.splitlines())) <= 80
    assert text.replace("\n", "").replace(" ", "").count(name) >= 2


def test_a_fault_is_exit_1_and_named_by_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_ledger(tmp_path)
    lines = made.data.splitlines(keepends=True)
    made.path.write_bytes(b"".join([*lines[:4], *lines[5:]]))
    text, errors = said(["audit", "verify", tmp_path], capsys, status=1)
    assert errors == ""
    assert "clinic-1  DOES NOT VERIFY" in text
    assert "entry 4, chain: expected seq 4, got 5" in text
    assert "FAILED" in text
    assert "no privacy claim" in text
    plain = found([tmp_path], capsys, status=1)
    assert plain["passed"] is False
    assert plain["sites"][0]["faults"][0]["entry"] == 4
    assert plain["sites"][0]["faults"][0]["code"] == "chain"


def test_hundreds_of_faults_are_cut_in_the_table_and_whole_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, key = long_ledger(300)
    lines = data.splitlines(keepends=True)
    (tmp_path / "ledger.jsonl").write_bytes(b"".join([*lines[:10], *lines[11:]]))
    (tmp_path / "public-key.pem").write_bytes(key.public.pem())
    text, _ = said(["audit", "verify", tmp_path], capsys, status=1)
    plain = found([tmp_path], capsys, status=1)
    faults = plain["sites"][0]["faults"]
    assert faults[0]["entry"] == 10
    assert len(faults) > 200
    assert f"and {len(faults) - 12} more, which may follow from the first" in text


def test_json_is_stable_and_complete(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = found([out, "--sites-per-subject", "2"], capsys)
    assert set(plain) == {"version", "passed", "claim", "sites", "consortium", "receipts"}
    assert plain["version"] == 1
    assert plain["consortium"]["sites_per_subject"] == 2
    assert plain["consortium"]["sites"] == 3
    assert plain["receipts"]["rounds_recomputed"] == 3
    site = plain["sites"][0]
    assert set(site) == {
        "site",
        "ledger",
        "passed",
        "faults",
        "entries",
        "head",
        "first_time",
        "last_time",
        "key",
        "keys_in_ledger",
        "unit",
        "adjacency",
        "claim",
        "seeded_noise",
        "epsilon",
        "cohorts",
        "budget",
        "runs",
        "receipts",
        "opt_out_entries",
    }
    assert site["runs"][0]["planned"] == site["runs"][0]["reserved"] == 3
    assert site["epsilon"]["published"] == min(site["epsilon"]["pld"], site["epsilon"]["rdp"])
    assert site["budget"]["left"] == site["budget"]["epsilon"] - site["epsilon"]["published"]
    assert site["receipts"] == {"in_ledger": 2, "from_server": 3, "newest_entry": 15}


def test_every_json_key_stands_in_the_docs(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()

    def keys(value: Any) -> set[str]:
        if isinstance(value, list):
            return {key for item in value for key in keys(item)}
        if not isinstance(value, dict):
            return set()
        named = set() if "all" in value else set(value)
        return named.union(*(keys(item) for item in value.values()))

    plain = found([out], capsys)
    for site in plain["sites"]:
        for run in site["runs"]:
            run["event"] = None
    assert {key for key in keys(plain) if f"`{key}`" not in docs} == set()


def test_seeded_noise_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_ledger(tmp_path, seeded=True)
    text, _ = said(["audit", "verify", tmp_path], capsys)
    assert "1 ledger verifies; no privacy claim" in text


def test_a_named_key_is_the_one_that_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_ledger(tmp_path / "site")
    other = tmp_path / "other.pem"
    other.write_bytes(SigningKey.generate().public.pem())
    text, _ = said(["audit", "verify", made.folder, "--public-key", other], capsys, status=1)
    assert "entry 0, signature: expected the ledger of the given public key" in text


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["nowhere"], 2),
        ([], 2),
        (["{site}", "--public-key", "{site}/ledger.jsonl"], 2),
        (["{site}", "--receipts", "{site}/ledger.jsonl"], 2),
        (["{site}", "--sites-per-subject", "0"], 2),
        (["{site}", "--sites-per-subject", "2"], 2),
        (["{site}", "--sites-per-subject", "many"], 2),
        (["{pipe}"], 3),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int
) -> None:
    made = make_ledger(tmp_path / "site", runs=(Run(rounds=1),))
    before = made.data
    os.mkfifo(tmp_path / "pipe")
    told = [word.format(site=made.folder, pipe=tmp_path / "pipe") for word in words]
    text, errors = said(["audit", "verify", *told], capsys, status)
    assert text == ""
    assert errors.count("\n") == 1
    assert errors.startswith("confed: ")
    assert made.data == before


def test_what_a_sub_command_of_audit_lacks_is_named_with_all_its_words() -> None:
    lacking = BARE.replace('"torch", ', '"torch", "numpy", ')
    words = ["audit", "empirical", "--tier", "a"]
    ended = subprocess.run(
        [sys.executable, "-c", lacking, *words], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert "for `confed audit empirical`, got none; run: pip install 'confed[simulation]'" in (
        ended.stderr
    )


def test_help_of_the_group_names_every_sub_command(capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = said(["audit", "--help"], capsys)
    assert all(f"  {name} " in text for name in ("verify", "report", "empirical"))


def test_verify_imports_neither_torch_nor_flower_nor_matplotlib(tmp_path: Path) -> None:
    make_ledger(tmp_path, runs=(Run(rounds=1),))
    code = (
        "import sys, common.cli\n"
        "try:\n"
        f"    common.cli.main(['audit', 'verify', {str(tmp_path)!r}])\n"
        "except SystemExit as ended:\n"
        "    assert ended.code == 0\n"
        "print('LOADED', *{m.partition('.')[0] for m in sys.modules})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.partition("LOADED")[2].split())
    assert "dp_accounting" in loaded
    assert not loaded & {"torch", "flwr", "opacus", "polars", "matplotlib", "jinja2", "ray"}
