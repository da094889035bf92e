"""Small caches for the tests: three splits, three views of the first, short last parts, a feature; ragged ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encodings import Dense, Encoding
from pipeline.identity import digest, view_seed
from pipeline.store import Cache, CacheWriter, FeatureSpec, IndexRows, Layout, Manifest, Part, open_cache

CLASSES = 6
LAYOUT = Layout.of({"train": (21, 3), "validation": (8, 1), "test": (9, 1)}, part_size=8)
FEW = Layout.of({"train": (11, 2)}, part_size=8)
LENGTHS = {s: np.random.default_rng([7, n]).integers(1, 6, 40) for n, s in enumerate(("train", "validation", "test"))}
"""Positions of each example of a split, where entries are ragged."""


def ragged_layout(splits: Mapping[str, tuple[int, int]], part_size: int) -> Layout:
    """The layout of ragged entries of so many (examples, views) of each split."""
    return Layout.ragged({s: (LENGTHS[s][:count], views) for s, (count, views) in splits.items()}, part_size)


RAGGED = ragged_layout({"train": (21, 3), "validation": (8, 1), "test": (9, 1)}, 8)
FEATURES = {"block.1": FeatureSpec((2, 3))}


def encoded(encoding: Encoding, part: Part, classes: int = CLASSES) -> dict[str, npt.NDArray[Any]]:
    """What an encoding makes of a part; draws follow from the number of the position."""
    keys = np.arange(part.start, part.start + part.positions, dtype=np.uint64)
    return encoding.encode(logits_of(part, classes), keys if encoding.draws else None)


def logits_of(part: Part, classes: int = CLASSES) -> npt.NDArray[np.float32]:
    """What the teacher of these caches says of a part."""
    random = np.random.default_rng([part.number, classes])
    return (random.standard_normal((part.positions, classes)) * 4).astype(np.float32)


def feature_of(part: Part) -> npt.NDArray[np.float16]:
    """The feature of a part."""
    return np.random.default_rng([9, part.number]).standard_normal((part.positions, 2, 3)).astype(np.float16)


def index_of(part: Part) -> IndexRows:
    """The index of a part: ids are train/0, train/1, ...; every third example has no label."""
    numbers = range(part.first, part.first + part.entries)
    ids = [f"{part.split}/{n}" for n in numbers]
    length = LENGTHS[part.split][part.first : part.first + part.entries]
    return IndexRows(
        example_ids=ids,
        view=part.view,
        split=part.split,
        seeds=np.array([view_seed(0, i, part.view) for i in ids], dtype=np.int64),
        labels=np.array([-1 if n % 3 == 2 else n % CLASSES for n in numbers], dtype=np.int64),
        input_digests=None if part.view else [hashlib.sha256(i.encode()).hexdigest() for i in ids],
        length=length if int(length.sum()) == part.positions else None,
    )


def identity_of(encoding: Encoding, store: str, layout: Layout) -> dict[str, Any]:
    """An identity as a dump would make it, with its digest."""
    body = {
        "teacher": {"reference": "cnn-32", "args": {}, "state": "ab" * 32},
        "data": {"digest": "cd" * 32, "examples": 38},
        "preprocessing": "none",
        "views": {"transform": "flip", "seed": 0, "count": 3},
        "encoding": encoding.describe(),
        "store": store,
        "part_size": layout.part_size,
    }
    return {**body, "digest": digest(body)}


def writer_of(
    folder: Path, encoding: Encoding | None = None, store: str = "zarr", layout: Layout = LAYOUT, features: bool = True
) -> CacheWriter:
    """A writer in ``folder``, which may hold a part of the work already."""
    encoding = encoding or Dense()
    identity = identity_of(encoding, store, layout)["digest"]
    named = FEATURES if features else {}
    return CacheWriter(folder, layout, encoding, classes=CLASSES, store=store, features=named, identity=identity)


def write(writer: CacheWriter, parts: Iterable[Part] | None = None) -> None:
    """Write parts (those that are not done, unless named) into a writer."""
    todo = [part for part in writer.layout.parts if part.number not in writer.done] if parts is None else parts
    for part in todo:
        arrays = encoded(writer.encoding, part)
        features = {"block.1": feature_of(part)} if writer.features else {}
        writer.write_part(part, arrays, index_of(part), features, {"bound": writer.encoding.bound(arrays, CLASSES)})


def finalise(writer: CacheWriter, **more: Any) -> Manifest:
    """Finish a writer as a dump would."""
    identity = identity_of(writer.encoding, writer.store, writer.layout)
    names = [f"class {n}" for n in range(CLASSES)]
    return writer.finalise({"identity": identity, "class_names": names, "fidelity": {"agreement": 1.0}, **more})


def small_cache(
    folder: Path,
    encoding: Encoding | None = None,
    store: str = "zarr",
    layout: Layout = LAYOUT,
    features: bool = True,
    **more: Any,
) -> Cache:
    """A whole small cache at ``folder``, opened; ``more`` goes into its manifest."""
    writer = writer_of(folder, encoding, store, layout, features)
    write(writer)
    finalise(writer, **more)
    return open_cache(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
