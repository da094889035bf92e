"""Caches of several teachers over the same data, for the tests of noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.caches import noise
from pipeline.encodings import Dense, Encoding
from pipeline.fidelity import Fidelity
from pipeline.identity import digest, view_seed
from pipeline.store import Cache, CacheWriter, FeatureSpec, IndexRows, Layout, Part, open_cache, replay_file, verify

CLASSES = 6
SPLITS = {"train": (21, 3), "test": (9, 1)}
ROWS = 21 * 3 + 9


def logits_by(teacher: int, part: Part) -> np.ndarray:
    rows = [np.random.default_rng([teacher, part.view, len(part.split), part.first + n]) for n in range(part.entries)]
    return np.stack([4 * random.standard_normal(CLASSES) for random in rows]).astype(np.float32)


def dumped(folder: Path, teacher: int, *, encoding: Encoding | None = None, part_size: int = 8, **more: Any) -> Cache:
    """A cache as a dump would make it, with fidelity, a feature, a recorded view; ``more`` goes into its identity."""
    encoding = encoding or Dense()
    layout = Layout.of(SPLITS, part_size)
    body = {
        "teacher": {"reference": "cnn-8", "args": {}, "state": digest(teacher), "precision": "float32"},
        "data": {"digest": "cd" * 32, "examples": 30},
        "preprocessing": "none",
        "class_names": [f"class {n}" for n in range(CLASSES)],
        "views": {"transform": "flip", "seed": 0, "count": 3},
        "encoding": encoding.describe(),
        "store": "zarr",
        "part_size": part_size,
        "splits": ["train", "test"],
        "features": {"hint": "block.1"},
        "made_on": "a field that a later release may add",
        **more,
    }
    identity = {**body, "digest": digest(body)}
    specs = {"hint": FeatureSpec((2,))}
    writer = CacheWriter(folder, layout, encoding, classes=CLASSES, features=specs, identity=identity["digest"])
    for part in layout.parts:
        numbers = range(part.first, part.first + part.entries)
        ids = [f"{part.split}/{n}" for n in numbers]
        logits = logits_by(teacher, part)
        index = IndexRows(
            example_ids=ids,
            view=part.view,
            split=part.split,
            seeds=np.array([view_seed(0, i, part.view) for i in ids], np.int64),
            labels=np.array([n % CLASSES for n in numbers], np.int64),
            input_digests=None if part.view else [digest(i) for i in ids],
        )
        fidelity = Fidelity(encoding, CLASSES)
        fidelity.count(logits.argmax(1), index.labels)
        arrays = encoding.encode(logits)
        fidelity.compare(logits, arrays)
        hint = {"hint": logits[:, :2].astype(np.float16)}
        statistics = {"bound": encoding.bound(arrays, CLASSES), "secret": float(logits[0, 0]), **fidelity.totals()}
        writer.write_part(part, arrays, index, hint, statistics)
    table = pa.table(
        {
            "example_id": ["train/0"],
            "view": pa.array([1], pa.int32()),
            "seed": [1],
            "shape": pa.array([[1]], pa.list_(pa.int32())),
            "pixels": pa.array([[0.5]], pa.list_(pa.float32())),
        }
    ).replace_schema_metadata({"teacher": f"weights {digest(teacher)}"})
    writer.finalise(
        {
            "identity": identity,
            "class_names": body["class_names"],
            "fidelity": {"teacher_accuracy": {"train": 0.123456789}, "kl": {}},
            "replay": replay_file(table),
        }
    )
    return open_cache(folder)


def configured(out: Path, *caches: Cache, **options: Any) -> noise.NoiseConfig:
    options = options if "epsilon" in options or "sigma" in options else {"sigma": 0.1, **options}
    return noise.NoiseConfig(caches=tuple(str(c.address) for c in caches), out=out, **options)


def noisy(out: Path, *caches: Cache, **options: Any) -> Cache:
    noise.run(configured(out, *caches, **options))
    found = open_cache(out)
    report = verify(found)
    assert report.ok, report.problems
    return found


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    z = logits.astype(np.float64) / temperature
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def probabilities(cache: Cache, temperature: float) -> np.ndarray:
    return np.concatenate([softmax(cache.decode(cache.read_part(p)).logits, temperature) for p in cache.parts])
