"""Caches damaged one file at a time: flipped bits, files cut short, deleted or swapped.

Each time ``verify``, or opening already, names the damaged file and no other; whoever reads what was damaged is refused
by that name, or gets exactly the numbers of the sound cache; and whoever reads something else gets it as before.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import re
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zarr

from pipeline.errors import CacheCorruptError, CacheError, CacheFormatError, CacheIncompleteError
from pipeline.store import open_cache, verify
from tests.faults.counts import Counts
from tests.faults.damage_caches import ROW, SOME, Sound, sound_caches
from tests.store.small import files_of

_KINDS = {
    r".*zarr\.json": "zarr.json",
    "labels.zarr/.*": "shard",
    "features.zarr/.*": "feature shard",
    "labels/.*": "label parquet",
    "index/.*": "index",
}


@dataclass(frozen=True)
class Fault:
    """What is done to files of a cache: path -> the bytes put there, None for no file. ``at``: the byte of a flip."""

    what: str
    cache: Sound
    contents: Mapping[str, bytes | None]
    at: int | None = None

    def __str__(self) -> str:
        place = "" if self.at is None else f" at byte {self.at}"
        return f"{self.cache.folder.name}: {self.what} {', '.join(self.contents)}{place}"

    @property
    def title(self) -> str:
        """What is counted: the fault and the kind of file."""
        kinds = {kind_of(path) for path in self.contents}
        return f"{self.what}, {kinds.pop() if len(kinds) == 1 else 'of two kinds'}"

    def apply(self) -> None:
        for path, data in self.contents.items():
            _put(self.cache.folder / path, data)

    def undo(self) -> None:
        for path in self.contents:
            _put(self.cache.folder / path, self.cache.files[path])


def campaign(folder: Path, times: int, seed: int) -> Counts:
    """``times`` flips; a fifth of that, 40 at least, files cut short; a tenth, 30 at least, deleted or swapped."""
    caches = sound_caches(folder)
    plan = [flip] * times + [cut] * max(40, times // 5)
    plan += list(itertools.islice(itertools.cycle([delete, swap, swap_kinds]), max(30, times // 10)))
    counts: Counts = Counts()
    for number, make in enumerate(plan):
        fault = make(random.Random(f"{seed}/{number}"), caches)
        fault.apply()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                hold(fault, counts, bystanders=number % 3 == 0)
        except Exception as error:
            raise AssertionError(f"round {number} of seed {seed}, {fault}: {type(error).__name__}: {error}") from error
        finally:
            fault.undo()
    for cache in caches:
        assert files_of(cache.folder) == cache.files and verify(open_cache(cache.folder)).ok
    return Counts(dict(sorted(counts.items())))


# What is done to files.


def kind_of(path: str) -> str:
    """What a file of a cache is; a name that occurs once is its own kind."""
    return next((kind for pattern, kind in _KINDS.items() if re.fullmatch(pattern, path)), path)


def flip(draw: random.Random, caches: list[Sound]) -> Fault:
    """One bit."""
    cache, path = _pick(draw, caches)
    data = bytearray(cache.files[path])
    at = draw.randrange(len(data))
    data[at] ^= 1 << draw.randrange(8)
    return Fault("flip", cache, {path: bytes(data)}, at)


def cut(draw: random.Random, caches: list[Sound]) -> Fault:
    """A file that ends too early, or is empty."""
    cache, path = _pick(draw, caches)
    data = cache.files[path]
    return Fault("truncate", cache, {path: data[: draw.randrange(len(data))]})


def delete(draw: random.Random, caches: list[Sound]) -> Fault:
    """A file that is gone."""
    cache, path = _pick(draw, caches)
    return Fault("delete", cache, {path: None})


def swap(draw: random.Random, caches: list[Sound]) -> Fault:
    """Two files of one kind; of one size where there are such: only their content tells them apart."""
    while True:
        cache, path = _pick(draw, caches)
        good = cache.files[path]
        others = [p for p, data in cache.files.items() if kind_of(p) == kind_of(path) and data != good]
        if others:
            other = draw.choice([p for p in others if len(cache.files[p]) == len(good)] or others)
            return Fault("swap", cache, {path: cache.files[other], other: good})


def swap_kinds(draw: random.Random, caches: list[Sound]) -> Fault:
    """Two files of different kinds."""
    cache, path = _pick(draw, caches)
    other = draw.choice([p for p in cache.files if kind_of(p) != kind_of(path)])
    return Fault("swap", cache, {path: cache.files[other], other: cache.files[path]})


def _pick(draw: random.Random, caches: list[Sound]) -> tuple[Sound, str]:
    """A file; each kind is as likely as any other."""
    kind = draw.choice(sorted({kind_of(path) for cache in caches for path in cache.files}))
    return draw.choice([(cache, path) for cache in caches for path in cache.files if kind_of(path) == kind])


def _put(place: Path, data: bytes | None) -> None:
    if data is None:
        place.unlink()
    else:
        place.write_bytes(data)


# What has to follow.


def hold(fault: Fault, counts: Counts, bystanders: bool = True) -> None:
    """Open, verify and read the damaged cache. AssertionError for whatever should not have come of it.

    Without ``bystanders`` only what reads a damaged file is asked for.
    """
    counts[fault.title] += 1
    if fault.at is not None and (said := stock(fault)):
        counts[f"{fault.title}: {said}"] += 1
    try:
        cache = open_cache(fault.cache.folder)
    except CacheError as error:
        check_error(error, fault)
        counts[f"{fault.title}: refused by open"] += 1
        return
    blamed = {problem.path for problem in verify(cache).problems}
    if not blamed and means_the_same(fault):
        # The digest of a manifest is that of its content, and some flips only spell it in another way: 1e-05, 1E-05.
        counts[f"{fault.title}: the same content, spelled in another way"] += 1
    else:
        assert blamed and blamed <= set(fault.contents), f"verify names {sorted(blamed) or 'nothing'}"
        counts[f"{fault.title}: named by verify"] += 1
    refused = used = False
    for name, reading in fault.cache.readings.items():
        hit = [path for path in fault.contents if path in reading.touches]
        used = used or bool(hit)
        if not hit and not bystanders:
            continue
        try:
            found = reading.ask(cache)
        except CacheError as error:
            assert hit, f"{name} has nothing to do with it and is refused: {error}"
            check_error(error, fault)
            refused = True
        else:
            assert found == fault.cache.expected[name], f"WRONG NUMBERS: {name}"
            noticeable = [path for path in hit if must_refuse(fault, path, reading.touches[path])]
            assert not noticeable, f"{name} is not refused"
    how = "refused by readers" if refused else "read as sound numbers" if used else "of no use to readers"
    counts[f"{fault.title}: {how}"] += 1


def check_error(error: CacheError, fault: Fault) -> None:
    """It is of the right kind and names a damaged file."""
    kinds: tuple[type[CacheError], ...] = (CacheCorruptError,)
    if None in fault.contents.values():
        kinds = (CacheIncompleteError,)
    elif "manifest.json" in fault.contents:
        kinds = (CacheCorruptError, CacheFormatError)  # its version number may be what was flipped
    assert isinstance(error, kinds), f"a {type(error).__name__} instead: {error}"
    where, text = str(fault.cache.folder), str(error)
    assert where in text and any(path in text for path in fault.contents), f"it is not named: {error}"


def means_the_same(fault: Fault) -> bool:
    """Whether a manifest that was flipped still says what it said."""
    data = fault.contents.get("manifest.json")
    try:
        return data is not None and json.loads(data) == json.loads(fault.cache.files["manifest.json"])
    except ValueError:
        return False


def must_refuse(fault: Fault, path: str, touched: str) -> bool:
    """Whether somebody who reads ``path``, all of it or row ROW, cannot but notice."""
    data, kind = fault.cache.files[path], kind_of(path)
    if fault.at is None:
        return True
    if kind in ("shard", "feature shard") and touched == SOME:
        chunk, index = chunk_of(fault.cache, path, ROW)
        return fault.at in chunk or fault.at in index
    if kind == "label parquet":
        return any(fault.at in page for rows, page in pages(data) if touched != SOME or ROW in rows)
    if kind == "index":  # SOME is one column of it
        return touched != SOME and any(fault.at in page for _, page in pages(data))
    return True


def chunk_of(cache: Sound, path: str, row: int) -> tuple[range, range]:
    """Where the chunk of a row, with its checksum, and the index of all chunks lie in a shard."""
    metadata = json.loads(cache.files[f"{path.rpartition('/')[0]}/zarr.json"])
    capacity = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
    chunk = metadata["codecs"][0]["configuration"]["chunk_shape"][0]
    data = cache.files[path]
    begin = len(data) - 16 * (capacity // chunk) - 4
    offset, length = np.frombuffer(data[begin:-4], "<u8").reshape(-1, 2)[row // chunk].tolist()
    return range(offset, offset + length), range(begin, len(data))


def pages(data: bytes) -> list[tuple[range, range]]:
    """(rows, bytes without the header) of each page of a Parquet file: one to a column and row group in these files."""
    found = []
    metadata = pq.read_metadata(io.BytesIO(data))
    first = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            begin, end = column.data_page_offset, column.data_page_offset + column.total_compressed_size
            # The header holds the crc32 of all that comes after it.
            starts = [s for s in range(begin, end) if _varint(zlib.crc32(data[s:end])) in data[begin:s]]
            assert len(starts) == 1, f"{column.path_in_schema} is not one page"
            found.append((range(first, first + group.num_rows), range(starts[0], end)))
        first += group.num_rows
    return found


def _varint(crc: int) -> bytes:
    """A crc32 as Thrift's compact protocol writes it: signed, zigzag, seven bits to a byte."""
    signed = crc - (1 << 32) if crc >> 31 else crc
    rest, made = (signed << 1) ^ (signed >> 31), []
    while rest > 127:
        made.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*made, rest])


