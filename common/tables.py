"""Tables from outside, read safely: CSV (also gzipped) and Parquet.

Everything a file can do wrong ends in one `DataError` or `SecurityRefused` line, and no message
holds a cell. A file is opened once, without following a link and without blocking on a pipe,
checked on the open descriptor, and bounded in size *while* it is decompressed; polars only ever
sees bytes that passed. CSV columns arrive as text, and are turned into numbers here, so that
nothing is guessed from the first rows.

Byte-order marks and CRLF line ends are accepted: they are harmless.
"""

import csv
import gzip
import io
import os
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.errors import DataError, SecurityRefused
from common.limits import LIMITS, Limits
from common.parquet_size import uncompressed_bytes

SUFFIXES = (".csv", ".csv.gz", ".parquet")
"""File formats, in the order in which they are looked for."""

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_CELL_BYTES = 16  # a polars string view, the widest fixed part of a cell


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Table:
    """A table whose bytes and header were checked, and whose cells were not read yet.

    Attributes:
        path: Where it came from; named in errors.
        columns: Header, in file order, without duplicates.
        content: The file's bytes, decompressed.
    """

    path: Path
    columns: tuple[str, ...]
    content: bytes

    @property
    def name(self) -> str:
        """File name, as errors say it."""
        return self.path.name

    def frame(self, required: Sequence[str], optional: Sequence[str] = ()) -> pl.DataFrame:
        """Read the named columns; other columns are left alone.

        Raises:
            DataError: A required column is missing, a row has too many fields, or there is no row.
        """
        missing = [column for column in required if column not in self.columns]
        if missing:
            raise DataError(
                f"{self.name}: expected columns {', '.join(required)}; "
                f"missing {', '.join(missing)}: add them or rename the header."
            )
        wanted = [*required, *(column for column in optional if column in self.columns)]
        frame = _parse(self, wanted)
        if frame.is_empty():
            raise DataError(f"{self.name}: expected at least one row, got none.")
        return frame


def child_folder(root: Path, name: str) -> Path:
    """The folder `name` directly under `root`; a name from a file cannot leave `root`.

    Raises:
        SecurityRefused: `name` is not one plain folder name, or it is a link.
    """
    if name in {"", ".", ".."} or "/" in name or "\\" in name or "\0" in name:
        raise SecurityRefused(
            "Expected one plain folder name, got a path; put the folder under --data."
        )
    folder = root / name
    if folder.is_symlink():
        raise SecurityRefused(
            f"{name}: expected a real folder, got a symbolic link; copy the files."
        )
    return folder


def find_table(folder: Path, name: str) -> Path | None:
    """The file that holds table `name` in `folder`, or None.

    Raises:
        DataError: `folder` is not a folder, or the table is there twice.
        SecurityRefused: `name` is a path.
    """
    if Path(name).name != name or name in {"", ".", ".."}:
        raise SecurityRefused("Expected a plain table name, got a path.")
    if not folder.is_dir():
        raise DataError(f"Expected a data folder at {folder}, got none; check the path.")
    found = [path for suffix in SUFFIXES if os.path.lexists(path := folder / f"{name}{suffix}")]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"Expected one file for {name}, got {names}; keep one of them.")
    return found[0] if found else None


def open_table(folder: Path, name: str, *, limits: Limits = LIMITS) -> Table:
    """Find, check and load table `name` of `folder`.

    Raises:
        DataError: It is missing, empty, not UTF-8, or has a broken header.
        SecurityRefused: It is a link, a pipe, too large, or a decompression bomb.
    """
    path = find_table(folder, name)
    if path is None:
        raise DataError(
            f"Expected {name}.csv, {name}.csv.gz or {name}.parquet in {folder}, got none."
        )
    content = read_bytes(path, limits=limits)
    if not content:
        raise DataError(f"{path.name}: expected a table, got an empty file.")
    if path.suffix == ".parquet":
        columns = _parquet_columns(path, content, limits)
    else:
        content = content.removeprefix(_BOM)
        _require_text(path, content)
        columns = _csv_columns(path, content)
    return Table(path=path, columns=columns, content=content)


