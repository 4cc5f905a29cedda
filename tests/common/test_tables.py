"""Safe reading: what comes through, and what is refused before it costs anything."""

import csv
import gzip
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ConfedError, DataError, SecurityRefused
from common.limits import LIMITS
from common.tables import (
    Table,
    child_folder,
    find_table,
    id_column,
    number_column,
    open_table,
    read_bytes,
    require_distinct,
    text_column,
)

SAFE = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


def table(folder: Path, content: str) -> Table:
    (folder / "t.csv").write_bytes(content.encode())
    return open_table(folder, "t")


def column(folder: Path, *cells: str) -> tuple[Table, pl.DataFrame]:
    found = table(folder, "a,b\n" + "".join(f"{cell},z\n" for cell in cells))
    return found, found.frame(("a",))


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(SAFE, SAFE), min_size=1, max_size=8), end=st.sampled_from("\n \r\n"))
def test_any_text_quoted_by_the_standard_library_reads_back(
    tmp_path: Path, rows: list[tuple[str, str]], end: str
) -> None:
    written = io.StringIO()
    writer = csv.writer(written, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerows([("a", "b"), *rows])
    found = table(tmp_path, written.getvalue())
    frame = found.frame(("a", "b"))
    assert list(text_column(found, frame, "a")) == [a for a, _ in rows]
    assert list(text_column(found, frame, "b")) == [b for _, b in rows]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".csv.gz", ".parquet"]))
def test_any_bytes_give_a_table_or_one_clear_error(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    try:
        found = open_table(tmp_path, "x")
        frame = found.frame(found.columns)
        number_column(found, frame, found.columns[0], magnitude=1e9)
    except ConfedError as error:
        assert "\n" not in str(error)
    finally:
        path.unlink()


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_the_three_formats_hold_the_same_table(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame({"a": ["01", "é"], "b": ["x,y", '"q"']})
    content = frame.write_csv().encode()
    if suffix == ".parquet":
        frame.write_parquet(tmp_path / "t.parquet")
    else:
        (tmp_path / f"t{suffix}").write_bytes(gzip.compress(content) if "gz" in suffix else content)
    found = open_table(tmp_path, "t")
    assert found.columns == ("a", "b")
    assert found.frame(("b", "a")).rows() == [("x,y", "01"), ('"q"', "é")]


def test_a_gzip_file_of_several_members_reads_whole(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a\n1\n") + gzip.compress(b"2\n"))
    found = open_table(tmp_path, "t")
    assert list(found.frame(("a",))["a"]) == ["1", "2"]


def test_ids_keep_leading_zeros_and_words_that_look_like_numbers(tmp_path: Path) -> None:
    found, frame = column(tmp_path, "007", "1e5", "NaN", "null", "true")
    assert list(id_column(found, frame, "a")) == ["007", "1e5", "NaN", "null", "true"]


def test_whole_number_ids_of_parquet_become_text_and_fractions_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"a": [7, 8], "b": [0.5, 1.0]}).write_parquet(tmp_path / "t.parquet")
    found = open_table(tmp_path, "t")
    frame = found.frame(("a", "b"))
    assert list(id_column(found, frame, "a")) == ["7", "8"]
    with pytest.raises(DataError, match="text ids in b"):
        id_column(found, frame, "b")


def test_whole_numbers_stay_exact_and_fractions_become_floats(tmp_path: Path) -> None:
    found, frame = column(tmp_path, str(2**62 + 1), " -3 ")
    whole = number_column(found, frame, "a", magnitude=9e18)
    assert whole.dtype == np.int64
    assert whole.tolist() == [2**62 + 1, -3]
    found, frame = column(tmp_path, "1", "2.5", "1e3")
    mixed = number_column(found, frame, "a", magnitude=9e18)
    assert mixed.dtype == np.float64
    assert mixed.tolist() == [1.0, 2.5, 1000.0]


def test_dates_of_parquet_become_unix_seconds(tmp_path: Path) -> None:
    days = pl.Series("a", ["1970-01-02", "2020-01-01"]).str.to_date()
    pl.DataFrame({"a": days, "b": days.cast(pl.Datetime("ns"))}).write_parquet(
        tmp_path / "t.parquet"
    )
    found = open_table(tmp_path, "t")
    frame = found.frame(("a", "b"))
    for name in "ab":
        assert number_column(found, frame, name, magnitude=9e18).tolist() == [86400, 1577836800]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("x", "text or nothing in row 2"),
        ("", "text or nothing in row 2"),
        ("nan", "NaN or infinity in row 2"),
        ("-inf", "NaN or infinity in row 2"),
        ("1e300", "at most ±1e\\+09"),
        ("99999999999999999999", "at most ±1e\\+09"),
        ("0x10", "text or nothing"),
    ],
)
def test_a_cell_that_is_no_number_is_named_by_its_row_alone(
    tmp_path: Path, cell: str, said: str
) -> None:
    found, frame = column(tmp_path, "1", cell, "3")
    with pytest.raises(DataError, match=said) as error:
        number_column(found, frame, "a", magnitude=1e9)
    assert not cell or f" {cell} " not in str(error.value)


