"""Shards: our reader and zarr's agree, on what zarr writes and on what we write."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from pipeline.encodings import ArraySpec
from pipeline.errors import CacheCorruptError, CacheFormatError
from pipeline.store.files import LocalFiles
from pipeline.store.shard_reader import Shard
from pipeline.store.shards import ShardPlan

SPECS = [
    ArraySpec((5,), "float32", "none"),
    ArraySpec((3,), "float16", "zstd"),
    ArraySpec((), "float32", "none"),
    ArraySpec((7,), "int8", "zstd"),
    ArraySpec((2,), "uint32", "zstd"),
    ArraySpec((2, 3, 4), "float16", "none"),
]


def rows_of(spec: ArraySpec, count: int) -> np.ndarray:
    random = np.random.default_rng(count)
    if np.dtype(spec.dtype).kind == "f":
        return random.standard_normal((count, *spec.shape)).astype(spec.dtype)
    limits = np.iinfo(spec.dtype)
    return random.integers(limits.min, limits.max, (count, *spec.shape), dtype=spec.dtype, endpoint=True)


def small(spec: ArraySpec, shards: int = 3, capacity: int = 16, chunk: int = 4) -> ShardPlan:
    """A plan with several chunks to a shard, as large arrays have."""
    return ShardPlan(spec.shape, spec.dtype, shards, capacity, chunk, spec.codec == "zstd")


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("count", [1, 4, 7, 16])
def test_zarr_reads_what_we_write_and_so_do_we(tmp_path: Path, spec: ArraySpec, count: int) -> None:
    plan, rows = small(spec), rows_of(spec, count)
    (tmp_path / "zarr.json").write_bytes(plan.metadata())
    data = plan.encode(rows)
    (tmp_path / plan.key(1)).write_bytes(data)
    np.testing.assert_array_equal(zarr.open_array(tmp_path, mode="r")[16 : 16 + count], rows)
    files = LocalFiles(tmp_path)
    np.testing.assert_array_equal(Shard(plan, files, plan.key(1), len(data), count).read(), rows)
    some = np.array([count - 1, 0, count // 2, 0])
    np.testing.assert_array_equal(Shard(plan, files, plan.key(1), len(data), count).read_rows(some), rows[some])
    assert ShardPlan.parse((tmp_path / "zarr.json").read_bytes(), "z") == plan


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("count", [1, 4, 7, 16])
@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_our_bytes_are_those_of_zarr(spec: ArraySpec, count: int, chunk: int) -> None:
    plan, rows = small(spec, shards=1, chunk=chunk), rows_of(spec, count)
    array, stored = plan._create(1)
    array[:count] = rows
    assert plan.encode(rows) == stored[plan.key(0)].to_bytes()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_we_read_what_zarr_writes(tmp_path: Path, spec: ArraySpec) -> None:
    plan, rows = small(spec), rows_of(spec, 48)
    (tmp_path / "zarr.json").write_bytes(plan.metadata())
    array = zarr.open_array(tmp_path, mode="r+")
    array[:] = rows
    for number in range(3):
        size = (tmp_path / plan.key(number)).stat().st_size
        found = Shard(plan, LocalFiles(tmp_path), plan.key(number), size, 16).read()
        np.testing.assert_array_equal(found, rows[number * 16 : number * 16 + 16])


def test_chunks_of_zeros_are_stored_and_holes_are_not(tmp_path: Path) -> None:
    """A missing chunk has to mean damage, and a short part must not cost what a full one does."""
    plan = small(ArraySpec((4,), "uint8", "none"))
    short, full = plan.encode(np.zeros((4, 4), np.uint8)), plan.encode(np.zeros((16, 4), np.uint8))
    assert len(full) - len(short) == 3 * (16 + 4)
    (tmp_path / "s").write_bytes(short)
    with pytest.raises(CacheCorruptError, match="chunk 1 is not there"):
        Shard(plan, LocalFiles(tmp_path), "s", len(short), 8).read()


def test_a_missing_shard_reads_as_nan_in_stock_zarr(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_bytes(small(ArraySpec((5,), "float16", "none")).metadata())
    assert np.isnan(zarr.open_array(tmp_path, mode="r")[:]).all()


def test_stock_zarr_notices_a_flipped_bit(tmp_path: Path) -> None:
    plan = small(ArraySpec((5,), "float16", "none"))
    (tmp_path / "zarr.json").write_bytes(plan.metadata())
    data = bytearray(plan.encode(rows_of(ArraySpec((5,), "float16", "none"), 16)))
    data[50] ^= 1
    (tmp_path / plan.key(0)).write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(tmp_path, mode="r")[:16]


@pytest.mark.parametrize("compressors", [[GzipCodec(), Crc32cCodec()], [BloscCodec()], [ZstdCodec()], None])
def test_codecs_of_others_are_refused_by_name(compressors: Any) -> None:
    store = zarr.storage.MemoryStore()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.create_array(store, shape=(8, 3), shards=(8, 3), chunks=(4, 3), dtype="f4", compressors=compressors)
    with pytest.raises(CacheFormatError, match="z has a grid or codecs"):
        ShardPlan.parse(store._store_dict["zarr.json"].to_bytes(), "z")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("shape",), [48.5, 5]),
        (("shape",), [47, 5]),
        (("shape",), []),
        (("data_type",), "object"),
        (("data_type",), "datetime64"),
        (("chunk_grid", "configuration", "chunk_shape"), [0, 5]),
        (("chunk_grid", "configuration", "chunk_shape"), [16, 4]),
        (("codecs",), []),
        (("codecs", 0, "name"), "other"),
        (("codecs", 0, "configuration", "chunk_shape"), [5, 5]),
        (("codecs", 0, "configuration", "codecs", 0, "configuration", "endian"), "big"),
        (("codecs", 0, "configuration", "index_location"), "start"),
        (("zarr_format",), 2),
        (("chunk_key_encoding",), {"name": "v2"}),
    ],
    ids=str,
)
def test_metadata_that_cannot_be_is_refused(path: tuple, value: Any) -> None:
    found = json.loads(small(SPECS[0]).metadata())
    place = found
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(CacheFormatError, match="z "):
        ShardPlan.parse(json.dumps(found).encode(), "z")
    for data in (b"", b"{}", b"[]", b"\xff"):
        with pytest.raises(CacheFormatError):
            ShardPlan.parse(data, "z")


def test_more_rows_than_a_file_could_hold_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"0" * 10_000)
    for codec in ("none", "zstd"):
        plan = ShardPlan.of(ArraySpec((2**31,), "float32", codec), 1, 2**10)
        with pytest.raises(CacheCorruptError, match="cannot hold"):
            Shard(plan, LocalFiles(tmp_path), "s", 10_000, 2**10).read()
        with pytest.raises(CacheCorruptError, match="cannot hold"):
            Shard(plan, LocalFiles(tmp_path), "s", 10_000, 2**10).read_rows(np.arange(3))
        # A row is small, and the chunk that it is said to lie in is not.
        plan = ShardPlan((), "float32", 1, 2**40, 2**40, codec == "zstd")
        with pytest.raises(CacheCorruptError, match="cannot hold"):
            Shard(plan, LocalFiles(tmp_path), "s", 10_000, 3).read_rows(np.arange(3))
