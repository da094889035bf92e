"""Parquet looked over before it is decoded: what its headers ask for is held to what the file could honestly hold.

Arrow believes a page header: a kilobyte of zstd becomes gigabytes, a dictionary of one long text becomes as many texts
as there are rows, a run of nulls a list of any length. The files of a cache need none of that. Their pages are plain
or differences, uncompressed or zstd; anything else is refused, and so is a file that grows beyond a multiple of itself.
"""

from __future__ import annotations

import io
import struct
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

GROWTH = 128
"""A file may decode to so many times its size, and a mebibyte: example ids with long common beginnings do grow."""

_FOOTER_BYTES = 16 << 20
_HEADER_BYTES = 4096
_SCHEMA_ELEMENTS = 128
_DEPTH = 12
_ZSTD = (0, 6)
_DATA_PAGE = 0
_PLAIN, _DELTA, _LEVELS = 0, 5, (3, 4)


def parquet(data: bytes) -> pq.ParquetFile:
    """The Parquet file in ``data``, safe to decode. ValueError when it asks for more than it could honestly hold."""
    check(io.BytesIO(data), len(data), (1 << 20) + GROWTH * len(data), 4096 + 8 * len(data))
    limit = max(1024, len(data))
    return pq.ParquetFile(
        pa.BufferReader(data),
        page_checksum_verification=True,
        thrift_string_size_limit=limit,
        thrift_container_size_limit=limit,
    )


def check(file: BinaryIO, size: int, most_bytes: int, most_values: int) -> None:
    """Walk the footer and the page headers of a Parquet file of ``size`` bytes; nothing is decompressed.

    Raises ValueError when its pages come to more than ``most_bytes`` decoded or ``most_values`` values, or use a
    codec or encoding that no cache is written with.
    """
    if size < 12:
        raise ValueError(f"a Parquet file has 12 bytes or more; found {size}")
    ending = _read(file, size - 8, 8)
    length = int.from_bytes(ending[:4], "little")
    if ending[4:] != b"PAR1" or length > min(_FOOTER_BYTES, size - 12):
        raise ValueError(f"it does not end as a Parquet file, or in metadata of {length:,} bytes")
    end = size - 8 - length
    footer = _Thrift(_read(file, end, length)).struct()
    elements = footer.get(2, [])
    if not isinstance(elements, list) or len(elements) > _SCHEMA_ELEMENTS:
        raise ValueError(f"its schema should have at most {_SCHEMA_ELEMENTS} elements")
    asked, values, pages, most_pages = 0, 0, 0, 1000 + size // 64
    for chunk in _chunks(footer):
        place, values = chunk[0], values + chunk[2]
        stop = place + chunk[1]
        if chunk[1:] == (0, 0):
            continue  # a column without rows has no page
        if not 4 <= place <= stop <= end:
            raise ValueError("its pages should lie within it")
        if values > most_values:
            raise ValueError(f"it claims more than {most_values:,} values, which its {size:,} bytes cannot hold")
        counted = 0
        while place < stop:
            decoded, stored, count = _page(file, place, stop)
            asked, counted, pages, place = asked + decoded, counted + count, pages + 1, place + stored
            if asked > most_bytes or counted > most_values or pages > most_pages:
                raise ValueError(
                    f"its pages ask for more than {most_bytes:,} bytes, {most_values:,} values or {most_pages:,} "
                    f"pages, which {size:,} bytes do not hold honestly"
                )


def _chunks(footer: dict[int, Any]) -> list[tuple[int, int, int]]:
    """(first byte, bytes, values) of each column chunk."""
    found = []
    try:
        for group in footer.get(4, []):
            for column in group[1]:
                meta = column[3]
                if meta[4] not in _ZSTD or meta.get(11) or column.get(1) is not None or column.get(8) is not None:
                    raise ValueError("its columns should be uncompressed or zstd, without dictionaries, in this file")
                numbers = (meta[9], meta[7], meta[5])
                if not all(type(n) is int and n >= 0 for n in numbers):
                    raise ValueError(f"its columns have impossible sizes: {numbers}")
                found.append(numbers)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"its metadata lacks {error}") from error
    return found


def _page(file: BinaryIO, place: int, stop: int) -> tuple[int, int, int]:
    """(bytes when decoded, bytes in the file with its header, values) of the page at ``place``."""
    thrift = _Thrift(_read(file, place, min(_HEADER_BYTES, stop - place)))
    page = thrift.struct()
    try:
        header = page[5]
        kind, decoded, stored, count = page[1], page[2], page[3], header[1]
        encoding, levels = header[2], (header[3], header[4])
        sound = min(decoded, stored, count) >= 0 and place + thrift.place + stored <= stop
    except (LookupError, TypeError) as error:
        raise ValueError(f"the header of a page lacks {error}") from error
    if kind != _DATA_PAGE or encoding not in (_PLAIN, _DELTA) or not all(level in _LEVELS for level in levels):
        raise ValueError(f"its pages should be plain or delta; found kind {kind!r}, encoding {encoding!r}")
    if not sound:
        raise ValueError("the header of a page has impossible sizes")
    return decoded, thrift.place + stored, count


def _read(file: BinaryIO, place: int, length: int) -> bytes:
    file.seek(place)
    data = b""
    while len(data) < length and (more := file.read(length - len(data))):
        data += more
    return data


class _Thrift:
    """Thrift's compact protocol: structs as {field: value}, enough of it for Parquet's headers."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The struct that begins here. ValueError when it is none, or too deep."""
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = head & 15 == 1 if head & 15 in (1, 2) else self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEPTH:
            raise ValueError("its metadata is nested too deeply")
        if kind in (1, 2):  # in a list; in a struct the header says it
            return self._byte() == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return struct.unpack("<d", self._take(8))[0]
        if kind == 8:
            return self._take(self._varint())
        if kind in (9, 10):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            if count > len(self.data) - self.place:
                raise ValueError("its metadata claims more elements than it has bytes")
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"its metadata holds a value of an unknown kind, {kind}")

    def _byte(self) -> int:
        return self._take(1)[0]

    def _take(self, count: int) -> bytes:
        data = self.data[self.place : self.place + count]
        if len(data) != count:
            raise ValueError("its metadata ends too early")
        self.place += count
        return data

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("its metadata holds a number that is too long")
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
