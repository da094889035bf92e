"""Everything that reads a stranger's bytes, given bytes that were changed: a result or a ``SoftlabelsError``, soon.

Structure is kept where it can be: JSON is changed field by field, digests and checksums are put right or left wrong,
and Parquet carries no page checksums, so that changes reach the decoders. With atheris installed (it is no dependency),
``python -m tests.faults.fuzz`` is guided by coverage; otherwise, and in the tests, changes follow from a seed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import safetensors.torch
import torch
import yaml

from pipeline import encodings
from pipeline.encodings import Dense, Encoding, TopK
from pipeline.errors import SoftlabelsError
from pipeline.identity import digest
from pipeline.models import build_model, load_weights, read_metadata
from pipeline.runs import read_run
from pipeline.store import Cache, Manifest, PartRecord, index, parts
from pipeline.store.files import Files, LocalFiles, MemoryFiles
from pipeline.store.parquet_backend import ParquetBackend
from pipeline.store.shard_reader import Shard
from pipeline.store.shards import ShardPlan
from stages.parameters import read_params
from tests.faults.counts import Counts
from tests.faults.forging import records, shard, sound_cache
from tests.faults.receiving import GROWTH, ROOM, receive
from tests.store.small import CLASSES, FEW

SECONDS, MOST_BYTES = 5, 20_000
LAUGHS = (
    b"a: &a [x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + n, 98 + n, b", ".join([b"*%c" % (97 + n)] * 8)) for n in range(12))
    + b"train: *m\n"
)
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 1.5, 2**31, 2**63, 10**15, 10**30, 10**400, float("nan"), float("inf"), "", "x", "../x",
    "a\0b", "\ud800", "é" * 300, "1", [], [[]], {}, {"a": 1}, [None], "pickle", "object", "float16",
)  # fmt: skip


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
    described = [path.read_bytes() for place in (zarr, int8) for path in sorted(place.glob("labels.zarr/*/zarr.json"))]
    part_tables = [_unchecked((place / parts.PATH).read_bytes()) for place in (zarr, parquet)]
    indices = [_unchecked((zarr / index.path_of(n)).read_bytes()) for n in (0, 2)]
    columns = [_unchecked((parquet / "labels/part-00000.parquet").read_bytes())]
    views = [_unchecked((zarr / "views.parquet").read_bytes())]
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
        _all(held.read, partial(held.read_rows, np.array([7, 0])), held.sealed)

    def local_shard(name: str, data: bytes) -> None:
        (folder / "shard").write_bytes(data)
        read_shard(name, LocalFiles(folder), data)

    def read_columns(data: bytes) -> None:
        path = "labels/part-00000.parquet"
        files = MemoryFiles({path: data})
        part = PartRecord(**{**vars(first), "files": {path: parts.FileRecord.of(data)}})
        _all(lambda: backend.read(files, part), lambda: backend.read_rows(files, part, np.array([7, 0])))

    def read_index(data: bytes) -> None:
        acts = [(MemoryFiles({index.path_of(p.number): data}), p, len(data)) for p in (FEW.parts[0], FEW.parts[2])]
        _any(*(partial(index.rows_of, *arguments) for arguments in acts))

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
            _all(*(step for _, step in receive(zarr)))
        finally:
            (folder / "zarr/manifest.json").write_bytes(manifests[0])

    def read_weights(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        _all(
            *[partial(load_weights, model, folder / name)], *[partial(read_metadata, folder / name)] * (name[-1] == "s")
        )

    def run(data: bytes) -> None:
        (folder / "run/seed-0").mkdir(parents=True, exist_ok=True)
        (folder / "run/seed-0/model.safetensors").touch()
        (folder / "run/run.json").write_bytes(data)
        found = read_run(folder / "run")
        _all(*(partial(found.reference, name) for name in ("student", "data", "teacher", "transform")))

    def params(data: bytes) -> None:
        (folder / "params.yaml").write_bytes(data)
        _all(*(partial(read_params, f"{folder / 'params.yaml'}{part}") for part in ("", ":train", ":methods.soft")))

    config = {"config": {"student": "cnn-8", "data": "digits", "transform": "flip+noise", "student_args": ["a=1"]}}
    described_encodings = [json.dumps(e.describe()).encode() for e in (topk, flat, Dense("float16"))]
    settings = {"train": {"student": "cnn-8", "epochs": 3, "lr": 1e-3}, "methods": {"soft": {"temperature": [1, 4]}}}
    shards = {name: (zarr / f"labels.zarr/{name}/c.0.0").read_bytes() for name in ("logits", "id_deltas")}
    return {
        "manifest": Target(manifests, lambda d: Manifest.from_json(d, "m"), json=True, reseal=_resealed),
        "whole cache": Target(manifests[:1], whole, json=True, reseal=_resealed),
        "parts.parquet": Target(part_tables, lambda d: parts.decode(d, len(FEW.parts), "p")),
        "index": Target(indices, read_index),
        "views.parquet": Target(views, read_views),
        "label columns": Target(columns, read_columns),
        "zarr.json": Target(described, lambda d: ShardPlan.parse(d, "z"), json=True),
        "shard": Target([shards["logits"]], partial(local_shard, "logits"), reseal=_sharded),
        "shard in zstd": Target([shards["id_deltas"]], partial(local_shard, "id_deltas"), reseal=_sharded),
        "shard elsewhere": Target(
            [shards["logits"]], lambda d: read_shard("logits", MemoryFiles({"shard": d}), d), reseal=_sharded
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


def _all(*acts: Callable[[], object]) -> None:
    """Do all of them, whichever is refused. Raises the last refusal."""
    refusal: SoftlabelsError | None = None
    for act in acts:
        try:
            act()
        except SoftlabelsError as error:
            refusal = error
    if refusal is not None:
        raise refusal


def _any(*acts: Callable[[], object]) -> None:
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


def _unchecked(data: bytes) -> bytes:
    """The same table, in pages without checksums."""
    sink = io.BytesIO()
    table = pq.read_table(io.BytesIO(data))
    pq.write_table(table, sink, use_dictionary=False, compression="zstd", version="2.6")
    return sink.getvalue()


def _resealed(data: bytes) -> bytes:
    """A manifest with a digest that fits, where it still is one."""
    try:
        body = json.loads(data)
        body.pop("digest", None)
        return json.dumps({**body, "digest": digest(body)}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return data


def _sharded(data: bytes) -> bytes:
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


def mutated(target: Target, data: bytes, rng: random.Random) -> bytes:
    """``data`` changed in one to three places, and sealed again in half of the cases."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        changed = _fields(data, rng) if target.json and rng.random() < 0.8 else _bytes(data, rng)
        data = changed if len(changed) < MOST_BYTES else data
    return target.reseal(data) if target.reseal and rng.random() < 0.7 else data


