"""What caches of the sizes people talk about cost, from constants measured here: ``python -m benchmarks.scale``.

Bytes per label and per index entry come from parts written for the purpose, the cost of a part from reading a table
of many. docs/scale.md holds the tables of one run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.compression_per_array import synthetic
from benchmarks.measure import peak_memory
from pipeline.encodings import Dense, Encoding, TopK
from pipeline.store import FileRecord, IndexRows, Layout, PartRecord, parts
from pipeline.store import index as index_files
from pipeline.store.shards import ShardPlan

PARTS = 20_000
MEBI = 1 << 20
DUMP_SECONDS = 14e-6
"""Processor time of an example besides the teacher's forward pass, 1,000 classes float16: decision 0007."""
READ_BYTES = 3.6e9
"""Bytes of labels a second out of the page cache, checksums checked, two cores: ``make bench``, shuffled reading."""


@dataclass(frozen=True)
class Case:
    """A cache that somebody might make."""

    name: str
    examples: int
    views: int
    positions: int
    classes: int
    encoding: Encoding
    part_mebi: int = 32


CASES = (
    Case("ImageNet-1k, 300 views, top-10", 1_281_167, 300, 1, 1000, TopK(10, "float16", (1.0, 4.0))),
    Case("ImageNet-1k, 300 views, all classes float16", 1_281_167, 300, 1, 1000, Dense("float16")),
    Case("ImageNet-22k, 90 epochs, top-100", 14_197_122, 90, 1, 21_841, TopK(100, "float16", (1.0, 4.0))),
    Case("10^12 positions, V = 128,000, top-50", 488_281_250, 1, 2048, 128_000, TopK(50, "float16", (1.0,))),
    Case("the same in parts of 1 GiB", 488_281_250, 1, 2048, 128_000, TopK(50, "float16", (1.0,)), 1024),
)


def bytes_per_label(encoding: Encoding, classes: int, rows: int = 4096) -> float:
    """Stored bytes of one position, checksums and chunk index included."""
    rows = min(rows, max(64, 64 * MEBI // classes // 4))
    arrays = encoding.encode(synthetic(rows, classes))
    total = 0
    for name, spec in encoding.specs(classes).items():
        total += len(ShardPlan.of(spec, 1, rows).encode(arrays[name]))
    return total / rows


def bytes_per_entry(view: int, rows: int = 16_384) -> float:
    """Index bytes of one entry."""
    layout = Layout.of({"train": (rows, view + 1)}, rows)
    random = np.random.default_rng(0)
    rows_of_index = IndexRows(
        example_ids=[f"n{number // 1300:08d}/{number:06d}.JPEG" for number in range(rows)],
        view=view,
        split="train",
        seeds=random.integers(0, 2**63, rows),
        labels=np.arange(rows) // 1300,
        input_digests=None if view else [random.bytes(32).hex() for _ in range(rows)],
    )
    return len(index_files.encode(layout.parts[view], rows_of_index)) / rows


def cost_of_parts(count: int = PARTS) -> tuple[float, float, float]:
    """(bytes of parts.parquet, bytes of memory, seconds) for each part, when a cache is opened."""
    layout = Layout.of({"train": (count, 1)}, 1)
    record = FileRecord("0" * 64, 32 * MEBI)
    names = ("id_deltas", "logits", "log_normaliser", "log_residual")
    records = []
    for part in layout.parts:
        shards = {f"labels.zarr/{name}/c.{part.number}.0": record for name in names}
        files = {index_files.path_of(part.number): record, **shards}
        statistics = {"bound": 1e-3, "compared": 64.0, "kl_sum_T1": part.number / 7, "kl_max_T1": part.number / 3}
        records.append(PartRecord.of(part, files, statistics, dict.fromkeys(shards, part.number * 2654435761 % 2**32)))
    data = parts.encode(records)
    del records
    before, began = peak_memory(), time.perf_counter()
    held = parts.decode(data, count, "parts.parquet")
    taken = time.perf_counter() - began
    return len(data) / count, max(0, peak_memory() - before) / len(held), taken / count


def measured_alone() -> tuple[float, float, float]:
    """``cost_of_parts`` in a fresh process, whose peak of memory is its own."""
    code = "from benchmarks import scale; print(*scale.cost_of_parts())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return float(said[0]), float(said[1]), float(said[2])


def size(number: float) -> str:
    """Bytes for people, three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} PB"


def duration(seconds: float) -> str:
    """A time for people."""
    for most, each, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < most:
            return f"{seconds / each:.3g} {unit}"
    return f"{seconds / 86_400:,.3g} d"


def main() -> None:
    """Measure the constants and print both tables."""
    first, other = bytes_per_entry(0), bytes_per_entry(1)
    file, memory, seconds = measured_alone()
    print("| constant | measured |\n|---|---|")
    print(f"| index, bytes per entry of the plain view; of a random one | {first:.1f}; {other:.1f} |")
    print(f"| parts.parquet, bytes per part | {file:.0f} |")
    print(f"| opening a cache, per part | {memory:,.0f} B of memory, {seconds * 1e6:.0f} microseconds |")
    for case in CASES[:-1]:
        print(f"| label bytes, {case.name.split(', ', 1)[-1]} | {bytes_per_label(case.encoding, case.classes):.1f} |")
    print()
    heads = ("cache", "labels", "index", "parts", "files", "to open", "dump, cores", "an epoch's labels, read")
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for case in CASES:
        entries = case.examples * case.views
        each = bytes_per_label(case.encoding, case.classes)
        labels = entries * case.positions * each
        index = case.examples * first + (entries - case.examples) * other
        row_bytes = sum(spec.row_bytes for spec in case.encoding.specs(case.classes).values()) * case.positions
        part_size = max(1, case.part_mebi * MEBI // row_bytes)
        count = -(-case.examples // part_size) * case.views
        arrays = len(case.encoding.specs(case.classes))
        columns = (
            case.name,
            size(labels),
            size(index),
            f"{count:,}",
            f"{count * (1 + arrays):,}",
            f"{size(count * memory)}, {duration(count * seconds)}",
            duration(entries * case.positions * DUMP_SECONDS),
            duration(labels / case.views / READ_BYTES),
        )
        print("| " + " | ".join(columns) + " |")


if __name__ == "__main__":
    main()
