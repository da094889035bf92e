"""Everything that reads a stranger's bytes, and bytes that each of them takes, for fuzz.py to change."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import safetensors.torch
import torch
import yaml

from pipeline import encodings
from pipeline.caches.catalog import catalog
from pipeline.caches.plan import Plan
from pipeline.encodings import Dense, Encoding, TopK
from pipeline.errors import CacheError, SoftlabelsError
from pipeline.fidelity import possible, summarise
from pipeline.identity import digest
from pipeline.models import build_model, load_weights, read_metadata
from pipeline.runs import read_run
from pipeline.store import Cache, Manifest, Part, PartRecord, index, parts
from pipeline.store.files import Files, LocalFiles, MemoryFiles
from pipeline.store.parquet_backend import ParquetBackend
from pipeline.store.shard_reader import Shard
from pipeline.store.shards import ShardPlan
from pipeline.workspace import Workspace
from stages.parameters import read_params
from stages.verbs.cataloguing import table
from tests.faults.forged_scratch import unfinished
from tests.faults.forging import records, shard, sound_cache
from tests.faults.receiving import receive
from tests.store.small import CLASSES, FEW

LAUGHS = (
    b"a: &a [x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + n, 98 + n, b", ".join([b"*%c" % (97 + n)] * 8)) for n in range(12))
    + b"train: *m\n"
)


@dataclass(frozen=True)
class Target:
    """A reader: the ``seeds`` that it takes, and how to ``read`` bytes. ``json``: they are changed field by field."""

    seeds: list[bytes]
    read: Callable[[bytes], object]
    json: bool = False
    reseal: Callable[[bytes], bytes] | None = None


def targets(folder: Path) -> dict[str, Target]:
    """All readers, over files under ``folder``."""
    topk, flat = TopK(3, "float16", (1.0, 4.0)), Dense("int8")
    for name, encoding, store in (("zarr", topk, "zarr"), ("parquet", topk, "parquet"), ("int8", flat, "zarr")):
        sound_cache(folder / name, encoding, store)
    zarr, parquet, int8 = folder / "zarr", folder / "parquet", folder / "int8"
    manifests = [(place / "manifest.json").read_bytes() for place in (zarr, parquet, int8)]
    second = [_second_version(data) for data in manifests[:1]]
    unfinished(folder / "unfinished")
    (scratch,) = (place for place in (folder / "unfinished").iterdir() if place.is_dir())
    plans, journals = [(scratch / "plan.json").read_bytes()], [(scratch / "journal/part-00001.json").read_bytes()]
    described = [path.read_bytes() for place in (zarr, int8) for path in sorted(place.glob("labels.zarr/*/zarr.json"))]
    part_tables = [unchecked((place / parts.PATH).read_bytes()) for place in (zarr, parquet)]
    indices = [unchecked((zarr / index.path_of(n)).read_bytes()) for n in (0, 2)]
    columns = [unchecked((parquet / "labels/part-00000.parquet").read_bytes())]
    views = [unchecked((zarr / "views.parquet").read_bytes())]
    backend = ParquetBackend("labels", topk.specs(CLASSES))
    model = build_model("mlp-4", classes=3, input_shape=(1, 2, 2))
    checkpoint = io.BytesIO()
    torch.save(model.state_dict(), checkpoint)
    legacy = io.BytesIO()
    torch.save(model.state_dict(), legacy, _use_new_zipfile_serialization=False)
    tensors = safetensors.torch.save(
        model.state_dict(), {"softlabels": '{"metadata": {"a": [1]}, "aliases": {"b": "c"}}'}
    )
    header = int.from_bytes(tensors[:8], "little")
    first = records(parquet)[0]

    def plan(name: str) -> ShardPlan:
        return ShardPlan.parse((zarr / f"labels.zarr/{name}/zarr.json").read_bytes(), "z")

    def read_shard(name: str, files: Files, data: bytes) -> None:
        held = Shard(plan(name), files, "shard", len(data), 8)
        all_of(held.read, partial(held.read_rows, np.array([7, 0])), held.sealed)

    def local_shard(name: str, data: bytes) -> None:
        (folder / "shard").write_bytes(data)
        read_shard(name, LocalFiles(folder), data)

    def read_columns(data: bytes) -> None:
        path = "labels/part-00000.parquet"
        files = MemoryFiles({path: data})
        part = PartRecord(**{**vars(first), "files": {path: parts.FileRecord.of(data)}})
        all_of(lambda: backend.read(files, part), lambda: backend.read_rows(files, part, np.array([7, 0])))

    def read_index(data: bytes) -> None:
        acts = [(MemoryFiles({index.path_of(p.number): data}), p, len(data)) for p in (FEW.parts[0], FEW.parts[2])]
        any_of(*(partial(index.rows_of, *arguments) for arguments in acts))

    def read_views(data: bytes) -> None:
        contents = {path.relative_to(zarr).as_posix(): path.read_bytes() for path in zarr.rglob("*") if path.is_file()}
        body = json.loads(contents["manifest.json"])
        body.pop("digest")
        body["files"]["views.parquet"] = vars(parts.FileRecord.of(data))
        contents |= {"views.parquet": data, "manifest.json": json.dumps({**body, "digest": digest(body)}).encode()}
        from pipeline.sources.replay import recorded_views

        recorded_views(Cache(MemoryFiles(contents)))

    def whole(data: bytes) -> None:
        (folder / "zarr/manifest.json").write_bytes(data)
        try:
            all_of(*(step for _, step in receive(zarr)))
        finally:
            (folder / "zarr/manifest.json").write_bytes(manifests[0])

    def listed(data: bytes) -> None:
        (folder / "listed/cache").mkdir(parents=True, exist_ok=True)
        (folder / "listed/cache/manifest.json").write_bytes(data)
        rows = list(catalog(folder / "listed"))
        assert len("\n".join(table(rows)).encode()) > 0 and json.dumps([row.as_dict() for row in rows], allow_nan=False)
        bad = [row.problem for row in rows if not row.identity]
        if bad or not rows:
            raise CacheError(f"{bad}")

    read_plan, read_journal = plan_reader(folder), journal_reader(journals[0], FEW.parts[1])

    def read_weights(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        all_of(
            *[partial(load_weights, model, folder / name)], *[partial(read_metadata, folder / name)] * (name[-1] == "s")
        )

    def run(data: bytes) -> None:
        (folder / "run/seed-0").mkdir(parents=True, exist_ok=True)
        (folder / "run/seed-0/model.safetensors").touch()
        (folder / "run/run.json").write_bytes(data)
        found = read_run(folder / "run")
        all_of(*(partial(found.reference, name) for name in ("student", "data", "teacher", "transform")))

    def params(data: bytes) -> None:
        (folder / "params.yaml").write_bytes(data)
        all_of(*(partial(read_params, f"{folder / 'params.yaml'}{part}") for part in ("", ":train", ":methods.soft")))

    config = {"config": {"student": "cnn-8", "data": "digits", "transform": "flip+noise", "student_args": ["a=1"]}}
    described_encodings = [json.dumps(e.describe()).encode() for e in (topk, flat, Dense("float16"))]
    settings = {"train": {"student": "cnn-8", "epochs": 3, "lr": 1e-3}, "methods": {"soft": {"temperature": [1, 4]}}}
    shards = {name: (zarr / f"labels.zarr/{name}/c.0.0").read_bytes() for name in ("logits", "id_deltas")}
    return {
        "manifest": Target(manifests, lambda d: Manifest.from_json(d, "m"), json=True, reseal=resealed),
        "manifest, version 2": Target(second, lambda d: Manifest.from_json(d, "m"), json=True, reseal=resealed),
        "whole cache, version 2": Target(second, whole, json=True, reseal=resealed),
        "row of a catalogue": Target([*manifests, *second], listed, json=True, reseal=resealed),
        "plan.json": Target(plans, read_plan, json=True, reseal=resealed),
        "journal": Target(journals, read_journal, json=True, reseal=resealed),
        "whole cache": Target(manifests[:1], whole, json=True, reseal=resealed),
        "parts.parquet": Target(part_tables, lambda d: parts.decode(d, len(FEW.parts), "p")),
        "index": Target(indices, read_index),
        "views.parquet": Target(views, read_views),
        "label columns": Target(columns, read_columns),
        "zarr.json": Target(described, lambda d: ShardPlan.parse(d, "z"), json=True),
        "shard": Target([shards["logits"]], partial(local_shard, "logits"), reseal=sharded),
        "shard in zstd": Target([shards["id_deltas"]], partial(local_shard, "id_deltas"), reseal=sharded),
        "shard elsewhere": Target(
            [shards["logits"]], lambda d: read_shard("logits", MemoryFiles({"shard": d}), d), reseal=sharded
        ),
        "encoding": Target(described_encodings, _parse_encoding, json=True),
        "decoder": Target([bytes(range(256))], _decode),
        "safetensors": Target(
            [tensors[8 : 8 + header]],
            lambda d: read_weights("m.safetensors", len(d).to_bytes(8, "little") + d + tensors[8 + header :]),
            json=True,
        ),
        "safetensors, bytes": Target([tensors], partial(read_weights, "m.safetensors")),
        "checkpoint": Target([checkpoint.getvalue(), legacy.getvalue()], partial(read_weights, "m.pt")),
        "run.json": Target([json.dumps(config).encode()], run, json=True),
        "params.yaml": Target([yaml.safe_dump(settings).encode(), b"train: &a [*a]\nb: {<<: *a}\n", LAUGHS], params),
        "params in JSON's place": Target([json.dumps(settings).encode()], params, json=True),
    }


def plan_reader(folder: Path) -> Callable[[bytes], None]:
    """A dump that goes on by such a plan, under ``folder``."""

    def read(data: bytes) -> None:
        (folder / "plan").mkdir(exist_ok=True)
        (folder / "plan/plan.json").write_bytes(data)
        found = Plan.load(folder / "plan")
        found.writer(folder / "plan")
        Workspace(folder / "plan/out", found.digest)

    return read


def journal_reader(sound: bytes, part: Part) -> Callable[[bytes], None]:
    """A dump that finds such an entry in the place of the ``sound`` one of ``part``."""

    def read(data: bytes) -> None:
        found = parts.parse_journal(data, json.loads(sound)["identity"], part)
        if found is None:
            raise CacheError("no journal entry")
        parts.decode(parts.encode([found]), 1, "p")
        if possible(found.statistics, found.positions):
            json.dumps(summarise([(found.split, found.statistics)]), allow_nan=False)

    return read


def all_of(*acts: Callable[[], object]) -> None:
    """Do all of them, whichever is refused. Raises the last refusal."""
    refusal: SoftlabelsError | None = None
    for act in acts:
        try:
            act()
        except SoftlabelsError as error:
            refusal = error
    if refusal is not None:
        raise refusal


def any_of(*acts: Callable[[], object]) -> None:
    """Do all of them. Raises the last refusal when none was taken."""
    refusals: list[SoftlabelsError] = []
    for act in acts:
        try:
            act()
        except SoftlabelsError as error:
            refusals.append(error)
    if len(refusals) == len(acts):
        raise refusals[-1]


def _parse_encoding(data: bytes) -> None:
    try:
        description = json.loads(data)
    except (ValueError, RecursionError):
        return
    encodings.parse(description)


def unchecked(data: bytes) -> bytes:
    """The same table, in pages without checksums."""
    sink = io.BytesIO()
    table = pq.read_table(io.BytesIO(data))
    pq.write_table(table, sink, use_dictionary=False, compression="zstd", version="2.6")
    return sink.getvalue()


def resealed(data: bytes) -> bytes:
    """A manifest with a digest that fits, where it still is one."""
    try:
        body = json.loads(data)
        body.pop("digest", None)
        return json.dumps({**body, "digest": digest(body)}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return data


def _second_version(data: bytes) -> bytes:
    """A manifest of version 1 that says what only the second can."""
    body = json.loads(data)
    identity = body["identity"]
    body["format"], identity["teacher"]["state"], identity["preprocessing"] = 2, None, None
    identity["views"]["merged"] = [{"seed": 0, "count": 1}]
    source = {"identity": "a" * 64, "encoding": {"name": "dense"}, "bound": 0.0, "fidelity": {"kl": {}}}
    read = {"verb": "import", "files": {"number": 1, "bytes": 5, "sha256": "b" * 64}, "unknown": ["teacher"]}
    identity["lineage"] = [read, {"verb": "merge", "from": [source, source], "options": {"by": "views"}}]
    return resealed(json.dumps(body).encode())


def sharded(data: bytes) -> bytes:
    """The first chunk of a shard, whatever it has become, under good checksums."""
    return shard([data[:-24]])


def _decode(data: bytes) -> None:
    """Arrays of the right types out of any bytes, in every encoding."""
    rows = 4
    wanted: list[Encoding] = [TopK(k, d, (1.0, 4.0)) for k in (1, 3, 6) for d in TopK.choices]
    wanted += [Dense(d) for d in Dense.choices]
    for encoding in wanted:
        arrays = {}
        for name, spec in encoding.specs(CLASSES).items():
            count = rows * int(np.prod(spec.shape, dtype=int))
            raw = (data * (count * 8 // max(1, len(data)) + 1))[: count * np.dtype(spec.dtype).itemsize]
            held = np.frombuffer(raw, spec.dtype).reshape(-1, *spec.shape) if data else np.empty((0, *spec.shape))
            arrays[name] = held.astype(spec.dtype)
        encoding.decode(arrays, CLASSES)
