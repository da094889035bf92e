"""What each codec does to each stored array: bytes, and speed of both directions. docs/decisions/0002 has the figures.

python -m benchmarks.compression_per_array
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.encodings import Dense, Encoding, TopK
from pipeline.store.shards import CHUNK_BYTES

CODECS = {
    "zstd 1": ("zstd", 1),
    "zstd 3": ("zstd", 3),
    "zstd 9": ("zstd", 9),
    "lz4": ("lz4", None),
}


def synthetic(rows: int, classes: int) -> npt.NDArray[np.float32]:
    """Logits of a confident teacher: a long tail, and a few classes that stand out, which differ from row to row."""
    random = np.random.default_rng(0)
    logits = random.standard_normal((rows, classes)).astype(np.float32) * 1.5
    winners = random.integers(0, classes, (rows, 5))
    np.put_along_axis(logits, winners, random.uniform(3, 14, (rows, 5)).astype(np.float32), axis=1)
    return logits


def timed(function: Callable[[], object], bytes_: int) -> float:
    """MB/s of the best of five."""
    best = min(_seconds(function) for _ in range(5))
    return bytes_ / best / 1e6


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(title: str, rows: npt.NDArray[np.generic]) -> None:
    """Print a line for each codec over chunks as the store cuts them."""
    data = rows.tobytes()
    chunks = [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]
    for name, (codec, level) in CODECS.items():
        tool = pa.Codec(codec, compression_level=level) if level else pa.Codec(codec)
        packed = [tool.compress(chunk, asbytes=True) for chunk in chunks]
        pairs = list(zip(packed, chunks, strict=True))
        write = timed(lambda tool=tool: [tool.compress(c) for c in chunks], len(data))  # type: ignore[misc]
        read = timed(lambda tool=tool, pairs=pairs: [tool.decompress(p, len(c)) for p, c in pairs], len(data))  # type: ignore[misc]
        size = sum(map(len, packed)) / len(data)
        print(f"| {title} | {name} | {size:.3f} | {write:,.0f} | {read:,.0f} |", flush=True)


def main() -> None:
    """Print the table."""
    print("| array | codec | size, of uncompressed | write MB/s | read MB/s |\n|---|---|---|---|---|")
    for rows, classes, k in ((8_000, 1_000, 20), (400, 50_000, 50)):
        logits = synthetic(rows, classes)
        encodings: list[Encoding] = [Dense("float32"), Dense("float16"), Dense("int8"), TopK(k, "float16", (1.0, 4.0))]
        for encoding in encodings:
            for name, stored in encoding.encode(logits).items():
                if stored.nbytes >= 10_000:
                    compare(f"{classes:,} classes, {encoding.name} {name} {stored.dtype}", stored)
    for title, labels in (("few classes", 10), ("many", 1_000)):
        ids = np.sort(np.random.default_rng(0).integers(0, labels, 100_000)).astype(np.int64)
        compare(f"index, label of {title}", np.random.default_rng(1).permutation(ids))


if __name__ == "__main__":
    main()
