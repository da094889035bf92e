"""Make the golden caches of a format version. Run once, from the repository root, when a version is first released:

    python -m tests.golden.make 3

It never replaces a file: golden caches are what earlier releases wrote, and stay as they are. A cache is a zip archive,
so that its many small files are one; ``expected.npz`` holds the logits that went in and the arrays that were stored.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.encodings import Dense, Encoding, Sampled, TopK
from pipeline.identity import digest
from pipeline.store import CacheWriter, Layout
from tests.store.small import (
    CLASSES,
    FEATURES,
    encoded,
    feature_of,
    files_of,
    identity_of,
    index_of,
    logits_of,
    small_cache,
)

HERE = Path(__file__).parent
LAYOUT = Layout.of({"train": (5, 2), "test": (3, 1)}, part_size=4)
ENCODINGS: dict[str, Encoding] = {
    "dense-float32": Dense("float32"),
    "dense-float16": Dense("float16"),
    "dense-int8": Dense("int8"),
    "topk-float32": TopK(3, "float32", (1.0, 4.0)),
    "topk-float16": TopK(6, "float16", (2.0,)),
}
NAMES = tuple(f"v1-{name}-{store}" for name in ENCODINGS for store in ("zarr", "parquet"))


def unknown(folder: Path, store: str) -> None:
    """A cache of version 2 whose labels were imported: nothing is known but what they say."""
    encoding = TopK(3, "float32", (1.0,))
    body = {
        "teacher": {"reference": None, "args": {}, "state": None},
        "data": {"digest": None, "examples": 8},
        "preprocessing": None,
        "views": {"transform": None, "seed": None, "count": 2, "plain": False},
        "encoding": encoding.describe(),
        "store": store,
        "part_size": LAYOUT.part_size,
        "lineage": [{"verb": "import", "format": "golden", "options": {}, "unknown": ["teacher"]}],
    }
    _write(folder, encoding, body, (), digests=False)


def merged(folder: Path, store: str) -> None:
    """A cache of version 2 with the random views of two dumps, one each."""
    encoding = Dense("float32")
    body = identity_of(encoding, store, LAYOUT)
    layout = Layout.of({"train": (5, 3), "test": (3, 1)}, part_size=4)
    views = {"transform": "flip", "seed": 0, "count": 3, "merged": [{"seed": 0, "count": 1}, {"seed": 7, "count": 1}]}
    lineage = [{"verb": "merge", "from": [], "options": {"by": "views"}}]
    names = tuple(f"class {n}" for n in range(CLASSES))
    _write(folder, encoding, {**body, "views": views, "lineage": lineage}, names, layout=layout)


def _write(
    folder: Path,
    encoding: Encoding,
    body: dict[str, Any],
    names: tuple[str, ...],
    *,
    digests: bool = True,
    layout: Layout = LAYOUT,
) -> None:
    body = {key: value for key, value in body.items() if key != "digest"}
    identity = {**body, "digest": digest(body)}
    writer = CacheWriter(
        folder, layout, encoding, classes=CLASSES, store=str(body["store"]), identity=identity["digest"]
    )
    for part in layout.parts:
        arrays = encoding.encode(logits_of(part))
        index = index_of(part)
        index = index if digests else replace(index, input_digests=None)
        writer.write_part(part, arrays, index, {}, {"bound": encoding.bound(arrays, CLASSES)})
    writer.finalise({"identity": identity, "class_names": names})


SECOND = {"unknown-topk-float32": unknown, "merged-dense-float32": merged}
NAMES_V2 = tuple(f"v2-{name}-{store}" for name in SECOND for store in ("zarr", "parquet"))


def pack(folder: Path, name: str) -> None:
    """The files of a cache as one archive."""
    with zipfile.ZipFile(HERE / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files_of(folder).items():
            archive.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)


def first_version() -> None:
    """Each archive of version 1 and the expected values."""
    expected: dict[str, np.ndarray] = {}
    for name in NAMES:
        encoding, _, store = name.removeprefix("v1-").rpartition("-")
        with tempfile.TemporaryDirectory() as folder:
            cache = small_cache(Path(folder) / "c", ENCODINGS[encoding], store, LAYOUT)
            pack(Path(folder) / "c", name)
            for array, rows in cache.read_parts(cache.parts).items():
                expected[f"{encoding}/{array}"] = rows
    expected["logits"] = np.concatenate([logits_of(part) for part in LAYOUT.parts])
    np.savez_compressed(HERE / "v1-expected.npz", **expected)


def second_version() -> None:
    """Each archive of version 2. What went in is ``logits_of`` and ``index_of`` of its layout."""
    for name in NAMES_V2:
        kind, _, store = name.removeprefix("v2-").rpartition("-")
        with tempfile.TemporaryDirectory() as folder:
            SECOND[kind](Path(folder) / "c", store)
            pack(Path(folder) / "c", name)


LENGTHS_V3 = {"train": np.array([3, 1, 4, 1, 5]), "test": np.array([9, 2, 6])}
RAGGED_V3 = Layout.ragged({"train": (LENGTHS_V3["train"], 2), "test": (LENGTHS_V3["test"], 1)}, part_size=4)
THIRD: dict[str, tuple[Encoding, Layout]] = {
    "ragged-topk": (TopK(3, "float16", (1.0, 4.0)), RAGGED_V3),
    "ragged-sampled": (Sampled(5), RAGGED_V3),
    "sampled-warm": (Sampled(6, temperature=2.0), LAYOUT),
}
FEW_BITS: dict[str, tuple[Encoding, Layout]] = {
    "topk-int8": (TopK(4, "int8", (1.0, 4.0)), LAYOUT),
    "topk-int4": (TopK(3, "int4", (2.0,)), RAGGED_V3),
}
NAMES_V3, NAMES_FEW_BITS = (
    tuple(f"v3-{name}-{store}" for name in cases for store in ("zarr", "parquet")) for cases in (THIRD, FEW_BITS)
)


def third_version(names: tuple[str, ...] = NAMES_V3, values: str = "v3-expected.npz") -> None:
    """Each archive of version 3, and the arrays that were stored."""
    expected: dict[str, np.ndarray] = {}
    for name in names:
        kind, _, store = name.removeprefix("v3-").rpartition("-")
        encoding, layout = {**THIRD, **FEW_BITS}[kind]
        with tempfile.TemporaryDirectory() as folder:
            identity = identity_of(encoding, store, layout)
            writer = CacheWriter(
                Path(folder), layout, encoding, classes=CLASSES, store=store, identity=identity["digest"],
                features=FEATURES,
            )  # fmt: skip
            for part in layout.parts:
                length = LENGTHS_V3[part.split][part.first : part.first + part.entries] if layout.is_ragged else None
                arrays = encoded(encoding, part)
                index = replace(index_of(part), length=length)
                features = {"block.1": feature_of(part)}
                writer.write_part(part, arrays, index, features, {"bound": encoding.bound(arrays, CLASSES)})
                for array, rows in arrays.items():
                    expected[f"{kind}/{part.number}/{array}"] = rows
            writer.finalise({"identity": identity, "class_names": [f"class {n}" for n in range(CLASSES)]})
            pack(Path(folder), name)
    np.savez_compressed(HERE / values, **expected)


def few_bits() -> None:
    """Archives of version 3 with top-k labels of 8 and 4 bits, which came after the others."""
    third_version(NAMES_FEW_BITS, "v3-few-bits-expected.npz")


def main() -> None:
    """Write the archives of the version that is asked for, or stop when something is there."""
    versions = {
        "1": (NAMES, first_version),
        "2": (NAMES_V2, second_version),
        "3": (NAMES_V3, third_version),
        "3-few-bits": (NAMES_FEW_BITS, few_bits),
    }
    names, make = versions[sys.argv[1]]
    for name in names:
        if (HERE / f"{name}.zip").exists():
            sys.exit(f"{HERE / name}.zip is there already; golden files are made once")
    make()


if __name__ == "__main__":
    main()
