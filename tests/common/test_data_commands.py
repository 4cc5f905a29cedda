"""`confed data`, and every data row of the bad-input list through the command line."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from common.cli import main
from common.limits import LIMITS

MARKER = "MARKER7391"
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
ITEMS = "item_id,title,text,category\n" + "".join(
    f"i{n},Title {n},Text {n},a|b\n" for n in range(10)
)
ROWS = [f"{MARKER}{n},i{(n + k) % 10},1.0,{100 + k}" for n in range(30) for k in range(4)]
HEADER = "user_id,item_id,rating,timestamp\n"


def interactions(*rows: str, header: str = HEADER) -> str:
    return header + "\n".join([*ROWS, *rows]) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    site.mkdir()
    (site / "items.csv").write_text(ITEMS)
    (site / "interactions.csv").write_text(interactions())
    return site


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["data", *map(str, words)])
    return int(stopped.value.code or 0)


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    def damage(site: Path) -> None:
        (site / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def fifo(site: Path) -> None:
    (site / "interactions.csv").unlink()
    os.mkfifo(site / "interactions.csv")


def symlink(site: Path) -> None:
    (site / "interactions.csv").rename(site / "elsewhere.csv")
    (site / "interactions.csv").symlink_to(site / "elsewhere.csv")


def bomb(site: Path) -> None:
    (site / "interactions.csv").unlink()
    content = interactions().encode() + b"\n" * (32 << 20)
    (site / "interactions.csv.gz").write_bytes(gzip.compress(content))


def parquet_bomb(site: Path) -> None:
    (site / "interactions.csv").unlink()
    frame = pl.DataFrame({"user_id": ["0" * (32 << 20)], "item_id": ["i1"], "timestamp": [1]})
    frame.write_parquet(site / "interactions.parquet")


def truncated_gzip(site: Path) -> None:
    (site / "interactions.csv").unlink()
    (site / "interactions.csv.gz").write_bytes(gzip.compress(interactions().encode())[:-20])


def not_parquet(site: Path) -> None:
    (site / "interactions.csv").rename(site / "interactions.parquet")


def twice(site: Path) -> None:
    (site / "interactions.csv.gz").write_bytes(gzip.compress(interactions().encode()))


def nested(site: Path) -> None:
    frame = pl.read_csv(site / "interactions.csv").with_columns(item_id=pl.concat_list("item_id"))
    (site / "interactions.csv").unlink()
    frame.write_parquet(site / "interactions.parquet")


def wide_rows(site: Path) -> None:
    many = [f"{MARKER},i{n % 10},1.0,{n}" for n in range(LIMITS.rows_per_subject + 1)]
    (site / "interactions.csv").write_text(interactions(*many))


BAD: list[tuple[str, Callable[[Path], None], int, str]] = [
    ("empty file", text("interactions.csv", ""), 2, "empty file"),
    ("header only", text("interactions.csv", HEADER), 2, "at least one row"),
    ("empty catalog", text("items.csv", "item_id,title,text,category\n"), 2, "at least one row"),
    ("few", text("interactions.csv", HEADER + "\n".join(ROWS[:40])), 3, "at least 20 subjects"),
    ("NaN", text("interactions.csv", interactions(f"{MARKER},i1,NaN,5")), 2, "NaN or infinity"),
    ("inf", text("interactions.csv", interactions(f"{MARKER},i1,inf,5")), 2, "NaN or infinity"),
    ("-inf time", text("interactions.csv", interactions(f"{MARKER},i1,1,-inf")), 2, "timestamp"),
    ("1e300", text("interactions.csv", interactions(f"{MARKER},i1,1e300,5")), 2, "at most"),
    ("1e300 time", text("interactions.csv", interactions(f"{MARKER},i1,1,1e300")), 2, "at most"),
    ("word", text("interactions.csv", interactions(f"u,i1,{MARKER},5")), 2, "a number in rating"),
    ("blank", text("interactions.csv", interactions("u,i1,,5")), 2, "row 121"),
    ("date", text("interactions.csv", interactions("u,i1,1,2020-01-01")), 2, "timestamp"),
    ("missing", text("interactions.csv", interactions(header="a,b,c,d\n")), 2, "missing user_id"),
    ("extra field", text("interactions.csv", interactions(f"u,i1,1,5,{MARKER}")), 2, "4 fields"),
    ("short row", text("interactions.csv", interactions(f"{MARKER},i1")), 2, "row 121"),
    (
        "duplicate column",
        text("interactions.csv", interactions(header="user_id,item_id,rating,rating\n")),
        2,
        "rating twice",
    ),
    (
        "nameless column",
        text("interactions.csv", interactions(header="user_id,item_id,,timestamp\n")),
        2,
        "a name for every column",
    ),
    (
        "unknown label",
        text("kg.csv", f"head,relation,tail\nitem:i1,is_a,x\nitem:{MARKER},is_a,x\n"),
        2,
        "unknown label in row 2",
    ),
    ("empty subject id", text("interactions.csv", interactions(",i1,1,5")), 2, "user_id"),
    ("blank subject id", text("interactions.csv", interactions("  ,i1,1,5")), 2, "user_id"),
    ("long id", text("interactions.csv", interactions(f"{MARKER * 30},i1,1,5")), 2, "256"),
    ("row cap", wide_rows, 2, "rows a subject"),
    ("latin-1", text("interactions.csv", interactions().encode() + b"\xe9,i1,1,5"), 2, "line 122"),
    ("UTF-16", text("interactions.csv", interactions().encode("utf-16")), 2, "UTF-8"),
    ("NUL", text("interactions.csv", interactions("\0,i1,1,5")), 2, "NUL byte in line 122"),
    ("open quote", text("interactions.csv", interactions(f'"{MARKER},i1,1,5')), 2, "quote"),
    ("repeated item", text("items.csv", ITEMS + f"i3,{MARKER},x,y\n"), 2, "row 11"),
    ("no item of the catalog", text("items.csv", ITEMS.replace("\ni", "\nj")), 2, "check item_id"),
    ("symlink", symlink, 3, "symbolic link"),
    ("FIFO", fifo, 3, "pipe"),
    ("zip bomb", bomb, 3, "zip bomb"),
    ("Parquet bomb", parquet_bomb, 3, "zip bomb"),
    ("truncated gzip", truncated_gzip, 2, "whole gzip"),
    ("not Parquet", not_parquet, 2, "Parquet"),
    ("nested ids", nested, 2, "item_id"),
    ("two files", twice, 2, "keep one"),
    ("no catalog", lambda site: (site / "items.csv").unlink(), 2, "items.csv"),
    ("nobody has two", text("interactions.csv", HEADER + "\n".join(ROWS[::4])), 2, "2 or more"),
]


@pytest.mark.parametrize(("damage", "code", "said"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_data_ends_in_one_line_without_a_cell_value(
    folder: Path,
    damage: Callable[[Path], None],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(folder)
    assert run("check", folder, "--json") == code
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.startswith("confed: ")
    assert printed.err.count("\n") == 1
    assert MARKER not in printed.err + printed.out


def test_a_pipe_is_refused_at_once_in_a_fresh_process(folder: Path) -> None:
    fifo(folder)
    command = [sys.executable, "-m", "common.cli", "data", "check", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_byte_order_mark_and_crlf_read_like_plain_text(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("check", folder, "--json") == 0
    plain = capsys.readouterr().out
    for name in ("items.csv", "interactions.csv"):
        content = (folder / name).read_bytes().replace(b"\n", b"\r\n")
        (folder / name).write_bytes(b"\xef\xbb\xbf" + content)
    assert run("check", folder, "--json") == 0
    assert capsys.readouterr().out == plain


def test_an_item_outside_of_the_catalog_is_counted_and_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "interactions.csv").write_text(interactions("u1,nowhere,1,5", "u2,nowhere,1,5"))
    assert run("check", folder) == 0
    assert "2 with an item not in the catalog" in " ".join(capsys.readouterr().out.split())
    assert run("check", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dropped_unknown_items"], found["dropped_subjects"]) == (2, 2)
    assert (found["subjects"], found["interactions"], found["rows"]) == (30, 120, 122)


def test_the_printed_figures_are_those_of_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = ITEMS + "".join(f"x{n},T,T,c\n" for n in range(10))
    (folder / "items.csv").write_text(items)
    extra = [f"{MARKER}{n},i{n % 10},1.0,300" for n in range(30)]
    (folder / "interactions.csv").write_text(interactions(*extra))
    assert run("check", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["items"] == 20
    assert found["items_never_seen"] == 10
    assert found["categories"] == 2
    assert found["dropped_duplicates"] == 30
    assert found["median_per_subject"] == 4
    assert found["share_with_3_or_more"] == 1
    assert found["share_of_top_10_percent"] == pytest.approx(0.2)
    assert (found["first_time"], found["last_time"]) == (100, 103)
    assert found["trainable"] is True


def test_the_table_fits_eighty_columns_and_says_what_can_be_done(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"column_{n}" for n in range(40)]
    (folder / "users.csv").write_text(",".join(["user_id", *names]) + "\n" + "u" + "," * 40 + "\n")
    assert run("check", folder) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "column_39" in out
    assert "can be trained on" in out


def test_times_are_dates_only_where_both_ends_can_be(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row.rsplit(",", 1)[0] + ",1577836800" for row in ROWS]
    (folder / "interactions.csv").write_text(HEADER + "\n".join(rows))
    assert run("check", folder) == 0
    assert "2020-01-01 to 2020-01-01" in capsys.readouterr().out
    (folder / "interactions.csv").write_text(HEADER + "\n".join([*rows, "a,i1,1,7"]))
    assert run("check", folder) == 0
    assert "7 to 1,577,836,800" in capsys.readouterr().out


def test_too_few_subjects_still_see_their_figures(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "interactions.csv").write_text(HEADER + "\n".join(ROWS[:40]))
    assert run("check", folder) == 3
    printed = capsys.readouterr()
    assert "can be trained on" in printed.out
    assert "10" not in printed.err


def test_generated_sites_pass_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made"
    words = ("generate", "care-and-bank", out, "--subjects", "60", "--sites", "3", "--seed", "5")
    assert run(*words) == 0
    folders = [out / "care" / "site-1", out / "bank" / "site-1", out / "care" / "site-2"]
    assert capsys.readouterr().out.split() == list(map(str, folders))
    for made in folders:
        assert sorted(p.name for p in made.iterdir()) == [
            "interactions.parquet",
            "items.csv",
            "kg.csv",
        ]
        assert run("check", made, "--json") == 0
        assert json.loads(capsys.readouterr().out)["subjects"] == 60


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("generate", "nowhere", "new"), "care-and-bank"),
        (("generate", "care-and-bank", "new", "--sites", "1"), "at least 2 sites"),
        (("generate", "care", "new", "--subjects", "0"), "subjects >= 1"),
        (("generate", "care", "new", "--seed", "-1"), "seed >= 0"),
        (("generate", "care", "."), "empty folder"),
        (("generate", "care", "new", "--subjects", "many"), "integer"),
        (("check", "new"), "data folder"),
        (("check",), "DIR"),
    ],
)
def test_wrong_words_end_in_one_line_and_write_nothing(
    words: tuple[str, ...],
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_help_needs_neither_polars_nor_numpy() -> None:
    code = (
        "import sys, common.data_commands; "
        "sys.exit(any(m in sys.modules for m in ('numpy', 'polars', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not REAL.is_dir(), reason="real data not there: ../shared/data")
@pytest.mark.parametrize(
    "name", sorted(p.name for p in REAL.iterdir() if p.is_dir()) if REAL.is_dir() else []
)
def test_real_data_pass_the_check(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", REAL / name, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dropped_unknown_items"] == 0
    assert found["trainable"] is True
