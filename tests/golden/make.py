"""Make the golden caches of a format version. Run once, from the repository root, when a version is first released:

    python -m tests.golden.make

It never replaces a file: golden caches are what earlier releases wrote, and stay as they are. A cache is a zip archive,
so that its many small files are one; ``expected.npz`` holds the logits that went in and the arrays that were stored.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from pipeline.encodings import Dense, Encoding, TopK
from pipeline.store import Layout
from tests.store.small import files_of, logits_of, small_cache

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


def main() -> None:
    """Write each archive and the expected values, or stop when something is there."""
    expected: dict[str, np.ndarray] = {}
    for name in (*(f"{n}.zip" for n in NAMES), "v1-expected.npz"):
        if (HERE / name).exists():
            sys.exit(f"{HERE / name} is there already; golden files are made once")
    for name in NAMES:
        encoding, _, store = name.removeprefix("v1-").rpartition("-")
        with tempfile.TemporaryDirectory() as folder:
            cache = small_cache(Path(folder) / "c", ENCODINGS[encoding], store, LAYOUT)
            with zipfile.ZipFile(HERE / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for path, data in files_of(Path(folder) / "c").items():
                    archive.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)
            for array, rows in cache.read_parts(cache.parts).items():
                expected[f"{encoding}/{array}"] = rows
    expected["logits"] = np.concatenate([logits_of(part) for part in LAYOUT.parts])
    np.savez_compressed(HERE / "v1-expected.npz", **expected)


if __name__ == "__main__":
    main()
