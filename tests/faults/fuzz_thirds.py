"""Readers of what only format version 3 has, for fuzz.py: uneven entries, kept classes, logits of few bits."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pipeline.encodings import KEPT, Encoding, Sampled, TopK
from pipeline.errors import EncodingError
from pipeline.store import Manifest, index, parts
from pipeline.store.files import LocalFiles, MemoryFiles
from pipeline.store.parquet_backend import ParquetBackend
from pipeline.store.shard_reader import Shard
from pipeline.store.shards import ShardPlan
from pipeline.store.spans import bounds_of
from tests.faults.forged_scratch import unfinished
from tests.faults.forged_thirds import THIRD_BASES
from tests.faults.forging import UNEVEN, records, sound_cache
from tests.faults.fuzz_targets import (
    Target,
    all_of,
    any_of,
    journal_reader,
    plan_reader,
    resealed,
    sharded,
    unchecked,
)
from tests.faults.receiving import receive
from tests.store.small import CLASSES

DECODED: tuple[Encoding, ...] = (
    Sampled(1), Sampled(5), Sampled(300), Sampled(5, proposal=0.8),
    *(TopK(k, dtype, (1.0, 4.0)) for k in (1, 3, 6) for dtype in ("int8", "int4")),
)  # fmt: skip


def third_targets(folder: Path) -> dict[str, Target]:
    """The readers, over files under ``folder``."""
    places = {name: folder / name for name in THIRD_BASES}
    for name, (encoding, store) in THIRD_BASES.items():
        sound_cache(places[name], encoding, store, UNEVEN)
    draws, parquet, int4 = places.values()
    manifests = [(place / "manifest.json").read_bytes() for place in places.values()]
    unfinished(folder / "unfinished", THIRD_BASES["draws"][0], UNEVEN)
    (scratch,) = (place for place in (folder / "unfinished").iterdir() if place.is_dir())
    journals = [(scratch / "journal/part-00001.json").read_bytes()]
    columns = "labels/part-00000.parquet"
    backend = ParquetBackend("labels", THIRD_BASES["draws in parquet"][0].specs(CLASSES))
    first = records(parquet)[0]
    kept = records(draws)[0].kept

    def whole(place: Path, sound: bytes, data: bytes) -> None:
        (place / "manifest.json").write_bytes(data)
        try:
            all_of(*(step for _, step in receive(place)))
        finally:
            (place / "manifest.json").write_bytes(sound)

    def read_index(data: bytes) -> None:
        acts = [
            (MemoryFiles({index.path_of(p.number): data}), p, len(data)) for p in (UNEVEN.parts[0], UNEVEN.parts[2])
        ]
        any_of(*(partial(index.rows_of, *arguments, ragged=True) for arguments in acts))

    def read_columns(data: bytes) -> None:
        files = MemoryFiles({columns: data})
        part = parts.PartRecord(**{**vars(first), "files": {columns: parts.FileRecord.of(data)}})
        bounds = bounds_of(np.full(part.positions, part.kept // part.positions))
        all_of(
            lambda: backend.read(files, part), lambda: backend.read_rows(files, part, np.array([7, 0]), None, bounds)
        )

    def read_shard(data: bytes) -> None:
        plan = ShardPlan.parse((draws / "labels.zarr/draws_0/zarr.json").read_bytes(), "z")
        (folder / "shard").write_bytes(data)
        held = Shard(plan, LocalFiles(folder), "shard", len(data), kept)
        all_of(held.read, partial(held.read_rows, np.array([kept - 1, 0])), held.sealed)

    read_plan, read_journal = plan_reader(folder), journal_reader(journals[0], UNEVEN.parts[1])

    described = [path.read_bytes() for place in (draws, int4) for path in sorted(place.glob("labels.zarr/*/zarr.json"))]
    indices = [unchecked((draws / index.path_of(n)).read_bytes()) for n in (0, 2)]
    return {
        "manifest, version 3": Target(manifests, lambda d: Manifest.from_json(d, "m"), json=True, reseal=resealed),
        "whole cache of draws": Target(manifests[:1], partial(whole, draws, manifests[0]), json=True, reseal=resealed),
        "whole cache of int4": Target(manifests[2:], partial(whole, int4, manifests[2]), json=True, reseal=resealed),
        "plan.json of uneven entries": Target(
            [(scratch / "plan.json").read_bytes()], read_plan, json=True, reseal=resealed
        ),
        "journal of draws": Target(journals, read_journal, json=True, reseal=resealed),
        "index of uneven entries": Target(indices, read_index),
        "label columns of draws": Target([unchecked((parquet / columns).read_bytes())], read_columns),
        "zarr.json of draws and int4": Target(described, lambda d: ShardPlan.parse(d, "z"), json=True),
        "shard of draws": Target([(draws / "labels.zarr/draws_0/c.0").read_bytes()], read_shard, reseal=sharded),
        "decoder of draws and few bits": Target([bytes(range(256)), bytes([1, 2, 3, 250, 0, 17])], decode),
    }


def decode(data: bytes) -> None:
    """Arrays of the right types, as long as they have to be, out of any bytes. Raises the last refusal, if any."""
    refusal: EncodingError | None = None
    for encoding in DECODED:
        arrays, rows = {}, min(4, len(data))
        for name, spec in encoding.specs(CLASSES).items():
            count = rows if spec.axis != KEPT else int(arrays[KEPT].sum())
            size = count * int(np.prod(spec.shape, dtype=int)) * np.dtype(spec.dtype).itemsize
            raw = (data * (size // max(1, len(data)) + 1))[:size]
            arrays[name] = np.frombuffer(raw, spec.dtype).reshape(count, *spec.shape)
        try:
            encoding.decode(arrays, CLASSES)
        except EncodingError as error:
            refusal = error
    if refusal is not None:
        raise refusal
