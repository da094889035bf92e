"""How the arrays of a cache are stored as zarr v3, and writing them.

A shard is one part of one array: inner chunks of 64 to 256 KB, each ending in its crc32c, then an index of
(offset, bytes) for each inner chunk, then the crc32c of the index. ``shard_reader`` reads them back. zarr-python
writes what is compressed, and all metadata; chunks that are not compressed are put together here, to the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from fastcrc.crc32 import iscsi as crc32c

from pipeline.encodings import ArraySpec
from pipeline.errors import CacheFormatError

CHUNK_BYTES = 256 * 1024
"""Inner chunks hold at most this much before compression, and more than half of it where the shard is that large."""

ZSTD_LEVEL = 1

_DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

MISSING = 2**64 - 1
"""Offset and length of a chunk that is not there."""


@dataclass(frozen=True)
class ShardPlan:
    """How one array is stored: ``shards`` shards of ``capacity`` rows, cut into chunks of ``chunk`` rows.

    A row is a position, or a class that a position keeps.
    """

    trailing: tuple[int, ...]
    dtype: str
    shards: int
    capacity: int
    chunk: int
    zstd: bool

    @classmethod
    def of(cls, spec: ArraySpec, shards: int, capacity: int) -> ShardPlan:
        """The plan that the writer chooses for ``spec``, of ``capacity`` positions to a shard."""
        capacity *= spec.most
        chunk = _largest_divisor(capacity, max(1, CHUNK_BYTES // max(1, spec.row_bytes)))
        return cls(spec.shape, spec.dtype, shards, capacity, chunk, spec.codec == "zstd")

    @property
    def row_bytes(self) -> int:
        """Bytes of one position before compression."""
        return int(np.prod(self.trailing, dtype=object)) * np.dtype(self.dtype).itemsize

    @property
    def chunks(self) -> int:
        """Inner chunks in a shard."""
        return self.capacity // self.chunk

    def key(self, number: int) -> str:
        """The shard of part ``number``, by its path within the array."""
        return ".".join(["c", str(number), *("0" for _ in self.trailing)])

    def metadata(self) -> bytes:
        """The array's ``zarr.json``."""
        return bytes(self._create(self.shards)[1]["zarr.json"].to_bytes())

    def encode(self, rows: npt.NDArray[Any]) -> bytes:
        """The shard that holds ``rows`` (n, ...) in its first n positions and nothing in the others."""
        rows = np.asarray(rows)
        if rows.shape[1:] != self.trailing or rows.dtype != np.dtype(self.dtype) or not 0 < len(rows) <= self.capacity:
            raise ValueError(
                f"a part of this array holds 1 to {self.capacity} rows of {self.trailing} {self.dtype}; "
                f"found {rows.shape} {rows.dtype}"
            )
        if not self.zstd:
            return self._uncompressed(rows)
        array, stored = self._create(1)
        array[: len(rows)] = rows
        return bytes(stored[self.key(0)].to_bytes())

    def _uncompressed(self, rows: npt.NDArray[Any]) -> bytes:
        """The bytes that zarr-python writes for ``rows``, five times as fast: copied once, in the thread that asks."""
        count, size = -(-len(rows) // self.chunk), self.chunk * self.row_bytes
        made: npt.NDArray[np.uint8] = np.empty(count * (size + 4) + 16 * self.chunks + 4, np.uint8)
        fill = np.nan if np.dtype(self.dtype).kind == "f" else 0
        little = np.dtype(self.dtype).newbyteorder("<")
        for number in range(count):
            held = rows[number * self.chunk : (number + 1) * self.chunk]
            place = made[number * (size + 4) :][: size + 4]
            chunk = place[:size].view(little).reshape(self.chunk, *self.trailing)
            chunk[: len(held)] = held
            chunk[len(held) :] = fill
            place[size:] = _crc32c(place[:size])
        index = made[count * (size + 4) :]
        entries = index[:-4].view("<u8").reshape(self.chunks, 2)
        entries[:] = MISSING
        entries[:count, 0] = np.arange(count, dtype=np.uint64) * np.uint64(size + 4)
        entries[:count, 1] = size + 4
        index[-4:] = _crc32c(index[:-4])
        return made.tobytes()

    def _create(self, shards: int) -> tuple[Any, dict[str, Any]]:
        # Here and not above: reading needs no zarr, and importing it takes longer than opening a cache.
        import zarr
        from zarr.codecs import Crc32cCodec, ZstdCodec
        from zarr.storage import MemoryStore

        stored: dict[str, Any] = {}
        floating = np.dtype(self.dtype).kind == "f"
        codecs = [ZstdCodec(level=ZSTD_LEVEL, checksum=False)] if self.zstd else []
        array = zarr.create_array(
            MemoryStore(stored),
            shape=(shards * self.capacity, *self.trailing),
            shards=(self.capacity, *self.trailing),
            chunks=(self.chunk, *self.trailing),
            dtype=self.dtype,
            # A deleted shard reads as the fill value in stock zarr: NaN cannot be taken for a logit.
            fill_value=np.nan if floating else 0,
            compressors=[*codecs, Crc32cCodec()],
            # One folder of shards instead of a folder for each: fewer names to make durable, and to list.
            chunk_key_encoding={"name": "default", "separator": "."},
            # Chunks of zeros are kept, so that a chunk that is not there is always damage.
            config={"write_empty_chunks": True},
        )
        return array, stored

    @classmethod
    def parse(cls, data: bytes, where: str) -> ShardPlan:
        """The plan that a ``zarr.json`` describes.

        Raises CacheFormatError when it is not an array of this format: another grid, codec or byte order.
        """
        try:
            found = json.loads(data)
            shape, grid = found["shape"], found["chunk_grid"]["configuration"]["chunk_shape"]
            (sharding,) = found["codecs"]
            inner = sharding["configuration"]
            codecs, chunk = [c["name"] for c in inner["codecs"]], inner["chunk_shape"]
            endian = (inner["codecs"][0].get("configuration") or {}).get("endian", "little")
            plan = cls(tuple(shape[1:]), found["data_type"], -1, grid[0], chunk[0], "zstd" in codecs)
            sound = (
                (found["zarr_format"], found["node_type"], endian) == (3, "array", "little")
                and sharding["name"] == "sharding_indexed"
                and codecs in (["bytes", "crc32c"], ["bytes", "zstd", "crc32c"])
                and [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
                and inner.get("index_location", "end") == "end"
                and found["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}
                and all(type(n) is int and n >= 0 for n in (*shape, *grid, *chunk))
                and tuple(grid[1:]) == tuple(chunk[1:]) == plan.trailing
                and 0 < plan.chunk <= plan.capacity
                and plan.capacity % plan.chunk == 0
                and shape[0] % plan.capacity == 0
                and plan.dtype in _DTYPES  # numpy itself would take whole expressions
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            what = f"{type(error).__name__} {str(error)[:200]}"
            raise CacheFormatError(f"{where} is no zarr array of a cache: {what}") from error
        if not sound:
            raise CacheFormatError(
                f"{where} has a grid or codecs that this release does not read (sharding_indexed over bytes, zstd or "
                "nothing, crc32c). Read it with zarr itself, or with a newer release"
            )
        return cls(plan.trailing, plan.dtype, shape[0] // plan.capacity, plan.capacity, plan.chunk, plan.zstd)


def _crc32c(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(crc32c(data.data).to_bytes(4, "little"), np.uint8)


def check_out(out: npt.NDArray[Any], shape: tuple[int, ...], dtype: str) -> None:
    """ValueError unless ``out`` can take a part's rows as they are."""
    if out.shape != shape or out.dtype != np.dtype(dtype) or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(
            f"out should be a contiguous, writable array of {shape} {dtype}; found {out.shape} {out.dtype}"
        )


def group_metadata() -> bytes:
    """The ``zarr.json`` of a group."""
    import zarr
    from zarr.storage import MemoryStore

    stored: dict[str, Any] = {}
    zarr.create_group(MemoryStore(stored))
    return bytes(stored["zarr.json"].to_bytes())


def _largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of ``number`` that is at most ``at_most``."""
    best = 1
    for small in range(1, int(number**0.5) + 1):
        if number % small == 0:
            best = max([best, *(d for d in (small, number // small) if d <= at_most)])
    return best
