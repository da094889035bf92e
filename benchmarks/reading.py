"""Reading labels in shuffled batches: from a cache as training does, from a raw memmap, from a file per sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import zarr

from benchmarks.measure import Row, Settings, Table, at_least, forget, in_turn, rate, ratio, seconds
from benchmarks.synthetic import Points, dumped
from pipeline.sources import CachedLabels
from pipeline.store import Cache

BATCH = 256
CLASSES = 1000
SMALL_PART = 2048

Logits = npt.NDArray[np.float16]


def run(settings: Settings) -> Table:
    """Rows per second of each way to read, and their ratios."""
    rows = settings.pick(100_000, 4_000)
    singles = settings.pick(8_192, 512)
    rounds = settings.pick(9, 3)
    large = dumped(settings.scratch / "large", rows)
    small = dumped(settings.scratch / "small", rows, part_size=SMALL_PART)
    table = dumped(settings.scratch / "table", rows, store="parquet")
    raw = settings.scratch / "logits.f16"
    logits = np.concatenate([large.read_part(part)["logits"] for part in large.parts])
    logits.tofile(raw)
    folder = settings.scratch / "samples"
    save_samples(folder, logits[:singles])
    del logits
    shape = (rows, CLASSES)
    data = Points(rows)
    shuffled = np.random.default_rng(0).permutation(rows)

    def in_samples(part: Callable[[], object]) -> Callable[[], float]:
        return lambda: seconds(part) / singles

    def in_rows(part: Callable[[], object]) -> Callable[[], float]:
        return lambda: seconds(part) / rows

    epochs = {name: Epochs(cache, data) for name, cache in (("large", large), ("small", small), ("table", table))}
    few = shuffled[: settings.pick(2, 1) * BATCH]
    stock = zarr.open_group(settings.scratch / "large" / "labels.zarr", mode="r")["logits"]
    contenders = {
        "large": in_rows(epochs["large"]),
        "small": in_rows(epochs["small"]),
        "table": in_rows(epochs["table"]),
        "memmap": in_rows(lambda: gather(raw, shape, shuffled)),
        "memmap, float32": in_rows(lambda: gather(raw, shape, shuffled, widen=True)),
        "samples": in_samples(lambda: load_samples(folder, shuffled[shuffled < singles])),
        "stock": lambda: seconds(lambda: stock.oindex[np.sort(few)]) / len(few),
    }
    times = in_turn(contenders, rounds)
    on = f"{rows:,} x {CLASSES:,} float16, batches of {BATCH}"

    def speed(name: str) -> str:
        return f"{1e-3 * rate(1, times[name]):,.1f}k rows/s"

    both = f"; {speed('large')} against {speed('memmap')}"
    found = [
        at_least("cache / gather from a raw memmap", on, ratio(times["memmap"], times["large"]), 0.5, both),
        at_least(
            "the same, against the aim with `zarrs`, whose place our reader takes (decision 0004)",
            on,
            ratio(times["memmap"], times["large"]),
            0.7,
        ),
        Row(
            "cache / memmap gather that also becomes a float32 tensor, as the cache's labels are",
            on,
            f"{ratio(times['memmap, float32'], times['large'])}; against {speed('memmap, float32')}",
        ),
        at_least(
            f"cache / a file per sample (torch.save, {singles:,} of them)",
            on,
            ratio(times["samples"], times["large"]),
            30,
            f"; {speed('samples')} from files",
        ),
        Row(
            f"the same cache in parts of {SMALL_PART:,}, windows of 8 / memmap",
            on,
            f"{ratio(times['memmap'], times['small'])}",
        ),
        Row("the Parquet store / memmap", on, f"{ratio(times['memmap'], times['table'])}; {speed('table')}"),
        Row(
            "zarr-python, `oindex` of random rows / memmap",
            on,
            f"{ratio(times['memmap'], times['stock'])}; {speed('stock')}",
        ),
        *cold(settings, epochs["large"], raw, shape, shuffled, on),
        Row(
            "an epoch's first batch, ms after it was asked for",
            f"parts of {large.manifest.layout.part_size:,}; of {SMALL_PART:,}",
            f"{epochs['large'].first_batch():.1f}; {epochs['small'].first_batch():.1f}",
        ),
    ]
    return Table(
        "Shuffled reading",
        found,
        (
            "An epoch through `CachedLabels.stream`: whole parts in random order, rows shuffled within windows of 8 "
            "parts, checksums checked, decoded to float32 tensors. The memmap gather, `mmap[rows]`, takes rows "
            "anywhere and leaves them float16, unchecked.",
            "All files were in the page cache, except where it says cold: there they were dropped from it before "
            "each round (posix_fadvise). The disk of a virtual machine may keep a cache of its own.",
            f"Parts hold {large.manifest.layout.part_size:,} rows where nothing else is said: the default of `dump`.",
        ),
    )


class Epochs:
    """One epoch after another out of a cache, as training streams them."""

    def __init__(self, cache: Cache, data: Points) -> None:
        self.cache = cache
        self.source = CachedLabels(cache, data, resident="none")
        self.order = self.source.order(BATCH)
        self.number = 0

    def __call__(self) -> None:
        """Stream one epoch."""
        total = 0
        with self.source.stream(self.order, self.number) as stream:
            for _, soft in stream:
                total += len(soft)
        self.number += 1
        if total != len(self.source.rows):
            raise RuntimeError(f"an epoch should have {len(self.source.rows)} rows, found {total}")

    def first_batch(self, times: int = 5) -> float:
        """Milliseconds from opening a stream to its first batch, the median."""

        def once() -> float:
            self.number += 1
            began = self.source.stream(self.order, self.number)
            with began as stream:
                return seconds(lambda: next(iter(stream)))

        return 1e3 * sorted(once() for _ in range(times))[times // 2]


def gather(path: Path, shape: tuple[int, ...], shuffled: npt.NDArray[np.int64], widen: bool = False) -> None:
    """Batches of random rows from a raw file."""
    mapped = np.memmap(path, np.float16, "r", shape=shape)
    for first in range(0, len(shuffled), BATCH):
        batch = mapped[shuffled[first : first + BATCH]]
        if widen:
            torch.from_numpy(batch).float()


def save_samples(folder: Path, logits: Logits) -> None:
    """A file per sample, as torchdistill kept them: a dictionary of tensors, named after the dataset index."""
    folder.mkdir()
    for row, values in enumerate(logits):
        torch.save({"logits": torch.from_numpy(values.copy())}, folder / f"{row}.pt")


def load_samples(folder: Path, order: npt.NDArray[np.int64]) -> None:
    """Batches of samples out of a file each."""
    for first in range(0, len(order), BATCH):
        torch.stack(
            [torch.load(folder / f"{row}.pt", weights_only=True)["logits"] for row in order[first : first + BATCH]]
        )


def cold(
    settings: Settings, epoch: Epochs, raw: Path, shape: tuple[int, ...], shuffled: npt.NDArray[np.int64], on: str
) -> list[Row]:
    """The same from the disk, where the system lets the page cache go."""
    files = [path for path in (settings.scratch / "large").rglob("*") if path.is_file()]

    def from_disk(paths: list[Path], action: Callable[[], object]) -> Callable[[], float]:
        def timed() -> float:
            forget(paths)
            return seconds(action)

        return timed

    times = in_turn(
        {
            "cache": from_disk(files, epoch),
            "memmap": from_disk([raw], lambda: gather(raw, shape, shuffled)),
        },
        settings.pick(3, 1),
        warm=0,
    )
    speed = f"{1e-3 * rate(shape[0], times['cache']):,.1f}k rows/s"
    return [Row("cold: cache / memmap", on, f"{ratio(times['memmap'], times['cache'])}; {speed}")]
