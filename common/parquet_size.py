"""How large a Parquet file becomes, read from its headers before anything is decompressed.

A few kilobytes of Parquet can hold a page of gigabytes. The footer says where the column chunks
are; each page's own header says how many bytes its decompression allocates, so those are summed,
and a footer that lies about sizes gains nothing.

Source: Apache Parquet format 2.10, `parquet.thrift` (FileMetaData, RowGroup, ColumnMetaData,
PageHeader), and the Thrift compact protocol.
"""

import struct
from collections.abc import Mapping
from typing import Any

MAGIC = b"PAR1"
_DEPTH = 12
_ROW_GROUPS, _COLUMNS, _COLUMN_META = 4, 1, 3
_CHUNK_BYTES, _DATA_OFFSET, _DICTIONARY_OFFSET = 7, 9, 11
_PAGE_UNCOMPRESSED, _PAGE_COMPRESSED = 2, 3


def uncompressed_bytes(content: bytes) -> int:
    """Bytes of all pages after decompression, plus the file's own.

    Args:
        content: A whole Parquet file.

    Raises:
        ValueError: The headers are damaged.
    """
    try:
        if content[:4] != MAGIC or content[-4:] != MAGIC:
            raise ValueError("Expected Parquet's magic at both ends.")
        (length,) = struct.unpack("<I", content[-8:-4])
        footer, _ = _read_struct(content, len(content) - 8 - length, _DEPTH)
        chunks = [
            column[_COLUMN_META] for group in footer[_ROW_GROUPS] for column in group[_COLUMNS]
        ]
        return len(content) + sum(_chunk_bytes(content, chunk) for chunk in chunks)
    except (IndexError, KeyError, TypeError, struct.error) as error:
        raise ValueError("Expected whole Parquet headers.") from error


def _chunk_bytes(content: bytes, chunk: Mapping[int, Any]) -> int:
    """Walk the pages of one column chunk."""
    start = min(chunk[_DATA_OFFSET], chunk.get(_DICTIONARY_OFFSET) or chunk[_DATA_OFFSET])
    place, end, total = start, start + chunk[_CHUNK_BYTES], 0
    if not 0 <= start <= end <= len(content):
        raise ValueError("Expected column chunks inside of the file.")
    while place < end:
        page, place = _read_struct(content, place, _DEPTH)
        if page[_PAGE_COMPRESSED] < 0 or page[_PAGE_UNCOMPRESSED] < 0:
            raise ValueError("Expected page sizes of zero or more.")
        place += page[_PAGE_COMPRESSED]
        total += page[_PAGE_UNCOMPRESSED]
    return total


def _read_struct(content: bytes, place: int, depth: int) -> tuple[dict[int, Any], int]:
    """One Thrift struct at `place`: its fields by number, and where it ends."""
    if depth == 0 or place < 0:
        raise ValueError("Expected headers that are not nested deeply.")
    fields: dict[int, Any] = {}
    number = 0
    while head := content[place]:
        place += 1
        if head >> 4:
            number += head >> 4
        else:
            number, place = _read_integer(content, place)
        kind = head & 15
        if kind in (1, 2):  # a boolean field is its own type
            fields[number] = kind == 1
        else:
            fields[number], place = _read_value(content, place, kind, depth)
    return fields, place + 1


def _read_value(content: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    """One value of a Thrift compact type; maps do not occur in Parquet headers."""
    match kind:
        case 1 | 2 | 3:
            return content[place], place + 1
        case 4 | 5 | 6:
            return _read_integer(content, place)
        case 7:
            return None, place + 8
        case 8:
            length, place = _read_varint(content, place)
            return None, place + length
        case 9 | 10:
            return _read_list(content, place, depth)
        case 12:
            return _read_struct(content, place, depth - 1)
        case _:
            raise ValueError("Expected a type of Parquet's headers.")


def _read_list(content: bytes, place: int, depth: int) -> tuple[list[Any], int]:
    head = content[place]
    size, place = head >> 4, place + 1
    if size == 15:
        size, place = _read_varint(content, place)
    if size > len(content):
        raise ValueError("Expected lists shorter than the file.")
    values = []
    for _ in range(size):
        value, place = _read_value(content, place, head & 15, depth - 1)
        values.append(value)
    return values, place


def _read_integer(content: bytes, place: int) -> tuple[int, int]:
    """A zigzag integer."""
    raw, place = _read_varint(content, place)
    return (raw >> 1) ^ -(raw & 1), place


def _read_varint(content: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("Expected integers of at most 64 bits.")