def read_bytes(path: Path, *, limits: Limits = LIMITS) -> bytes:
    """Bytes of a regular file, gunzipped when its name ends in .gz, never more than the limit.

    Raises:
        DataError: It cannot be read, or the gzip stream is broken.
        SecurityRefused: It is not a regular file, is too large, or expands too much.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            message = f"{path.name}: expected a regular file, got a symbolic link; copy the file."
            raise SecurityRefused(message) from None
        reason = os.strerror(error.errno or 0)
        raise DataError(f"{path.name}: expected a readable file, got '{reason}'.") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise SecurityRefused(
            f"{path.name}: expected a regular file, got a pipe, device or folder."
        )
    with os.fdopen(descriptor, "rb") as file:
        if found.st_size > limits.file_bytes:
            raise _too_large(path, limits)
        if path.suffix == ".gz":
            return _gunzip(path, file, found.st_size, limits)
        return file.read(limits.file_bytes)


def _gunzip(path: Path, file: io.BufferedIOBase, compressed: int, limits: Limits) -> bytes:
    """Decompress in chunks and stop at the first limit, before the memory is spent."""
    ratio_cap = _ratio_cap(compressed, limits)
    buffer = bytearray()
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            while chunk := stream.read(_CHUNK):
                buffer += chunk
                if len(buffer) > limits.file_bytes:
                    raise _too_large(path, limits)
                if len(buffer) > ratio_cap:
                    raise _bomb(path, limits)
    except (OSError, EOFError, zlib.error):
        raise DataError(f"{path.name}: expected a whole gzip file, got a broken one.") from None
    return bytes(buffer)


def _ratio_cap(compressed: int, limits: Limits) -> int:
    """Most bytes after decompression; a small file may compress as well as it likes."""
    return max(4 * _CHUNK, int(compressed * limits.decompression_ratio))


def _bomb(path: Path, limits: Limits) -> SecurityRefused:
    return SecurityRefused(
        f"{path.name}: expected decompression to at most {limits.decompression_ratio:g} times its "
        "size, got more (a zip bomb?); give a plain CSV."
    )


def _too_large(path: Path, limits: Limits) -> SecurityRefused:
    mib = limits.file_bytes / 2**20
    return SecurityRefused(f"{path.name}: expected at most {mib:g} MiB, got more; split the site.")


def _require_text(path: Path, content: bytes) -> None:
    """UTF-8 without NUL; the error names the line."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path.name}: expected UTF-8, got other bytes in line {line}.") from None
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise DataError(f"{path.name}: expected text, got a NUL byte in line {line}.")


def _csv_columns(path: Path, content: bytes) -> tuple[str, ...]:
    """Header names; polars would silently rename a duplicate, so they are read here."""
    first = content.partition(b"\n")[0].decode("utf-8").rstrip("\r")
    try:
        names = next(csv.reader([first], strict=True), [])
    except csv.Error:
        raise DataError(f"{path.name}: expected a header line, got broken quotes.") from None
    return _require_header(path, names)


