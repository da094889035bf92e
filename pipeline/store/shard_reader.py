"""Reading a shard without zarr: each chunk goes straight from the file into its place in the result.

One copy in all, and the checksum on the way: five times the speed of zarr-python on uncompressed float16
(docs/decisions/0004). Stock zarr reads the same bytes, and a test holds both to the same answer.
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from fastcrc.crc32 import iscsi as crc32c

from pipeline.errors import SoftlabelsError
from pipeline.store.files import Files, RangeFile
from pipeline.store.shards import MISSING, ShardPlan, check_out

_CRC = 4

TOGETHER = 2
"""Chunks to a system call: 512 KB, which are still in the processor's cache when their checksums are taken."""

REQUEST = 16 * 1024 * 1024
"""Chunks that lie one after the other are asked for together, up to so many bytes."""

Bytes = npt.NDArray[np.uint8]
Index = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Shard:
    """The shard at ``path``, ``size`` bytes that hold ``positions`` rows as ``plan`` says.

    ``seal`` is crc32c over the stored crc32c of its chunks, in order: it tells a sound shard from another sound shard
    in its place. None leaves that out.
    """

    plan: ShardPlan
    files: Files
    path: str
    size: int
    positions: int
    seal: int | None = None

    @property
    def _count(self) -> int:
        """Chunks that hold positions; those after them are a hole."""
        return -(-self.positions // self.plan.chunk)

    @property
    def _chunk_bytes(self) -> int:
        return self.plan.chunk * self.plan.row_bytes

    def read(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """All rows, into ``out`` if given.

        Raises CacheIncompleteError when the file is gone, CacheCorruptError when it is not what was committed.
        """
        self._check_room()
        shape = (self.positions, *self.plan.trailing)
        if out is None:
            out = np.empty(shape, dtype=self.plan.dtype)
        check_out(out, shape, self.plan.dtype)
        flat: Bytes = out.reshape(-1).view(np.uint8)
        step = self._chunk_bytes
        checks = np.empty((self._count, _CRC), dtype=np.uint8)
        try:
            with self.files.whole(self.path) as file:
                index = self._index(file)
                for number in range(self._together(file, index, flat, checks), self._count):
                    checks[number] = self._chunk(file, index, number, flat[number * step : (number + 1) * step])
        except (OSError, ValueError, RuntimeError) as error:
            raise self._named(error) from error
        self._check_seal(checks)
        return out

    def read_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """``rows`` (n,) in any order; only the chunks that hold them are read. Raises as ``read`` does.

        The seal is checked where that costs little: in local files.
        """
        self._check_room()
        chunks = rows // self.plan.chunk
        numbers = np.flatnonzero(np.bincount(chunks, minlength=self._count))
        which = np.searchsorted(numbers, chunks)
        step = self._chunk_bytes
        held = np.empty((len(numbers), self.plan.chunk, *self.plan.trailing), dtype=self.plan.dtype)
        flat: Bytes = held.reshape(-1).view(np.uint8)
        try:
            with self.files.open(self.path) as file:
                index = self._index(file)
                ends = _requests(index[numbers])
                for place, number in enumerate(numbers.tolist()):
                    if place in ends and isinstance(file, RangeFile):
                        file.hold(int(index[number, 0]), ends[place])
                    self._chunk(file, index, number, flat[place * step : (place + 1) * step])
                if isinstance(file, io.FileIO):
                    self._check_seal(self._checks(file, index))
        except (OSError, ValueError, RuntimeError) as error:
            raise self._named(error) from error
        taken: npt.NDArray[Any] = held[which, rows % self.plan.chunk]
        return taken

    def sealed(self) -> int:
        """The seal of this shard as it is, from its checksums alone."""
        self._check_room()
        try:
            with self.files.open(self.path) as file:
                return crc32c(self._checks(file, self._index(file)).data)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._named(error) from error

    def _check_room(self) -> None:
        """Refuse a description that asks for more memory than the file could ever fill."""
        self.files.check_size(self.path, self.size)
        ratio = 40_000 if self.plan.zstd else 1  # zstd: a run of 128 KB takes 4 bytes at the least
        # In whole chunks, as they are stored and decoded.
        asked, index = self._count * self._chunk_bytes, 16 * self.plan.chunks + _CRC
        if self.positions > self.plan.capacity or asked > self.size * ratio or index > self.size:
            raise self._corrupt(f"{self.size:,} bytes cannot hold {self.positions:,} rows of {self.plan.row_bytes:,}")

    def _index(self, file: BinaryIO) -> Index:
        """(offset, bytes) of each inner chunk, (chunks, 2), checked to lie within the file."""
        length = 16 * self.plan.chunks
        end = self.size - length - _CRC
        data = np.empty(length + _CRC, dtype=np.uint8)
        file.seek(end)
        self._fill(file, data)
        self._check_crc(data[:length], data[length:], "its index")
        index: Index = data[:length].view("<u8").reshape(self.plan.chunks, 2).astype(np.uint64, copy=False)
        needed = index[: self._count]
        if (needed[:, 0] == MISSING).any():
            raise self._corrupt(f"its chunk {int((needed[:, 0] == MISSING).argmax())} is not there")
        whole = needed[:, 1] == self._chunk_bytes + _CRC if not self.plan.zstd else needed[:, 1] >= _CRC
        if not whole.all() or (needed > end).any() or (needed.sum(axis=1) > end).any():
            raise self._corrupt("its index points beyond the file")
        return needed

    def _together(self, file: BinaryIO, index: Index, flat: Bytes, checks: Bytes) -> int:
        """Read whole chunks that lie one after the other, several to a system call; how many, from the first on.

        A fifth faster than one by one. What cannot be read so is left to be read, and to fail, one by one.
        """
        step = self._chunk_bytes
        whole = len(flat) // step
        begin = int(index[0, 0]) if len(index) else 0
        in_order = (index[:whole, 0] == begin + np.arange(whole, dtype=np.uint64) * np.uint64(step + _CRC)).all()
        if self.plan.zstd or not in_order or not isinstance(file, io.FileIO) or not hasattr(os, "preadv"):
            return 0
        for first in range(0, whole, TOGETHER):
            numbers = range(first, min(first + TOGETHER, whole))
            places = [flat[number * step : (number + 1) * step] for number in numbers]
            pieces = [piece for number, place in zip(numbers, places, strict=True) for piece in (place, checks[number])]
            wanted = len(places) * (step + _CRC)
            if os.preadv(file.fileno(), [piece.data for piece in pieces], begin + first * (step + _CRC)) != wanted:
                return first
            for number, place in zip(numbers, places, strict=True):
                self._check_crc(place, checks[number], f"its chunk {number}")
        return whole

    def _chunk(self, file: BinaryIO, index: Index, number: int, place: Bytes) -> Bytes:
        """Decode inner chunk ``number`` into ``place``, which may be shorter for the last one; its stored crc32c."""
        offset, length = (int(n) for n in index[number])
        file.seek(offset)
        direct = not self.plan.zstd and len(place) == self._chunk_bytes
        body = place if direct else np.empty(length - _CRC, dtype=np.uint8)
        check = np.empty(_CRC, dtype=np.uint8)
        self._fill(file, body)
        self._fill(file, check)
        self._check_crc(body, check, f"its chunk {number}")
        if self.plan.zstd:
            # pyarrow refuses a frame that holds more or less than it is told to expect.
            plain = pa.decompress(body, decompressed_size=self._chunk_bytes, codec="zstd", asbytes=False)
            body = np.frombuffer(plain, np.uint8)
        if not direct:
            place[:] = body[: len(place)]
        return check

    def _checks(self, file: BinaryIO, index: Index) -> Bytes:
        """The stored crc32c of each chunk, (chunks, 4)."""
        checks = np.empty((len(index), _CRC), dtype=np.uint8)
        for number, (offset, length) in enumerate(index.tolist()):
            file.seek(offset + length - _CRC)
            self._fill(file, checks[number])
        return checks

    def _check_seal(self, checks: Bytes) -> None:
        if self.seal is not None and crc32c(checks.data) != self.seal:
            raise self._corrupt("it is sound, but not the shard that was committed in this place")

    def _fill(self, file: BinaryIO, into: Bytes) -> None:
        view = memoryview(into.data)
        while view.nbytes:
            count = file.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise self._corrupt("it ends too early")
            view = view[count:]

    def _check_crc(self, data: Bytes, stored: Bytes, what: str) -> None:
        if crc32c(data.data) != struct.unpack("<I", stored.tobytes())[0]:
            raise self._corrupt(f"{what} does not have its checksum (crc32c)")

    def _corrupt(self, what: str) -> Exception:
        return self.files.corrupt(self.path, what)

    def _named(self, error: Exception) -> Exception:
        return error if isinstance(error, SoftlabelsError) else self.files.unreadable(self.path, error)


def _requests(index: Index) -> dict[int, int]:
    """Which of the chunks (offset, bytes) begin a request, by their place, and where in the file that request ends.

    A request goes on while chunks touch: no byte travels that is not of a chunk.
    """
    found: dict[int, int] = {}
    first = begin = end = 0
    for place, (offset, length) in enumerate(index.tolist()):
        if place == 0 or offset != end or offset + length - begin > REQUEST:
            first, begin = place, offset
        end = offset + length
        found[first] = end
    return found
