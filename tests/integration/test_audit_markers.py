"""No word of a person reaches a ledger, what a server keeps, a verdict or a report."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulations.shop import write_shop

SUBJECTS = 250
KINDS = ("id", "name", "note", "street")
MARKERS = tuple(f"zq{kind}{n:03d}Marker" for n in range(SUBJECTS) for kind in KINDS)
"""A thousand strings that stand in the records and nowhere else."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulation on marked records, audited: everything that an auditor sees, in one folder."""
    folder = tmp_path_factory.mktemp("marked")
    data = write_shop(folder / "shop", subjects=SUBJECTS, least=3)
    rows = (data / "interactions.csv").read_text().splitlines()
    marked = [rows[0]]
    for row in rows[1:]:
        subject, _, rest = row.partition(",")
        marked.append(f"zqid{int(subject[1:]):03d}Marker,{rest}")
    (data / "interactions.csv").write_text("\n".join(marked) + "\n")
    users = ["user_id,name,note,street"]
    users += [",".join(f"zq{kind}{n:03d}Marker" for kind in KINDS) for n in range(SUBJECTS)]
    (data / "users.csv").write_text("\n".join(users) + "\n")
    seen, out = folder / "seen", folder / "out"
    seen.mkdir()
    options = ["--sites", "2", "--rounds", "2", "--baselines", "popularity", "--out", str(out)]
    told = confed("simulate", "--data", str(data), *options)
    told += confed("audit", "verify", str(out))
    told += confed("audit", "verify", "--json", str(out))
    (seen / "summary.json").write_bytes((out / "summary.json").read_bytes())
    told += confed("audit", "report", str(out), "--out", str(seen / "page.html"))
    (seen / "told.txt").write_text(told)
    for path in sorted((out / "ledgers").rglob("*")):
        if path.is_file():
            (seen / "-".join(path.relative_to(out).parts)).write_bytes(path.read_bytes())
    return folder


def confed(*words: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "common.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout + ended.stderr


def hits(folder: Path) -> set[str]:
    text = b"".join(path.read_bytes() for path in sorted(folder.iterdir())).lower()
    return {marker for marker in MARKERS if marker.lower().encode() in text}


def test_a_thousand_marked_strings_of_the_records_are_nowhere_in_what_an_auditor_sees(
    ran: Path,
) -> None:
    assert len(set(MARKERS)) == 1000
    assert hits(ran / "shop") == set(MARKERS)
    names = {path.name for path in (ran / "seen").iterdir()}
    assert "ledgers-receipts.json" in names
    assert sum(name.endswith("ledger.jsonl") for name in names) == 2
    assert hits(ran / "seen") == set()
