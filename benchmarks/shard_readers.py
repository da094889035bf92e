"""Ways of reading whole shards, in turn, against a gather from a raw memmap. docs/decisions/0004 has the figures.

python -m benchmarks.shard_readers
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from pipeline.encodings import Dense
from pipeline.store import CacheWriter, IndexRows, Layout, open_cache

ROWS, CLASSES, PART, BATCH = 100_000, 1_000, 12_500, 256


def build(folder: Path) -> None:
    """A dense float16 cache of ROWS x CLASSES, and the same rows in one raw file."""
    layout = Layout.of({"train": (ROWS, 1)}, PART)
    writer = CacheWriter(folder / "cache", layout, Dense("float16"), classes=CLASSES, identity="0" * 64)
    with open(folder / "raw", "wb") as raw:
        for part in layout.parts:
            logits = np.random.default_rng(part.number).standard_normal((part.entries, CLASSES), dtype=np.float32)
            arrays = Dense("float16").encode(logits)
            raw.write(arrays["logits"].tobytes())
            ids = [str(n) for n in range(part.first, part.first + part.entries)]
            zeros = np.zeros(part.entries, np.int64)
            writer.write_part(part, arrays, IndexRows(ids, 0, "train", zeros, zeros, ["00" * 32] * part.entries))
    identity = {"digest": "0" * 64, "store": "zarr", "part_size": PART}
    writer.finalise({"identity": identity, "class_names": []})


def main() -> None:
    """Print rows per second of each way, best of nine rounds, and its ratio to the first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder)
        cache = open_cache(folder / "cache")
        raw = np.memmap(folder / "raw", dtype=np.float16, mode="r", shape=(ROWS, CLASSES))
        order = np.random.default_rng(0).permutation(ROWS)

        def gather() -> None:
            for first in range(0, ROWS, BATCH):
                raw[order[first : first + BATCH]]

        def stock() -> None:
            array = zarr.open_group(folder / "cache/labels.zarr", mode="r")["logits"]
            for part in cache.parts:
                array[part.start : part.start + part.positions]

        def ours() -> None:
            for part in cache.parts:
                cache.read_part(part)

        def with_zarrs() -> None:
            with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
                stock()

        ways: dict[str, Callable[[], None]] = {"gather from a raw memmap": gather, "zarr-python": stock}
        if importlib.util.find_spec("zarrs"):
            ways["zarr-python with zarrs"] = with_zarrs
        ways["Cache.read_part"] = ours
        best = dict.fromkeys(ways, float("inf"))
        work = dict.fromkeys(ways, float("inf"))
        for _ in range(9):
            for way, function in ways.items():
                start, busy = time.perf_counter(), time.process_time()
                function()
                best[way] = min(best[way], time.perf_counter() - start)
                work[way] = min(work[way], time.process_time() - busy)
        print("| way | rows/s | of the memmap | processor time, ms |\n|---|---|---|---|")
        for way, seconds in best.items():
            ratio = best["gather from a raw memmap"] / seconds
            print(f"| {way} | {ROWS / seconds:,.0f} | {ratio:.2f} | {1e3 * work[way]:.0f} |")


if __name__ == "__main__":
    main()
