"""Writing labels: a cache with its digests and fsync, against a file per sample, and what each step of it costs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.measure import Row, Settings, Table, at_least, in_turn, rate, ratio, seconds
from benchmarks.reading import CLASSES, save_samples
from benchmarks.synthetic import dumped
from pipeline.encodings import Dense
from pipeline.identity import digest_bytes
from pipeline.store import Cache, CacheWriter
from pipeline.store import index as index_files
from pipeline.store.shards import ShardPlan

ROW_MB = 2 * CLASSES / 1e6


def run(settings: Settings) -> Table:
    """Megabytes of float16 labels per second, and the limit."""
    rows = settings.pick(100_000, 4_000)
    singles = settings.pick(2_048, 512)
    rounds = settings.pick(5, 2)
    cache = dumped(settings.scratch / "cache", rows)
    table = dumped(settings.scratch / "table", rows, store="parquet")
    logits = [cache.read_part(part)["logits"].astype(np.float32) for part in cache.parts]
    halves = logits[0].astype(np.float16)[:singles]
    folder = settings.scratch / "out"

    def cleared(part: Callable[[], object], amount: int) -> Callable[[], float]:
        def timed() -> float:
            shutil.rmtree(folder, ignore_errors=True)
            # What an earlier contender left to be written must not be paid for by this one.
            os.sync()
            return seconds(part) / amount

        return timed

    times = in_turn(
        {
            "cache": cleared(lambda: write(cache, logits, folder), rows),
            "table": cleared(lambda: write(table, logits, folder), rows),
            "samples": cleared(lambda: save_samples(folder, halves), len(halves)),
        },
        rounds,
    )
    shutil.rmtree(folder, ignore_errors=True)
    on = f"{rows:,} x {CLASSES:,} float16"

    def speed(name: str) -> str:
        return f"{ROW_MB * rate(1, times[name]):,.0f} MB/s"

    limits = steps(cache, logits[0], settings, rounds)
    slowest = max((name for name in limits if name != "all"), key=lambda name: limits[name])
    part_mb = ROW_MB * len(logits[0])
    each = ", ".join(f"{name} {part_mb / taken:,.0f}" for name, taken in limits.items())
    found = [
        at_least(
            f"cache / a file per sample (torch.save, {len(halves):,} of them)",
            on,
            ratio(times["samples"], times["cache"]),
            5,
            f"; {speed('cache')} against {speed('samples')}",
        ),
        Row(
            "the Parquet store / a file per sample", on, f"{ratio(times['samples'], times['table'])}; {speed('table')}"
        ),
        Row("each step alone, MB/s", f"one part of {part_mb:.0f} MB", f"{each}; the limit is {slowest}"),
    ]
    return Table(
        "Writing",
        found,
        (
            "The cache starts from float32 logits: it is encoded, cut into chunks with their crc32c, hashed "
            "(sha256), written, fsynced and journalled with its index, part by part in one thread, and finalised. "
            "The files per sample start from float16 and are left in the page cache, as torchdistill left them.",
            f"Written to {filesystem(settings.scratch)}.",
        ),
    )


def write(cache: Cache, logits: list[npt.NDArray[np.float32]], folder: Path) -> None:
    """Write a cache again, as a dump does: the same layout, index and identity."""
    encoding = Dense("float16")
    writer = CacheWriter(
        folder,
        cache.manifest.layout,
        encoding,
        classes=cache.classes,
        store=cache.manifest.store,
        identity=cache.identity["digest"],
    )
    for part, rows in zip(cache.manifest.layout.parts, logits, strict=True):
        writer.write_part(part, encoding.encode(rows), cache.index(part), {}, {})
    writer.finalise({"identity": cache.identity, "class_names": cache.class_names})


def steps(cache: Cache, logits: npt.NDArray[np.float32], settings: Settings, rounds: int) -> dict[str, float]:
    """Seconds that each step takes for one part, alone."""
    layout, part = cache.manifest.layout, cache.manifest.layout.parts[0]
    encoding = Dense("float16")
    arrays = encoding.encode(logits)
    plan = ShardPlan.of(encoding.specs(CLASSES)["logits"], 1, layout.capacity)
    shard = plan.encode(arrays["logits"])
    index = cache.index(part)
    path = settings.scratch / "shard"
    handles: list[int] = []

    def put() -> None:
        path.unlink(missing_ok=True)
        handles.append(os.open(path, os.O_WRONLY | os.O_CREAT))
        view = memoryview(shard)
        while view:
            view = view[os.write(handles[0], view) :]

    def sync() -> None:
        os.fsync(handles[0])
        os.close(handles.pop())

    actions: dict[str, Callable[[], object]] = {
        "encode": lambda: encoding.encode(logits),
        "chunks and crc32c": lambda: plan.encode(arrays["logits"]),
        "sha256": lambda: digest_bytes(shard),
        "index": lambda: index_files.encode(part, index),
        "write": put,
        "fsync (disk)": sync,
    }
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():  # in this order: each sync belongs to the write before it
            taken[name].append(seconds(action))
    path.unlink()
    found = {name: sorted(times[1:])[len(times) // 2 - 1] for name, times in taken.items()}
    return {**found, "all": sum(found.values())}


def filesystem(folder: Path) -> str:
    """What ``folder`` lies on, for people."""
    best = ("", "an unknown filesystem")
    try:
        for line in Path("/proc/mounts").read_text().splitlines():
            device, point, kind = line.split()[:3]
            if folder.resolve().is_relative_to(point) and len(point) >= len(best[0]):
                best = (point, f"{kind} on {device}")
    except OSError:
        pass
    return best[1]
