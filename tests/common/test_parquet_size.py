"""Sizes in Parquet headers, against files that polars wrote."""

import io
import struct

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.parquet_size import uncompressed_bytes


def written(frame: pl.DataFrame, **options: object) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


NUMBERS = pl.DataFrame({"a": range(50_000), "b": [str(n) for n in range(50_000)]})


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "lz4"])
def test_the_size_does_not_depend_on_the_compression(compression: str) -> None:
    plain = uncompressed_bytes(written(NUMBERS, compression="uncompressed"))
    packed = written(NUMBERS, compression=compression)
    pages = len(written(NUMBERS, compression="uncompressed"))
    assert uncompressed_bytes(packed) - len(packed) == pytest.approx(plain - pages, rel=0.01)
    assert uncompressed_bytes(packed) > 500_000


def test_every_row_group_and_page_is_counted() -> None:
    one = written(NUMBERS, row_group_size=50_000)
    many = written(NUMBERS, row_group_size=1_000, data_page_size=1_000)
    assert uncompressed_bytes(many) - len(many) > 0.9 * (uncompressed_bytes(one) - len(one))


def test_one_huge_cell_in_a_tiny_file_shows() -> None:
    content = written(pl.DataFrame({"a": ["0" * 20_000_000]}))
    assert len(content) < 20_000
    assert uncompressed_bytes(content) > 20_000_000


def test_an_empty_table_has_no_pages_to_speak_of() -> None:
    content = written(pl.DataFrame({"a": pl.Series([], dtype=pl.Int64)}))
    assert uncompressed_bytes(content) < len(content) + 100


@settings(max_examples=300)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 60))
def test_damage_gives_a_number_or_a_value_error(place: int, byte: int, cut: int) -> None:
    content = bytearray(written(NUMBERS.head(40)))
    footer = struct.unpack("<I", content[-8:-4])[0] + 8
    content[-1 - place % footer] = byte
    damaged = bytes(content[: len(content) - cut if cut < 5 else len(content)])
    try:
        assert uncompressed_bytes(damaged) >= 0
    except ValueError as error:
        assert str(error).startswith("Expected")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"PAR1\xff\xff\xff\xffPAR1"])
def test_a_stub_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="Expected"):
        uncompressed_bytes(content)
