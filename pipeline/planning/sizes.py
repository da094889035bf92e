"""How many bytes a cache would take, from the files that the store makes of a sample, in memory.

What is not compressed has its size by the layout alone, and the writer says it for a part of each length. What is
compressed depends on the values: a sample of them is written in two lengths, and the bytes of longer chunks follow the
line through both, so that what compression costs once per chunk is not counted once per sample.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dump import Job
from pipeline.dump.run import REPLAYED_EXAMPLES
from pipeline.encodings import Arrays
from pipeline.identity import digest_bytes
from pipeline.sources.gathering import some_positions
from pipeline.sources.replay import replay_table
from pipeline.store import FileRecord, IndexRows, Layout, Manifest, Part, PartRecord, replay_file
from pipeline.store import index as index_files
from pipeline.store import parts as parts_file
from pipeline.store.backend import Backend
from pipeline.store.card import card
from pipeline.store.shards import ShardPlan
from pipeline.store.zarr_backend import ZarrBackend
from pipeline.views import view_records

MOST_ROWS = 65_536
"""Entries of a part that are made for real: where a part is longer, its files follow from these."""

MOST_PARTS = 256
"""Parts whose line in parts.parquet is made for real."""

Size = Callable[[int], float]
"""Bytes of the files of a part, by its number of entries."""


@dataclasses.dataclass(frozen=True)
class Line:
    """``fixed`` bytes, and ``each`` for every row."""

    fixed: float
    each: float

    @classmethod
    def through(cls, rows: int, size: int, fewer: int, smaller: int) -> Line:
        """The line through (``fewer``, ``smaller``) and (``rows``, ``size``); one that starts at 0 when they agree."""
        if not 0 < fewer < rows:
            return cls(0.0, size / max(1, rows))
        each = max(0.0, (size - smaller) / (rows - fewer))
        fixed = min(max(0.0, size - each * rows), float(size))
        return cls(fixed, (size - fixed) / rows)

    def __call__(self, rows: int) -> float:
        """Bytes of ``rows`` rows."""
        return self.fixed + self.each * rows if rows else 0.0


def array_size(backend: Backend, arrays: Arrays, layout: Layout) -> Size:
    """Bytes of ``arrays`` (of n positions, n at least 1) in a part of ``layout``, by the number of its entries.

    Where entries are ragged, each counts as the mean.
    """
    positions = layout.mean_length
    rows = len(next(value for name, value in arrays.items() if name not in backend.kept))
    if isinstance(backend, ZarrBackend):
        # Kept classes to a position: those of the sample, in the mean.
        each = sum(len(arrays[n]) for n in backend.kept) / max(1, len(backend.kept) * rows)
        sizes = [
            (_shard_size(plan, arrays[name]), positions * (each if name in backend.kept else 1.0))
            for name, plan in backend.plans.items()
        ]
        return lambda entries: sum(size(round(entries * number)) for size, number in sizes)
    if not rows:
        return Line(0.0, 0.0)

    def written(count: int) -> int:
        part = dataclasses.replace(layout.parts[0], entries=count, positions=count)
        # Every n-th row: a sample is in the order of the dump, and each length should hold all of it.
        held = some_positions(dict(arrays), backend.kept, _spread(rows, count))
        return sum(len(data) for data in backend.encode(part, held).values())

    line = Line.through(rows, written(rows), rows // 2, written(max(1, rows // 2)))
    return lambda entries: line(round(entries * positions))


def _spread(rows: int, count: int) -> npt.NDArray[np.int64]:
    return np.arange(count, dtype=np.int64) * rows // count


def _shard_size(plan: ShardPlan, rows: npt.NDArray[Any]) -> Size:
    """Bytes of a shard by the number of its rows, of which ``rows`` are a sample."""
    if not plan.zstd:
        return lambda count: len(plan.encode(np.zeros((min(count, plan.capacity), *plan.trailing), plan.dtype)))
    # One chunk to a shard: the bytes of a chunk by its rows, without those of the shard's index.
    single = dataclasses.replace(plan, capacity=plan.chunk, shards=1)
    index = 16 * single.chunks + 4

    def chunk(count: int) -> int:
        return len(single.encode(np.ascontiguousarray(rows[_spread(len(rows), count)]))) - index

    longest = min(len(rows), plan.chunk)
    line = Line.through(longest, chunk(longest), longest // 2, chunk(max(1, longest // 2)))

    def size(count: int) -> float:
        full, rest = divmod(count, plan.chunk)
        return 16 * plan.chunks + 4 + full * line(plan.chunk) + line(rest)

    return size


def index_rows(job: Job, part: Part) -> IndexRows:
    """The index of a part as a dump writes it."""
    rows = job.dataset.rows(part.split)[part.first : part.first + part.entries]
    ids = [str(job.dataset.ids[row]) for row in rows]
    return IndexRows(
        example_ids=ids,
        view=part.view,
        seeds=np.array([job.views.seed_of(i, part.view) for i in ids], dtype=np.int64),
        labels=np.asarray(job.dataset.labels)[rows].astype(np.int64),
        input_digests=None if part.view else [job.dataset.known_digest(int(row)) for row in rows],
        split=part.split,
        length=np.asarray(job.dataset.lengths, dtype=np.int64)[rows] if job.layout.is_ragged else None,
    )


def some_entries(job: Job, part: Part, count: int) -> Part:
    """The first so many entries of a part, as a part."""
    rows = job.dataset.rows(part.split)[part.first : part.first + count]
    positions = int(job.dataset.lengths[rows].sum()) if job.layout.is_ragged else count * job.layout.length
    return dataclasses.replace(part, entries=count, positions=positions)


def index_sizes(job: Job) -> Callable[[Part], float]:
    """Bytes of the index of any part: of the plain and of the random views of each split, from its first entries."""
    lines: dict[tuple[str, bool], Line] = {}
    for whole in job.layout.parts:
        if whole.first or (whole.split, whole.view > 0) in lines:
            continue

        def written(entries: int, whole: Part = whole) -> int:
            part = some_entries(job, whole, entries)
            return len(index_files.encode(part, index_rows(job, part)))

        most = min(whole.entries, MOST_ROWS)
        lines[whole.split, whole.view > 0] = Line.through(most, written(most), most // 2, written(max(1, most // 2)))
    return lambda part: lines[part.split, part.view > 0](part.entries)


def over_parts(size: Size, layout: Layout) -> int:
    """Bytes of all parts. Parts of one length are alike, and there are few lengths."""
    lengths = Counter(part.entries for part in layout.parts)
    return round(sum(number * size(entries) for entries, number in lengths.items()))


def other_files(job: Job, backends: Mapping[str, Backend], fidelity: Mapping[str, Any], held: Mapping[str, int]) -> int:
    """Bytes of the files that belong to no part: tables, metadata, card and manifest, made as a dump makes them.

    ``held``: bytes of ``labels``, ``features`` and ``index``, which the card names.
    """
    static = {path: data for backend in backends.values() for path, data in backend.static().items()}
    rows = job.dataset.rows("train")[:REPLAYED_EXAMPLES].tolist() if job.views.count > 1 else []
    if seen := [(row, 1 + number % (job.views.count - 1)) for number, row in enumerate(rows)]:
        static["views.parquet"] = replay_file(replay_table(view_records(job.views, job.dataset, seen)))
    draft = Manifest(
        identity=job.identity,
        layout=job.layout,
        encoding=job.encoding,
        bound=0.1,
        classes=len(job.dataset.classes),
        class_names=tuple(job.dataset.classes),
        features=job.feature_specs,
        fidelity=fidelity,
        replay="views.parquet" if seen else None,
    )
    table = _parts_table(job.layout, backends, fidelity)
    rest = table + sum(len(data) for data in static.values())
    static["README.md"] = card(draft, {**held, "rest": rest}).encode()
    files = {path: FileRecord.of(data) for path, data in static.items()}
    manifest = dataclasses.replace(draft, files={**files, parts_file.PATH: FileRecord.of(b"")})
    return sum(record.size for record in files.values()) + len(manifest.to_json()) + table


def _parts_table(layout: Layout, backends: Mapping[str, Backend], fidelity: Mapping[str, Any]) -> int:
    """Bytes of parts.parquet. Digests do not compress: any will do."""
    names = ["bound", "labelled", "correct", "compared", "agreed"]
    names += [f"kl_{what}_T{temperature}" for temperature in fidelity["kl"] for what in ("sum", "max")]
    names += [f"drawn_{what}_sum" for what in fidelity.get("draws", ())]

    def record(part: Part) -> PartRecord:
        paths = [path for backend in backends.values() for path in backend.paths(part.number).values()]
        every = dict.fromkeys([index_files.path_of(part.number), *paths])
        files = {path: FileRecord(digest_bytes(f"{part.number} {path}".encode()), 1 << 20) for path in every}
        sealed = {path: 2**31 + part.number for path in files if ".zarr/" in path}
        numbers = np.random.default_rng(part.number).random(len(names)).tolist()
        return PartRecord.of(part, files, dict(zip(names, numbers, strict=True)), sealed)

    records = [record(part) for part in layout.parts[:MOST_PARTS]]
    half = len(records) // 2
    line = Line.through(
        len(records), len(parts_file.encode(records)), half, len(parts_file.encode(records[: max(1, half)]))
    )
    return round(line(len(layout.parts)))
