"""Training straight from S3 with 50 ms before each answer, against the same stream from the local disk."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Ratio, Row, Seconds, Settings, Table, at_least, in_turn, rate, ratio, seconds
from benchmarks.object_server import BUCKET
from benchmarks.steps import BATCH, Step, one_step
from benchmarks.synthetic import Points, depth_for, dumped, network
from pipeline.sources import CachedLabels
from pipeline.store import Cache, open_cache
from pipeline.store.ahead import THREADS

DELAY = 0.050
STEP = 0.020
WIDTH = 512
WINDOW = 8

Work = Callable[[Any, Any], object]
"""What becomes of a batch: (rows, soft labels)."""


def run(settings: Settings) -> Table:
    """Rates from S3 over rates from the disk, cold and warm, and what the first batch waits for."""
    part = settings.pick(2048, 256)
    rows = settings.pick(50, 12) * part
    local = dumped(settings.scratch / "cache", rows, part_size=part)
    data = Points(rows)
    with served(settings.scratch, DELAY) as options:
        return measure(settings, local, data, options)


def measure(settings: Settings, local: Cache, data: Points, options: dict[str, Any]) -> Table:
    """The table, with a server at hand."""
    streams = Streams(local, data, settings.scratch / "copies", options)
    found: list[Row] = []
    size = sum(sum(file.size for file in part.files.values()) for part in local.parts)
    on = f"{len(data):,} x 1,000 float16 in {len(local.parts)} parts, {DELAY * 1e3:.0f} ms"
    for name, work, rounds, aimed in works(settings, data):
        times = in_turn(streams.contenders(work), rounds, warm=0)
        speed = f"; {1e-3 * rate(streams.timed_rows, times['local']):,.1f}k rows/s from the disk"
        for contender, what in (("cold", "first epoch, copies cold, after the first window"), ("warm", "later epochs")):
            gain = ratio(times["local"], times[contender])
            found.append(row(f"{what}: from S3 / from the disk", f"{on}; {name}", gain, aimed[contender], speed))
    repeats = settings.pick(7, 2)
    for first in (1, 0):
        waits, parts = zip(*(streams.first_batch(first) for _ in range(repeats)), strict=True)
        near = [streams.first_batch(first, near=True)[0] for _ in range(repeats)]
        found.append(
            Row(
                f"first batch of a run, copies cold, `--first-window {first}`",
                on,
                f"{spread(waits)} ms after {', '.join(map(str, sorted(set(parts))))} parts of {len(local.parts)}; from "
                f"the disk {spread(near)} ms",
            )
        )
    plain = throughput(settings, local)
    return Table(
        "Training from S3",
        found,
        (
            f"An S3 server on the loopback (benchmarks/object_server.py, a process of its own) that waits "
            f"{DELAY * 1e3:.0f} ms before each answer. Without the wait, and read by {THREADS} threads and nothing "
            f"else, it gives {plain / 1e6:,.0f} MB/s: less than that cannot be told from a slow network. The cache has "
            f"{size / 1e6:,.0f} MB. Server, fetching and student share the machine's cores.",
            "Cold: copies go into an empty folder, four files at once; each is written to the disk (fsync) and held to "
            f"its sha256. The clock starts when the first window ({WINDOW} parts) has been used. Warm: the folder has "
            "all parts. From the disk: the same stream from the local cache. All in the page cache.",
            f"A step elsewhere waits {STEP * 1e3:.0f} ms, as for a GPU; the CPU student computes about as long, on "
            f"{torch.get_num_threads()} threads.",
        ),
    )


def works(settings: Settings, data: Points) -> Iterator[tuple[str, Work, int, dict[str, float | None]]]:
    """(name, work, rounds, least ratios) of what is done with each batch."""
    pause = STEP if not settings.quick else 0.001
    yield (
        f"a step of {STEP * 1e3:.0f} ms elsewhere",
        lambda rows, soft: time.sleep(pause),
        settings.pick(3, 1),
        {
            "cold": 0.9,
            "warm": 0.9,
        },
    )
    labels = torch.from_numpy(data.labels)
    inputs = data.inputs(np.arange(min(len(data), 16 * BATCH)))
    depth = 1 if settings.quick else depth_for(STEP, WIDTH, lambda model: one_step(model, inputs, labels))
    step = Step(network(WIDTH, depth), labels)

    def student(rows: Any, soft: Any) -> None:
        step(inputs[torch.from_numpy(rows % len(inputs))], rows, soft)

    yield f"a CPU student of {STEP * 1e3:.0f} ms", student, settings.pick(3, 1), {"cold": 0.9, "warm": 0.9}
    yield "reading alone", lambda rows, soft: None, settings.pick(11, 1), {"cold": None, "warm": 0.9}


def row(what: str, on: str, found: Ratio, least: float | None, extra: str) -> Row:
    """A row with an aim, or without."""
    return Row(what, on, f"{found}{extra}") if least is None else at_least(what, on, found, least, extra)


def spread(times: Any) -> str:
    """The median of some seconds in ms, and the least and most."""
    low, middle, high = (1e3 * each for each in (min(times), sorted(times)[len(times) // 2], max(times)))
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


class Streams:
    """Epochs of one dataset's labels, from the disk and from S3."""

    def __init__(self, local: Cache, data: Points, copies: Path, options: dict[str, Any]) -> None:
        self.local, self.data, self.copies, self.options = local, data, copies, options
        self.near = CachedLabels(local, data, resident="none")
        self.order = self.near.order(BATCH, window=WINDOW)
        self.skipped = WINDOW * local.part_size // BATCH
        self.timed_rows = len(data) - self.skipped * BATCH
        self.numbers = itertools.count()
        self.warm: CachedLabels | None = None

    def far(self) -> CachedLabels:
        """The cache at the server, with an empty folder for copies."""
        shutil.rmtree(self.copies, ignore_errors=True)
        cache = open_cache(f"s3://{BUCKET}/{Path(self.local.address).name}", cache_dir=self.copies, **self.options)
        return CachedLabels(cache, self.data, resident="none")

    def contenders(self, work: Work) -> dict[str, Callable[[], float]]:
        """Seconds of one epoch after its first window: from the disk, from S3 cold, from S3 with what that left."""

        def cold() -> float:
            self.warm = self.far()
            return self.epoch(self.warm, work)

        def warm() -> float:
            if self.warm is None:  # rounds turn around; the first one does not
                raise RuntimeError("copies are made by the cold contender, before the warm one")
            return self.epoch(self.warm, work)

        return {"local": lambda: self.epoch(self.near, work), "cold": cold, "warm": warm}

    def epoch(self, source: CachedLabels, work: Work) -> float:
        """The seconds that one epoch took after its first window."""
        total, began = 0, 0.0
        with source.stream(self.order, next(self.numbers)) as stream:
            for number, (rows, soft) in enumerate(stream):
                if number == self.skipped:
                    began = time.perf_counter()
                work(rows, soft)
                total += len(rows)
        taken = time.perf_counter() - began
        if total != len(self.data):
            raise RuntimeError(f"an epoch should have {len(self.data)} rows, found {total}")
        return taken

    def first_batch(self, first_window: int, *, near: bool = False) -> tuple[float, int]:
        """(seconds from asking for the stream to its first batch, parts copied by then)."""
        source = self.near if near else self.far()
        order = source.order(BATCH, window=WINDOW, first_window=first_window)
        stream: list[Any] = []

        def first() -> None:
            stream.append(source.stream(order, 0))
            next(iter(stream[0]))

        taken = seconds(first)
        there = {path.name for path in self.copies.glob("??/*") if not path.suffix}
        stream[0].close()
        parts = self.local.parts_of("train", 0)
        names = ({part.files[p].sha256 for p in self.local.label_paths(part.number).values()} for part in parts)
        return taken, sum(each <= there for each in names)


def throughput(settings: Settings, local: Cache) -> float:
    """Bytes per second of the server without its wait, read through s3fs by as many threads as fetch parts."""
    import fsspec

    paths = [f"{BUCKET}/{Path(local.address).name}/{path}" for part in local.parts for path in part.files]
    with served(settings.scratch, 0.0) as options, ThreadPoolExecutor(THREADS) as pool:
        filesystem = fsspec.filesystem("s3", **options)
        total = sum(len(data) for data in pool.map(filesystem.cat_file, paths[:4]))
        taken: Seconds = []
        for _ in range(settings.pick(3, 1)):
            began = time.perf_counter()
            total = sum(pool.map(lambda path: len(filesystem.cat_file(path)), paths))
            taken.append(time.perf_counter() - began)
    return rate(total, taken)


@contextlib.contextmanager
def served(folder: Path, delay: float) -> Iterator[dict[str, Any]]:
    """A server of ``folder`` for as long as this lasts; the options that reach it."""
    command = [sys.executable, "-m", "benchmarks.object_server", str(folder), str(delay)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError("the server of the benchmark did not start")
        yield {"endpoint_url": f"http://127.0.0.1:{port}", "key": "any", "secret": "any"}
        process.stdin.close()