def _parquet_columns(path: Path, content: bytes, limits: Limits) -> tuple[str, ...]:
    """Column names, after sizes in the headers were held against the limits."""
    try:
        size = uncompressed_bytes(content)
        if size > _ratio_cap(len(content), limits):
            raise _bomb(path, limits)
        names = list(pl.read_parquet_schema(io.BytesIO(content)))
        rows = pl.scan_parquet(io.BytesIO(content)).select(pl.len()).collect().item()
    except (ValueError, OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        raise DataError(f"{path.name}: expected a Parquet file, got something else.") from None
    if max(size, rows * len(names) * _CELL_BYTES) > limits.file_bytes:
        raise _too_large(path, limits)
    return _require_header(path, names)


def _require_header(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    if not names or any(not name.strip() for name in names):
        raise DataError(f"{path.name}: expected a name for every column, got an empty one.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path.name}: expected distinct columns, got {', '.join(twice)} twice.")
    return tuple(names)


def _parse(table: Table, wanted: Sequence[str]) -> pl.DataFrame:
    """Cells of the wanted columns: text from CSV, the stored types from Parquet."""
    try:
        if table.path.suffix == ".parquet":
            return pl.read_parquet(io.BytesIO(table.content), columns=list(wanted))
        return pl.read_csv(table.content, columns=list(wanted), infer_schema=False).select(wanted)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        raise DataError(
            f"{table.name}: expected {len(table.columns)} fields in each row, got a row with more "
            "fields, an open quote or a damaged page."
        ) from None


def id_column(
    table: Table, frame: pl.DataFrame, column: str, *, limits: Limits = LIMITS
) -> pl.Series:
    """An id column as text, none of them empty.

    Raises:
        DataError: An id is empty, too long, or stored as something else than text or integers.
    """
    series = frame[column]
    if not (series.dtype.is_integer() or series.dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise DataError(f"{table.name}: expected text ids in {column}, got {series.dtype}.")
    series = series.cast(pl.String)
    empty = (series.is_null() | (series.str.strip_chars() == "")).fill_null(True)
    _refuse_rows(table, column, empty, expected="an id", got="an empty cell")
    long = series.str.len_chars() > limits.id_characters
    _refuse_rows(table, column, long, expected=f"{limits.id_characters} characters", got="more")
    return series


def require_distinct(table: Table, ids: pl.Series, column: str) -> None:
    """Refuse an id that stands in two rows.

    Raises:
        DataError: One does.
    """
    again = ~ids.is_first_distinct()
    _refuse_rows(table, column, again, expected="distinct ids", got="one again")


def text_column(
    table: Table, frame: pl.DataFrame, column: str, *, limits: Limits = LIMITS
) -> pl.Series:
    """A column of free text, cut at the limit; a missing cell is the empty text.

    Raises:
        DataError: The column holds lists or structures.
    """
    if frame[column].dtype.is_nested():
        raise DataError(f"{table.name}: expected text in {column}, got {frame[column].dtype}.")
    texts = frame[column].cast(pl.String, strict=False).fill_null("")
    return texts.str.slice(0, limits.text_characters)


def number_column(
    table: Table, frame: pl.DataFrame, column: str, *, magnitude: float
) -> NDArray[np.int64] | NDArray[np.float64]:
    """A numeric column: int64 where every cell is a whole number, else float64.

    Args:
        table: The table, for errors.
        frame: Its cells.
        column: Column name.
        magnitude: Largest absolute value that makes sense.

    Raises:
        DataError: A cell is empty, text, not finite or larger than `magnitude`.
    """
    series = frame[column]
    if series.dtype.is_temporal():
        series = series.cast(pl.Datetime("us"), strict=False).dt.epoch("s")
    if series.dtype == pl.String:
        series = series.str.strip_chars()
    elif not series.dtype.is_numeric():
        raise DataError(f"{table.name}: expected numbers in {column}, got {series.dtype}.")
    floats = series.cast(pl.Float64, strict=False)
    _refuse_rows(table, column, floats.is_null(), expected="a number", got="text or nothing")
    _refuse_rows(table, column, ~floats.is_finite(), expected="a number", got="NaN or infinity")
    large = floats.abs() > magnitude
    _refuse_rows(table, column, large, expected=f"at most ±{magnitude:g}", got="more")
    if not series.dtype.is_float():
        whole = series.cast(pl.Int64, strict=False)
        if whole.null_count() == 0:
            return whole.to_numpy().astype(np.int64, copy=False)
    return floats.to_numpy().astype(np.float64, copy=False)


def _refuse_rows(table: Table, column: str, bad: pl.Series, *, expected: str, got: str) -> None:
    """Raise for the first row marked in `bad`; the number of the row is said, the cell is not."""
    first = bad.arg_max() if bad.any() else None
    if first is not None:
        raise DataError(
            f"{table.name}: expected {expected} in {column}, got {got} in row {first + 1} "
            "(header not counted)."
        )
