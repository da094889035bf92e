"""Forged caches of ragged entries and of kept classes, every digest put right again: each is refused by name."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.encodings import KEPT, Sampled
from pipeline.errors import CacheCorruptError, SoftlabelsError
from pipeline.store import index, open_cache, verify
from pipeline.store.shards import ShardPlan
from pipeline.store.tables import write_table
from tests.faults.forging import manifest, put, records, with_parts
from tests.store.small import ragged_layout, small_cache

LAYOUT = ragged_layout({"train": (11, 2)}, 8)
HUGE = 2**47


@pytest.fixture(scope="module", params=["zarr", "parquet"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / request.param
    small_cache(folder, Sampled(5), request.param, LAYOUT)
    return folder


def counts(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: manifest(folder, lambda body: change(body["counts"]))


def positions(change: Callable[[list[int]], list[Any]]) -> Callable[[Path], None]:
    """Other positions of each part, and a sum that fits."""

    def forge(found: dict[str, Any]) -> None:
        found["part_positions"] = change(found["part_positions"])
        if all(type(n) is int for n in found["part_positions"]):
            found["positions"] = sum(found["part_positions"])

    return counts(forge)


def statistic(value: float) -> Callable[[Path], None]:
    """Another number of classes that the first part keeps."""

    def forge(folder: Path) -> None:
        first, *others = records(folder)
        with_parts(folder, [replace(first, statistics={**first.statistics, KEPT: value}), *others])

    return forge


def lengths(change: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    """Other lengths in the index of the first part."""

    def forge(folder: Path) -> None:
        table = pq.read_table(folder / index.path_of(0))
        place = table.schema.get_field_index("length")
        made = pa.array(np.asarray(change(table["length"].to_numpy()), np.int32))
        table = table.set_column(place, index.SCHEMA.field("length"), made)
        put(folder, index.path_of(0), write_table(table, row_group_size=64, zstd=()))

    return forge


def vast(folder: Path) -> None:
    """Parts that claim petabytes, in the manifest and in parts.parquet alike."""
    found = records(folder)
    changed = [replace(r, positions=HUGE, start=n * HUGE, statistics={KEPT: HUGE}) for n, r in enumerate(found)]
    with_parts(folder, changed)
    positions(lambda each: [HUGE] * len(each))(folder)


FORGED: dict[str, Callable[[Path], None]] = {
    "fewer counts": positions(lambda each: each[:-1]),
    "no counts": positions(lambda each: []),
    "a text": counts(lambda found: found.update(part_positions="many")),
    "texts": positions(lambda each: ["9"] * len(each)),
    "floats": positions(lambda each: [float(n) for n in each]),
    "true": positions(lambda each: [True] * len(each)),
    "none at all": positions(lambda each: [0] * len(each)),
    "below 0": positions(lambda each: [-n for n in each]),
    "fewer than entries": positions(lambda each: [7, *each[1:]]),
    "another view with others": positions(lambda each: [each[0] + 1, each[1], *each[2:]]),
    "all one more": positions(lambda each: [n + 1 for n in each]),
    "huge": positions(lambda each: [HUGE] * len(each)),
    "beyond any": positions(lambda each: [10**30] * len(each)),
    "another sum": counts(lambda found: found.update(positions=found["positions"] + 1)),
    "no counts in version 3": counts(lambda found: found.pop("part_positions")),
    "version 2": lambda folder: manifest(folder, lambda body: body.update(format=2)),
    "kept of nothing": statistic(0),
    "kept less": statistic(33),
    "kept more": statistic(LAYOUT.parts[0].positions * 5),
    "kept too many": statistic(LAYOUT.parts[0].positions * 5 + 1),
    "kept huge": statistic(2.0**62),
    "kept below 0": statistic(-5),
    "a length less": lengths(lambda n: [n[0] - 1, *n[1:]]),
    "lengths that swap": lengths(lambda n: n[::-1]),
    "an entry without positions": lengths(lambda n: [0, n[0] + n[1], *n[2:]]),
    "lengths below 0": lengths(lambda n: [-1, n[0] + n[1] + 1, *n[2:]]),
    "petabytes": vast,
}


@pytest.mark.parametrize("name", FORGED)
def test_it_is_refused_by_name_in_little_memory(base: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / "forged"
    shutil.copytree(base, place)
    FORGED[name](place)
    tracemalloc.start()
    try:
        cache = open_cache(place)
        problems = verify(cache).problems
        assert problems
        with pytest.raises(SoftlabelsError):
            cache.read_part(0)
            cache.index(0)
            cache.read_rows("train", 0, np.array([1]))
    except SoftlabelsError as error:
        assert "forged" in str(error) or "zarr.json" in str(error)
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 100 << 20


@pytest.mark.parametrize("change", [1, -1])
def test_counts_of_kept_classes_that_lie_are_noticed(base: Path, tmp_path: Path, change: int) -> None:
    place = tmp_path / "forged"
    shutil.copytree(base, place)
    cache = open_cache(place)
    counts_of = cache.read_part(0)[KEPT].copy()
    place_of = int(np.flatnonzero(counts_of > 1)[0])
    counts_of[place_of] = int(counts_of[place_of]) + change
    path = cache.label_paths(0)[KEPT]
    if base.name == "zarr":
        spec = cache.encoding.specs(cache.classes)[KEPT]
        put(place, path, ShardPlan.of(spec, len(cache.parts), LAYOUT.capacity).encode(counts_of))
    else:
        table = pq.read_table(place / path)
        column = table.schema.get_field_index(KEPT)
        table = table.set_column(column, table.schema.field(KEPT), pa.array(counts_of))
        put(place, path, write_table(table, row_group_size=64, zstd=(), delta=("position",)))
    found = open_cache(place)
    assert any(KEPT in problem.message or "keep" in problem.message for problem in verify(found).problems)
    for read in (lambda: found.read_part(0), lambda: found.read_rows("train", 0, np.array([1]))):
        with pytest.raises(CacheCorruptError, match=path):
            read()