def test_a_repeated_id_is_named_by_the_row_of_its_second_place(tmp_path: Path) -> None:
    found, frame = column(tmp_path, "p", "q", "p")
    with pytest.raises(DataError, match="row 3"):
        require_distinct(found, id_column(found, frame, "a"), "a")


def test_only_the_named_columns_are_read_in_the_order_asked(tmp_path: Path) -> None:
    found = table(tmp_path, "c,a,b\n1,2,3\n")
    assert found.frame(("b", "a"), ("z", "c")).rows() == [("3", "2", "1")]


def test_a_header_may_be_quoted_and_hold_commas(tmp_path: Path) -> None:
    assert table(tmp_path, '"a,1","b"\n1,2\n').columns == ("a,1", "b")


def test_links_pipes_folders_and_sockets_are_refused_without_reading(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("a\n1\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("link", "dangling", "pipe", "folder"):
        with pytest.raises(SecurityRefused, match="regular file"):
            open_table(tmp_path, name)
    with pytest.raises(SecurityRefused, match="regular file"):
        read_bytes(Path("/dev/zero"))


def test_decompression_stops_at_the_ratio_and_at_the_size(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a\n" + b"0" * (24 << 20)))
    with pytest.raises(SecurityRefused, match="zip bomb"):
        read_bytes(path)
    assert len(read_bytes(path, limits=replace(LIMITS, decompression_ratio=2000.0))) > 24 << 20
    with pytest.raises(SecurityRefused, match="at most 1 MiB"):
        read_bytes(path, limits=replace(LIMITS, file_bytes=1 << 20))


def test_a_small_file_may_compress_as_well_as_it_likes(tmp_path: Path) -> None:
    content = b"a\n" + b"same\n" * 200_000
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(content))
    assert read_bytes(tmp_path / "t.csv.gz") == content


def test_a_plain_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"x" * 11)
    with pytest.raises(SecurityRefused, match="at most"):
        read_bytes(tmp_path / "t.csv", limits=replace(LIMITS, file_bytes=10))


def test_a_parquet_file_of_too_many_cells_is_refused_by_its_footer(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1] * 100_000}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(SecurityRefused, match="at most 1 MiB"):
        open_table(tmp_path, "t", limits=replace(LIMITS, file_bytes=1 << 20))


def test_a_parquet_page_that_grows_beyond_the_ratio_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"a": ["0" * (24 << 20)]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(SecurityRefused, match="zip bomb"):
        open_table(tmp_path, "t")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../x", "/etc", "a\\b", "a\0b"])
def test_a_folder_name_cannot_leave_its_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(SecurityRefused, match="plain folder name"):
        child_folder(tmp_path, name)


def test_a_linked_folder_below_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert child_folder(tmp_path, "there") == tmp_path / "there"
    with pytest.raises(SecurityRefused, match="symbolic link"):
        child_folder(tmp_path, "link")


@pytest.mark.parametrize("name", ["../t", "a/b", "..", ""])
def test_a_table_name_cannot_be_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(SecurityRefused, match="plain table name"):
        find_table(tmp_path, name)


def test_an_unreadable_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a\n1\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("runs as root, who may read everything")
    with pytest.raises(DataError, match="Permission denied"):
        read_bytes(path)