def stock(fault: Fault) -> str | None:
    """What other readers say to a flipped bit, for information: zarr to shards, pyarrow to Parquet."""
    ((path, data),) = fault.contents.items()
    kind, sound = kind_of(path), fault.cache
    if kind not in ("shard", "feature shard", "label parquet", "index"):
        return None
    who = "stock zarr" if "shard" in kind else "stock pyarrow"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if "shard" in kind:
                group, name, key = path.split("/")
                array: Any = zarr.open_group(sound.folder / group, mode="r")[name]
                number = int(key.split(".")[1])
                part = open_cache(sound.folder).parts[number]
                reading = f"labels {number}" if kind == "shard" else f"feature {name} {number}"
                same = array[part.start : part.start + part.positions].tobytes() in sound.expected[reading]
            else:
                found, good = (
                    pq.read_table(io.BytesIO(d or b""), page_checksum_verification=True, use_threads=False)
                    for d in (data, sound.files[path])
                )
                same = [c.to_pylist() for c in found.columns] == [c.to_pylist() for c in good.columns]
                if same and not found.schema.equals(good.schema):  # columns go by the names in the footer
                    return f"{who} reads sound numbers under another name or type"
    except Exception:
        return f"{who} refuses"
    return f"{who} reads {'sound' if same else 'WRONG'} numbers"