def _bytes(data: bytes, rng: random.Random) -> bytes:
    at, other = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    low, high = min(at, other), max(at, other)
    kind = rng.randrange(8)
    if kind <= 1:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind == 2 and data:
        place = min(at, len(data) - 1)
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if kind == 3:
        return data[:low] + data[min(high, low + 64) :]
    if kind == 4:
        return data[:at] + data[low : min(high, low + 64)] + data[at:]
    if kind == 5:
        width = rng.choice((1, 2, 4, 8))
        value = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1, 255))
        return data[:at] + value.to_bytes(8, "little")[:width] + data[at + width :]
    if kind == 6:
        return data[:at] + rng.choice((b"[" * 1200, b"\xff" * 9, b"\0" * 40, b"- &x *x\n", b'{"a":' * 1200)) + data[at:]
    return data[:at]


def _fields(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON text, changed."""
    try:
        body = json.loads(data)
        places: list[tuple[Any, Any]] = []
        todo = [body]
        while todo:
            held = todo.pop()
            pairs = list(held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list) else ())
            places += [(held, key) for key, _ in pairs]
            todo += [value for _, value in pairs if isinstance(value, (dict, list))]
        if not places:
            return json.dumps(rng.choice(ODD)).encode()
        held, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del held[key]
        elif kind == 1 and isinstance(held, dict):
            held[str(rng.choice(ODD))] = held.pop(key)
        elif kind == 2:
            held[key] = [held[key]] * rng.choice((1, 2, 1000))
        elif kind == 3 and type(held[key]) in (int, float):
            held[key] = rng.choice((held[key] + 1, -held[key], held[key] * 10**9, float(held[key])))
        elif kind == 4:
            other, name = rng.choice(places)
            held[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else None
        else:
            held[key] = rng.choice(ODD)
        return json.dumps(body).encode()
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return _bytes(data, rng)


class Hang(BaseException):
    """Too long."""


def checked(name: str, target: Target, data: bytes, counts: Counts, note: str) -> None:
    """Read ``data``. AssertionError when it ends in anything but a result or a ``SoftlabelsError``, late, or large."""

    def hang(*_: Any) -> None:
        raise Hang

    before = _memory("VmRSS")
    signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, about numbers that overflow
            target.read(data)
        counts[f"{name}: read"] += 1
    except SoftlabelsError as error:
        str(error).encode(errors="backslashreplace")  # as standard error writes it
        counts[f"{name}: refused"] += 1
    except BaseException as error:
        where = Path(tempfile.gettempdir()) / "softlabels-fuzz-found"
        where.write_bytes(data)
        raise AssertionError(
            f"{name}, {note}: {type(error).__name__} escaped: {error!s:.500}; input in {where}"
        ) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = _memory("VmHWM") - before
    assert grown <= ROOM + GROWTH * len(data), f"{name}, {note}: {grown:,} bytes of memory for {len(data):,}"


def _memory(name: str) -> int:
    if name == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def campaign(folder: Path, times: int, seed: int) -> Counts:
    """``times`` changed inputs, shared out over all readers. A change that was read is changed further."""
    counts, rng = Counts(), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    all_targets = targets(folder)
    pools = {name: list(target.seeds) for name, target in all_targets.items()}
    for name, target in all_targets.items():
        for number, data in enumerate(target.seeds):
            checked(name, target, data, Counts(), f"seed input {number}")
    for turn in range(times):
        name = list(all_targets)[turn % len(all_targets)]
        data = mutated(all_targets[name], rng.choice(pools[name]), rng)
        (folder / "current").write_bytes(data)  # what a crash leaves behind
        read = counts[f"{name}: read"]
        checked(name, all_targets[name], data, counts, f"turn {turn} of seed {seed}")
        if counts[f"{name}: read"] > read and len(pools[name]) < 200:
            pools[name].append(data)
    counts["mutations"] = times
    return counts


def guided(folder: Path, times: int, seed: int) -> None:
    """The same readers under atheris, which keeps what reaches new code. Ends the process."""
    import atheris

    all_targets = targets(folder)
    names, counts, turns = list(all_targets), Counts(), 0
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, target in enumerate(all_targets.values()):
        for place, data in enumerate(target.seeds):
            (corpus / f"{number}-{place}").write_bytes(bytes([number]) + data)
    for module in [m for name, m in sys.modules.items() if name.startswith("pipeline") or name == "stages.parameters"]:
        owners = [
            module,
            *(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__),
        ]
        for function in [v for owner in owners for v in vars(owner).values() if isinstance(v, types.FunctionType)]:
            if function.__module__ == module.__name__:
                atheris.instrument_func(function)

    def one(data: bytes) -> None:
        nonlocal turns
        if not data:
            return
        name = names[data[0] % len(names)]
        checked(name, all_targets[name], data[1:], counts, f"atheris, seed {seed}")
        turns += 1
        if turns >= times:
            report(counts, f"{turns:,} inputs, guided by atheris")
            sys.stdout.flush()
            os._exit(0)

    def change(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        name = data[0] % len(names) if data else 0
        if data and rng.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        return (bytes([name]) + mutated(all_targets[names[name]], data[1:] or all_targets[names[name]].seeds[0], rng))[
            :most
        ]

    arguments = [
        sys.argv[0],
        f"-seed={seed + 1}",
        "-max_len=40000",
        "-rss_limit_mb=4096",
        "-timeout=20",
        "-verbosity=0",
        f"-artifact_prefix={tempfile.gettempdir()}/softlabels-",
    ]
    atheris.Setup([*arguments, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


def report(counts: Counts, title: str) -> None:
    """The counts, for people."""
    from tests.faults.counts import table

    print(table(f"Changed inputs: {title}", dict(sorted(counts.items()))))


def main() -> None:
    """``python -m tests.faults.fuzz``."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--times", type=int, default=20_000)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        try:
            import atheris  # noqa: F401
        except ImportError:
            print("atheris is not installed: changes follow from the seed")
            counts = campaign(Path(folder), given.times, given.seed)
            report(counts, f"{given.times:,} in {time.monotonic() - began:.0f} s")
        else:
            print("guided by atheris")
            guided(Path(folder), given.times, given.seed)


if __name__ == "__main__":
    main()
