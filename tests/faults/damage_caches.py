"""The sound caches that are to be damaged, and all that a reader can ask of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from pipeline import dump
from pipeline.encodings import Dense, TopK
from pipeline.models import build_model, save_weights
from pipeline.sources import CachedLabels, Matching
from pipeline.store import STORES, Cache, Layout, open_cache
from pipeline.store.index import path_of
from tests.store.small import files_of, small_cache

LAYOUT = Layout.of({"train": (13, 2), "test": (5, 1)}, part_size=8)
ENCODINGS = (Dense(), Dense("float16"), Dense("int8"), TopK(3, "float16", (1.0, 4.0)))

ROW = 3
"""What is read of each part where only some rows are read."""

WHOLE, SOME = "whole", "some"


@dataclass(frozen=True)
class Reading:
    """Something that a reader asks of a cache, as bytes. ``touches``: file -> whether all of it is read."""

    touches: Mapping[str, str]
    ask: Callable[[Cache], list[bytes]]


@dataclass(frozen=True)
class Sound:
    """A sound cache: its files, and all that can be read out of it."""

    folder: Path
    files: Mapping[str, bytes]
    readings: Mapping[str, Reading]
    expected: Mapping[str, list[bytes]]

    @classmethod
    def of(cls, folder: Path) -> Sound:
        cache = open_cache(folder)
        readings = dict(_readings(cache))
        return cls(folder, files_of(folder), readings, {name: reading.ask(cache) for name, reading in readings.items()})


def sound_caches(folder: Path) -> list[Sound]:
    """Both stores in four encodings, and two caches that a dump made, with recorded views."""
    # Several chunks to a shard and row groups to a file, though the parts are small.
    chunks = mock.patch("pipeline.store.shards.CHUNK_BYTES", 64)
    groups = mock.patch("pipeline.store.parquet_backend.GROUP_BYTES", 99)
    with chunks, groups:
        for store, encoding in itertools.product(STORES, ENCODINGS):
            small_cache(folder / f"{store}-{encoding.name}-{encoding.dtype}", encoding, store, LAYOUT)
        for store in STORES:
            _dump(folder, f"{store}-dump", store)
    return [Sound.of(path.parent) for path in sorted(folder.glob("*/manifest.json"))]


def _dump(folder: Path, name: str, store: str) -> None:
    draw = np.random.default_rng(0)
    np.savez(
        folder / "data.npz",
        x=draw.normal(size=(21, 1, 4, 4)).astype(np.float32),
        y=draw.integers(0, 3, 21),
        split=np.array(["train"] * 16 + ["test"] * 5),
        classes=np.array(["ant", "bee", "cat"]),
    )
    torch.manual_seed(0)
    weights = folder / "teacher.safetensors"
    save_weights(weights, build_model("mlp-4", {}, classes=3, input_shape=(1, 4, 4)), {})
    dump.run(
        dump.DumpConfig(
            data=f"arrays:{folder / 'data.npz'}",
            teacher="mlp-4",
            weights=weights,
            out=folder / name,
            views=1,
            transform="affine:degrees=20",
            features=("hint=hidden",),
            store=store,
            part_size=8,
            device="cpu",
        )
    )


def _readings(cache: Cache) -> Iterator[tuple[str, Reading]]:
    for part in cache.parts:
        labels = cache.label_paths(part.number).values()
        yield f"labels {part.number}", Reading(dict.fromkeys(labels, WHOLE), partial(_labels, part=part.number))
        yield f"index {part.number}", Reading({path_of(part.number): WHOLE}, partial(_index, part=part.number))
        for name in cache.feature_names:
            shards = [path for path in part.files if path.startswith(f"features.zarr/{name}/")]
            ask = partial(_feature, name=name, part=part.number)
            yield f"feature {name} {part.number}", Reading(dict.fromkeys(shards, WHOLE), ask)
    for split in cache.splits():
        plain = [path_of(part.number) for part in cache.parts_of(split, 0)]
        for column in ("ids", "input_digests", "labels"):
            ask = partial(_column, split=split, column=column)
            yield f"{column} of {split}", Reading(dict.fromkeys(plain, SOME), ask)
        for view in cache.views(split):
            yield from _view_readings(cache, split, view)
    if cache.manifest.replay:
        yield "recorded views", Reading({cache.manifest.replay: WHOLE}, _recorded)


def _view_readings(cache: Cache, split: str, view: int) -> Iterator[tuple[str, Reading]]:
    paths = [path for part in cache.parts_of(split, view) for path in part.files]
    labels = [path for path in paths if path.startswith("labels")]
    for resident in ("none", "ram", "device"):
        ask = partial(_streamed, split=split, view=view, resident=resident)
        yield f"stream of {split} {view}, resident {resident}", Reading(dict.fromkeys(labels, WHOLE), ask)
    ask = partial(_label_rows, split=split, view=view)
    yield f"rows of {split} {view}", Reading(dict.fromkeys(labels, SOME), ask)
    for name in cache.feature_names:
        shards = [path for path in paths if path.startswith(f"features.zarr/{name}/")]
        ask = partial(_feature_rows, name=name, split=split, view=view)
        yield f"feature rows {name} of {split} {view}", Reading(dict.fromkeys(shards, SOME), ask)


def _labels(cache: Cache, part: int) -> list[bytes]:
    return [rows.tobytes() for rows in cache.read_part(part).values()]


def _index(cache: Cache, part: int) -> list[bytes]:
    return [repr(cache.index(part)).encode()]


def _feature(cache: Cache, name: str, part: int) -> list[bytes]:
    return [cache.read_feature(name, part).tobytes()]


def _column(cache: Cache, split: str, column: str) -> list[bytes]:
    return [repr(list(getattr(cache, column)(split))).encode()]


def _recorded(cache: Cache) -> list[bytes]:
    return [repr(cache.replayed_views().to_pylist()).encode()]


def _rows(cache: Cache, split: str, view: int) -> Any:
    """Row ROW of every part of a view, in some order."""
    return np.random.default_rng(view).permutation([part.first + ROW for part in cache.parts_of(split, view)])


def _label_rows(cache: Cache, split: str, view: int) -> list[bytes]:
    return [rows.tobytes() for rows in cache.read_rows(split, view, _rows(cache, split, view)).values()]


def _feature_rows(cache: Cache, name: str, split: str, view: int) -> list[bytes]:
    return [cache.read_feature_rows(name, split, view, _rows(cache, split, view)).tobytes()]


def _streamed(cache: Cache, split: str, view: int, resident: str) -> list[bytes]:
    """An epoch of labels, as training reads them."""
    every = np.arange(cache.examples(split))
    source = CachedLabels(cache, Matching(split, every, every), resident=resident)
    found: list[bytes] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.numpy().tobytes())
        return tensor

    with source.stream(source.order(5, window=2), 0, view=view) as stream:
        for rows, soft in stream:
            found.append(rows.tobytes())
            soft.map(keep)
    return found
