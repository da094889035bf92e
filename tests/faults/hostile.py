"""A catalogue of caches and weights made to harm whoever receives them: each is refused by name, and does nothing.

Every digest is put right again, as an attacker would. A watched child process receives them one by one: no file
written, nothing imported or executed, memory bounded by the bytes on disk, seconds at most, always a
``SoftlabelsError``.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch

from pipeline.encodings import Dense, TopK
from pipeline.models import build_model
from pipeline.store import index, parts
from tests.faults.counts import Counts
from tests.faults.forging import (
    GROWTH,
    ROOM,
    VIEWS,
    VIEWS_SCHEMA,
    Outcome,
    Receiver,
    manifest,
    put,
    records,
    shard,
    sound_cache,
    with_parts,
)

TOPK = TopK(3, "float16", (1.0, 4.0))
BASES = {
    "zarr": (TOPK, "zarr"),
    "parquet": (TOPK, "parquet"),
    "int8": (Dense("int8"), "zarr"),
    "dense": (Dense("float32"), "zarr"),
}
Forge = Callable[[Path], Any]
HUGE = 10**15


@dataclass(frozen=True)
class Forgery:
    """One entry of the catalogue. ``sound``: odd but legitimate, and to be read."""

    name: str
    forge: Forge
    base: str = "zarr"
    sound: bool = False


def set_to(*keys: str, value: Any) -> Forge:
    """The manifest with one value changed."""

    def change(body: dict[str, Any]) -> None:
        place = body
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return lambda folder: manifest(folder, change)


def counted(**values: Any) -> Forge:
    """A manifest whose counts agree with each other, and with nothing on disk."""

    def change(body: dict[str, Any]) -> None:
        examples, views, size = values.get("examples", 11), values.get("views", 2), values.get("part_size", 8)
        length = values.get("length", 1)
        body["identity"]["part_size"] = size
        body["counts"] = {
            "entries": examples * views,
            "positions": examples * views * length,
            "parts": -(-examples // size) * views,
            "splits": {values.get("split", "train"): {"examples": examples, "views": views}},
        }
        body.update(values.get("more", {}))

    return lambda folder: manifest(folder, change)


def text(change: Callable[[str], str]) -> Forge:
    """The manifest as text, its digest left as it is."""

    def forge(folder: Path) -> None:
        place = folder / "manifest.json"
        place.write_text(change(place.read_text()))

    return forge


def manifests() -> Iterator[Forgery]:
    """What a manifest can claim."""
    for number, value in enumerate(["1", 1.0, True, None, 10**30, [], 2, -1, "x" * 10**6]):
        yield Forgery(f"format version {number}", set_to("format", value=value))
    for path in ("../x", "/etc/passwd", "C:\\x", "a\0b", "a\nb", "a//b", ".", "~", "a/../b", "x" * 5000, "CON.", "é"):
        record = {"sha256": "0" * 64, "size": 1}
        yield Forgery(
            f"a file {path[:12]!r}", lambda f, p=path, r=record: manifest(f, lambda b: b["files"].update({p: r}))
        )
        yield Forgery(f"a replay {path[:12]!r}", set_to("replay", value=path))
        feature = {path: {"shape": [2, 3], "dtype": "float16"}}
        yield Forgery(f"a feature {path[:12]!r}", set_to("features", value=feature))
    for name, value in (("nan", float("nan")), ("minus", -1), ("huge", 10**400), ("text", "0"), ("true", True)):
        yield Forgery(f"bound {name}", lambda f, v=value: _unchecked(f, {"bound": v}))
    for name, claims in {
        "examples": {"examples": HUGE, "part_size": HUGE},
        "views": {"views": HUGE},
        "10M parts": {"examples": 10_000_000, "views": 1, "part_size": 1},
        "10M views": {"examples": 1, "views": 10_000_000, "part_size": 1},
        "positions": {"length": HUGE},
        "a long position": {"length": 2**40, "part_size": 8},
        "part size": {"part_size": 2**48},
        "an empty split": {"examples": 0},
        "another split": {"split": "test"},
        "no such split": {"split": "../train"},
        "fewer": {"examples": 10},
    }.items():
        yield Forgery(f"counts: {name}", counted(**claims))
    yield Forgery("10M parts and a claim of room", _room_for_parts)
    yield Forgery("10M parts and no parts.parquet", lambda f: (_room_for_parts(f), (f / parts.PATH).unlink()))
    for classes in (0, -1, 2**24, 2**31 - 1, 10**15, 10**30, 6.0, True):
        for base in ("zarr", "int8", "parquet", "dense"):
            change = {"classes": classes, "class_names": []}
            yield Forgery(f"{classes} classes in {base}", lambda f, c=change: manifest(f, lambda b: b.update(c)), base)
    for name, shape in (("huge", [2**31 - 1] * 16), ("wraps", [2**16] * 4), ("zero", [0]), ("long", [1] * 100)):
        yield Forgery(f"a feature's shape, {name}", set_to("features", "block.1", "shape", value=shape))
    for name, encoding in {
        "unknown": {"name": "pickle"},
        "a module": {"name": "hostile_module:Encoding"},
        "k": {"name": "topk", "k": HUGE, "dtype": "float16", "temperatures": [1.0, 4.0]},
        "dtype": {"name": "topk", "k": 3, "dtype": "object", "temperatures": [1.0, 4.0]},
        "hot": {"name": "topk", "k": 3, "dtype": "float16", "temperatures": [10**400]},
        "many": {"name": "topk", "k": 3, "dtype": "float16", "temperatures": list(range(1, 100_000))},
        "extra": {"name": "dense", "dtype": "float32", "class": "os.system"},
    }.items():
        yield Forgery(f"encoding: {name}", lambda f, e=encoding: _encoded(f, e))
    deep: Any = 0
    for _ in range(900):
        deep = [deep]
    yield Forgery("900 levels, resealed", set_to("fidelity", value={"a": deep}))
    yield Forgery("100,000 levels", text(lambda t: t.replace('"fidelity": {', '"fidelity": {"a": ' + "[" * 100_000)))
    yield Forgery("only brackets", lambda f: (f / "manifest.json").write_text('{"a":' * 200_000))
    yield Forgery("a number of a megabyte", text(lambda t: t.replace('"bound": ', '"bound": ' + "9" * 10**6)))
    yield Forgery("a key twice", text(lambda t: '{"format": 1, ' + t[1:]))
    yield Forgery("NaN", text(lambda t: t.replace('"agreement": 1.0', '"agreement": NaN')))
    yield Forgery("a text of 8 MB", set_to("identity", "preprocessing", value="x" * (8 << 20)))
    yield Forgery("half of a character", lambda f: _unchecked(f, {"class_names": ["\ud800"] * 6}))
    yield Forgery("not UTF-8", lambda f: (f / "manifest.json").write_bytes(b'{"format": 1, "a": "\xff\xfe"}'))
    yield Forgery("a manifest of 300 MB", lambda f: os.truncate(f / "manifest.json", 300 << 20))
    yield Forgery("a list", lambda f: (f / "manifest.json").write_text("[1]"))
    yield Forgery("nothing", lambda f: (f / "manifest.json").write_text(""))
    for name, value in {"kl": {"kl": [1]}, "kl text": {"kl": "x"}}.items():
        yield Forgery(f"fidelity: {name}", set_to("fidelity", value=value))
    for keys, value in {
        ("identity", "teacher", "args"): [1],
        ("identity", "features"): ["block.1"],
        ("identity", "features", "block.1"): None,
        ("identity", "views", "seed"): 1.5,
        ("identity", "views", "count"): 0,
        ("identity", "store"): "hostile_store",
        ("identity", "digest"): "x",
    }.items():
        sound = keys[-1] == "block.1"
        yield Forgery(f"{'.'.join(keys)} {value!r}", set_to(*keys, value=value), sound=sound)
    for name, transform in {
        "a module": "hostile_transform:make",
        "this": "antigravity:geohash",
        "after a built-in": "flip+os:system:command=true",
        "a huge number": "affine:degrees=1e400",
        "a huge whole number": "affine:degrees=1" + "0" * 400,
        "a parameter": "flip:q=1",
        "many": "+".join(["flip"] * 5_000),
    }.items():
        yield Forgery(f"transform: {name}", set_to("identity", "views", "transform", value=transform))


def _unchecked(folder: Path, values: dict[str, Any]) -> None:
    """Values that canonical JSON refuses, under a digest made in the same way."""
    import hashlib

    body = json.loads((folder / "manifest.json").read_bytes())
    body.pop("digest")
    plain = json.dumps({**body, **values}, sort_keys=True, separators=(",", ":"))
    body = {**body, **values, "digest": hashlib.sha256(plain.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(body))


def _encoded(folder: Path, encoding: dict[str, Any]) -> None:
    def change(body: dict[str, Any]) -> None:
        body["encoding"] = body["identity"]["encoding"] = encoding
        body["temperatures"] = encoding.get("temperatures", [])

    manifest(folder, change)


def _room_for_parts(folder: Path) -> None:
    counted(examples=1, views=10_000_000, part_size=1)(folder)
    set_to("files", parts.PATH, "size", value=2**47)(folder)


def links() -> Iterator[Forgery]:
    """Files that are something else."""

    def replaced(path: str, make: Callable[[Path], Any]) -> Forge:
        def forge(folder: Path) -> None:
            place = folder / path
            (folder.parent / f"{folder.name}-elsewhere").write_bytes(place.read_bytes())
            place.unlink()
            make(place)

        return forge

    shards = "labels.zarr/logits/c.0.0"
    for path in (
        "manifest.json",
        parts.PATH,
        index.path_of(0),
        shards,
        "views.parquet",
        "labels.zarr/logits/zarr.json",
    ):
        kinds: dict[str, Callable[[Path], Any]] = {
            "/dev/zero": lambda p: p.symlink_to("/dev/zero"),
            "a device without end": lambda p: p.symlink_to("/dev/urandom"),
            "itself": lambda p: p.symlink_to(p),
            "a folder": lambda p: p.symlink_to("/etc"),
            "a pipe": os.mkfifo,
            "another file": lambda p: p.symlink_to(
                "/etc/hostname" if Path("/etc/hostname").exists() else "/etc/passwd"
            ),
            "nothing": lambda p: p.symlink_to("/nowhere/at/all"),
        }
        for name, make in kinds.items():
            yield Forgery(f"{path} leads to {name}", replaced(path, make))

        def store(folder: Path, path: str = path) -> None:
            kept = folder.parent / f"{folder.name}-kept"
            shutil.move(folder / path, kept)
            (folder / path).symlink_to(kept)

        yield Forgery(f"{path} in DVC's store", store, sound=True)
    yield Forgery("a stranger among the shards", lambda f: (f / "labels.zarr/logits/c.9.0").symlink_to("/dev/zero"))
    yield Forgery("a name that is no UTF-8", lambda f: Path(os.fsdecode(bytes(f) + b"/index/\xff")).write_text(""))


def rows_of(folder: Path, number: int = 0) -> list[dict[str, Any]]:
    """The index of a part as it was."""
    found: list[dict[str, Any]] = pq.read_table(folder / index.path_of(number)).to_pylist()
    return found


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    """A table written in any way that pyarrow can."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **({"compression": "none", "use_dictionary": False} | options))
    return sink.getvalue()


def indexed(change: Callable[[list[dict[str, Any]]], Any], schema: pa.Schema = index.SCHEMA, **options: Any) -> Forge:
    """Other rows in the first index file, which is written as ``options`` say."""

    def forge(folder: Path) -> None:
        rows = rows_of(folder)
        changed = change(rows)
        table = pa.Table.from_pylist(rows if changed is None else changed, schema)
        put(folder, index.path_of(0), parquet_bytes(table, **options))

    return forge


def every(name: str, values: Callable[[int], Any]) -> Callable[[list[dict[str, Any]]], None]:
    """One column of the rows, made anew."""

    def change(rows: list[dict[str, Any]]) -> None:
        for number, row in enumerate(rows):
            row[name] = values(number)

    return change


def indices() -> Iterator[Forgery]:
    """What an index can claim."""
    for name, column, values in (
        ("out of range", "start", lambda n: n + 10**6),
        ("negative", "start", lambda n: n - 5),
        ("overlapping", "start", lambda n: 0),
        ("with gaps", "start", lambda n: 2 * n),
        ("at the end of int64", "start", lambda n: 2**63 - 1),
        ("of 2**31", "length", lambda n: 2**31 - 1),
        ("of nothing and of two", "length", lambda n: 2 * (n % 2)),
        ("negative", "length", lambda n: -1),
        ("of another split", "split", lambda n: "test"),
        ("of no split", "split", lambda n: "../../x"),
        ("of another view", "view", lambda n: 1),
        ("of view -1", "view", lambda n: -1),
        ("twice", "example_id", lambda n: "train/0"),
        ("strange", "example_id", lambda n: f"../{n}\0\n"),
        ("without digests", "input_digest", lambda n: None),
        ("with some digests", "input_digest", lambda n: None if n else bytes(32)),
    ):
        yield Forgery(f"index: {column} {name}", indexed(every(column, values)))
    loose = pa.schema([field.with_nullable(True) for field in index.SCHEMA])
    for column in index.SCHEMA.names:
        yield Forgery(f"index: null {column}", indexed(every(column, lambda n: None), loose))
        fewer = pa.schema([field for field in index.SCHEMA if field.name != column])
        yield Forgery(f"index: no {column}", indexed(lambda rows: None, fewer))
    yield Forgery("index: a column more", indexed(lambda rows: None, index.SCHEMA.append(pa.field("x", pa.int8()))))
    yield Forgery("index: fewer rows", indexed(lambda rows: rows[:-1]))
    yield Forgery("index: more rows", indexed(lambda rows: rows * 2))
    yield Forgery("index: no UTF-8", _raw_ids(b"train/\xff\xfe"))
    long = "x" * (4 << 20)
    yield Forgery("index: a bomb of texts", indexed(every("example_id", lambda n: long), compression="zstd"))
    yield Forgery(
        "index: a dictionary", indexed(every("example_id", lambda n: long), use_dictionary=True, compression="zstd")
    )
    yield Forgery("index: shared beginnings", indexed(every("example_id", lambda n: long), column_encoding={"example_id": "DELTA_BYTE_ARRAY"}, compression="zstd"))  # fmt: skip # noqa: E501
    for codec in ("snappy", "gzip", "brotli", "lz4"):
        yield Forgery(f"index: {codec}", indexed(lambda rows: None, compression=codec))
    yield Forgery("index: pages of version 2", indexed(lambda rows: None, data_page_version="2.0"))
    yield Forgery("index: a footer of 2 GB", lambda f: put(f, index.path_of(0), _footer(f, 2**31 - 1)))
    yield Forgery("index: no footer", lambda f: put(f, index.path_of(0), _footer(f, 0)))
    yield Forgery("index: a nested footer", lambda f: put(f, index.path_of(0), _nested()))
    yield Forgery("index: a million rows", lambda f: (_many_rows(f), None))


def _raw_ids(value: bytes) -> Forge:
    def forge(folder: Path) -> None:
        table = pa.Table.from_pylist(rows_of(folder), index.SCHEMA)
        ids = pa.array([value + bytes([48 + n]) for n in range(len(table))], pa.binary()).view(pa.string())
        put(folder, index.path_of(0), parquet_bytes(table.set_column(0, index.SCHEMA.field(0), ids)))

    return forge


def _footer(folder: Path, length: int) -> bytes:
    return (folder / index.path_of(0)).read_bytes()[:-8] + length.to_bytes(4, "little") + b"PAR1"


def _nested() -> bytes:
    footer = b"\x15\x02\x19" + b"\x1c" * 500_000
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _many_rows(folder: Path) -> None:
    """An index of a million rows in a few kilobytes, and a manifest that agrees."""
    count = 1_000_000
    zeros = pa.array(np.zeros(count, np.int64))
    table = pa.table(
        {
            "example_id": pa.array([""], pa.string()).take(zeros),
            "split": pa.array(["train"], pa.string()).take(zeros),
            "view": pa.array(np.zeros(count, np.int32)),
            "seed": zeros,
            "start": pa.array(np.arange(count)),
            "length": pa.array(np.ones(count, np.int32)),
            "label": zeros,
            "input_digest": pa.array([bytes(32)], pa.binary(32)).take(zeros),
        }
    ).cast(index.SCHEMA)
    delta = dict.fromkeys(("view", "seed", "start", "length", "label"), "DELTA_BINARY_PACKED")
    data = parquet_bytes(table, compression="zstd", column_encoding=delta, row_group_size=count)
    put(folder, index.path_of(0), data)
    first = records(folder)[0]
    with_parts(folder, [type(first)(**{**vars(first), "entries": count, "positions": count})])
    counted(examples=count, views=1, part_size=count)(folder)


def tables() -> Iterator[Forgery]:
    """What parts.parquet, the label columns and the replay table can hold."""

    def parts_as(change: Callable[[list[dict[str, Any]]], Any], schema: pa.Schema = parts.SCHEMA, **how: Any) -> Forge:
        def forge(folder: Path) -> None:
            rows = pq.read_table(folder / parts.PATH).to_pylist()
            changed = change(rows)
            table = pa.Table.from_pylist(rows if changed is None else changed, schema)
            put(folder, parts.PATH, parquet_bytes(table, **how))

        return forge

    def of_file(name: str, value: Any) -> Forge:
        return parts_as(lambda rows: rows[0]["files"][0].update({name: value}))

    for name, value in (("path", None), ("path", "../x"), ("path", "/etc/passwd"), ("path", "a\0"), ("sha256", None),
                        ("sha256", "Z" * 64), ("size", None), ("size", -1), ("size", 2**62), ("size", 2**40),
                        ("seal", -1), ("seal", 2**40), ("seal", 7)):  # fmt: skip
        yield Forgery(f"parts: {name} {value!r}", of_file(name, value))
    for column in parts.SCHEMA.names:
        yield Forgery(f"parts: null {column}", parts_as(every(column, lambda n: None)))
    for column, value in (
        ("number", 7),
        ("start", -8),
        ("positions", HUGE),
        ("entries", 2**62),
        ("split", "x" * 10**6),
    ):
        yield Forgery(f"parts: {column}", parts_as(every(column, lambda n, v=value: v)))
    yield Forgery("parts: a null file", parts_as(every("files", lambda n: [None])))
    yield Forgery("parts: 400,000 nulls", parts_as(every("files", lambda n: [None] * 10**5), compression="zstd"))
    yield Forgery("parts: a null statistic", parts_as(every("statistics", lambda n: [{"name": None, "value": None}])))
    bomb = [{"name": "x" * (8 << 20), "value": 0.0}]
    yield Forgery("parts: a bomb", parts_as(every("statistics", lambda n: bomb), compression="zstd"))
    yield Forgery("parts: a dictionary", parts_as(every("statistics", lambda n: bomb * 8), use_dictionary=True, compression="zstd"))  # fmt: skip # noqa: E501
    yield Forgery("parts: fewer", parts_as(lambda rows: rows[:-1]))
    yield Forgery("parts: not Parquet", lambda f: put(f, parts.PATH, b"PAR1" * 100))
    yield Forgery("parts: empty", lambda f: put(f, parts.PATH, b""))

    def views_as(table: pa.Table, **how: Any) -> Forge:
        return lambda folder: put(folder, "views.parquet", parquet_bytes(table, **how))

    def viewed(**values: Any) -> pa.Table:
        return pa.Table.from_pylist([{**VIEWS[0], **values}], VIEWS_SCHEMA)

    yield Forgery("views: another shape", views_as(viewed(shape=[2**31 - 1, 2**31 - 1])))
    yield Forgery("views: a negative shape", views_as(viewed(shape=[-1, -1])))
    yield Forgery("views: nulls", views_as(viewed(pixels=None)))
    yield Forgery("views: a bomb", views_as(viewed(pixels=np.zeros(8 << 20, np.float32)), compression="zstd"))
    yield Forgery("views: texts for pixels", views_as(pa.table({"example_id": ["a"], "view": [1], "seed": [1], "shape": [[1]], "pixels": [["x"]]})))  # fmt: skip # noqa: E501
    yield Forgery("views: no columns", views_as(pa.table({"a": [1]})))
    yield Forgery("views: no Parquet", lambda f: put(f, "views.parquet", b"\x80\x04cos\nsystem\n(S'true'\ntR."))

    def columns_as(change: Callable[[pa.Table], pa.Table], **how: Any) -> Forge:
        def forge(folder: Path) -> None:
            path = "labels/part-00000.parquet"
            put(folder, path, parquet_bytes(change(pq.read_table(folder / path)), **how))

        return forge

    def other(name: str, array: Any) -> Callable[[pa.Table], pa.Table]:
        def change(table: pa.Table) -> pa.Table:
            at = table.schema.get_field_index(name)
            kind = table.schema.field(at)
            return table.set_column(at, kind, pa.array(array(len(table)), kind.type))

        return change

    for name, column, values in (
        ("NaN logits", "logits", lambda n: [[np.float16("nan")] * 3] * n),
        ("infinite normalisers", "log_normaliser", lambda n: [[float("inf")] * 2] * n),
        ("ids that leave the classes", "id_deltas", lambda n: [[255, 255, 255]] * n),
        ("ids that repeat", "id_deltas", lambda n: [[1, 0, 0]] * n),
        ("other positions", "position", lambda n: list(range(1, n + 1))),
        ("huge positions", "position", lambda n: [2**62] * n),
    ):
        yield Forgery(f"labels: {name}", columns_as(other(column, values)), "parquet")
    yield Forgery("labels: fewer rows", columns_as(lambda t: t.slice(1)), "parquet")
    yield Forgery("labels: a column less", columns_as(lambda t: t.drop_columns(["logits"])), "parquet")
    yield Forgery("labels: floats for ids", columns_as(lambda t: t.set_column(1, "id_deltas", t["logits"])), "parquet")
    yield Forgery("labels: gzip", columns_as(lambda t: t, compression="gzip"), "parquet")
    yield Forgery("labels: a dictionary", columns_as(lambda t: t, use_dictionary=True), "parquet")


def shards() -> Iterator[Forgery]:
    """What zarr metadata and shards can hold."""

    def described(change: Callable[[dict[str, Any]], Any], name: str = "logits") -> Forge:
        def forge(folder: Path) -> None:
            path = f"labels.zarr/{name}/zarr.json"
            body = json.loads((folder / path).read_bytes())
            change(body)
            put(folder, path, json.dumps(body).encode())

        return forge

    for value in (None, [], {}, "O", "object", "f4,f4", "(1000000,1000000)f4", "<f2", "S10", "float16" * 10**5, 3):
        yield Forgery(f"zarr: dtype {str(value)[:20]}", described(lambda b, v=value: b.update(data_type=v)))
    for value in ([HUGE, 3], [-1, 3], [32.0, 3], ["32", 3], [], None, [32, 3, 3], [10**4000, 3]):
        yield Forgery(f"zarr: shape {str(value)[:20]}", described(lambda b, v=value: b.update(shape=v)))
    for name in ("pickle", "blosc", "hostile_codec", "gzip", "numcodecs.pickle", "vlen-utf8"):
        inner = [{"name": "bytes"}, {"name": name}, {"name": "crc32c"}]
        change: Callable[..., Any] = lambda b, i=inner: b["codecs"][0]["configuration"].update(codecs=i)  # noqa: E731
        yield Forgery(f"zarr: codec {name}", described(change))
    yield Forgery("zarr: no codec", described(lambda b: b.update(codecs=[])))
    yield Forgery("zarr: big-endian", described(lambda b: b["codecs"][0]["configuration"]["codecs"][0].update(configuration={"endian": "big"})))  # fmt: skip # noqa: E501
    yield Forgery("zarr: a transformer", described(lambda b: b.update(node_type="group")))
    yield Forgery(
        "zarr: chunks of nothing", described(lambda b: b["codecs"][0]["configuration"].update(chunk_shape=[0, 3]))
    )
    yield Forgery(
        "zarr: chunks of one", described(lambda b: b["codecs"][0]["configuration"].update(chunk_shape=[1, 3]))
    )
    path = "labels.zarr/logits/zarr.json"
    yield Forgery("zarr: 100,000 levels", lambda f: put(f, path, b'{"shape":' + b"[" * 100_000))
    yield Forgery("zarr: not JSON", lambda f: put(f, path, b"\x80\x04cos\nsystem\n"))
    yield Forgery("zarr: a number of a megabyte", lambda f: put(f, path, b'{"shape": [' + b"9" * 10**6 + b"]}"))

    def chunked(name: str, *bodies: bytes) -> Forge:
        return lambda folder: put(
            folder, f"labels.zarr/{name}/c.0{'' if name == 'scale' else '.0'}", shard(list(bodies))
        )

    plain = np.full((8, 3), 0.5, np.float16).tobytes()
    yield Forgery("shard: a bomb", chunked("id_deltas", zstd(bytes(256 << 20))))
    yield Forgery("shard: a frame without a size", chunked("id_deltas", _streamed(64 << 20)))
    yield Forgery("shard: a frame of 2**60 bytes", chunked("id_deltas", b"\x28\xb5\x2f\xfd\xe0" + b"\0" * 7 + b"\x10"))
    yield Forgery("shard: two frames", chunked("id_deltas", zstd(bytes(24)) * 2))
    yield Forgery("shard: no frame", chunked("id_deltas", b"garbage"))
    yield Forgery("shard: an empty chunk", chunked("id_deltas", b""))
    yield Forgery("shard: ids that leave the classes", chunked("id_deltas", zstd(b"\xff" * 24)))
    yield Forgery("shard: ids that repeat", chunked("id_deltas", zstd(b"\0" * 24)))
    yield Forgery("shard: NaN", chunked("logits", np.full((8, 3), np.nan, np.float16).tobytes()))
    yield Forgery("shard: infinities", chunked("logits", np.full((8, 3), -np.inf, np.float16).tobytes()))
    yield Forgery("shard: too long", chunked("logits", plain * 2))
    yield Forgery("shard: too short", chunked("logits", plain[:-2]))
    yield Forgery("shard: more chunks", chunked("logits", plain, plain))
    yield Forgery("shard: no chunk", lambda f: put(f, "labels.zarr/logits/c.0.0", shard([], 1)))
    yield Forgery("shard: beyond the file", lambda f: put(f, "labels.zarr/logits/c.0.0", _pointing(f, 2**40, 52)))
    yield Forgery("shard: wrapping around", lambda f: put(f, "labels.zarr/logits/c.0.0", _pointing(f, 2**64 - 50, 52)))
    yield Forgery("shard: huge", lambda f: put(f, "labels.zarr/logits/c.0.0", _pointing(f, 0, 2**63)))
    yield Forgery("shard: empty", lambda f: put(f, "labels.zarr/logits/c.0.0", b""))
    scale = np.full(8, np.nan, np.float32)
    yield Forgery("shard: NaN scales", lambda f: put(f, "labels.zarr/scale/c.0", shard([scale.tobytes()])), "int8")
    yield Forgery("shard: a bomb that agrees", _agreeing_bomb, "int8")


def zstd(data: bytes) -> bytes:
    """One frame."""
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


def _streamed(size: int) -> bytes:
    """zeros in a zstd frame that does not say how long it is: blocks of one repeated byte."""
    block = (2 | 131_072 << 3).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\x00\x58" + block * (size // 131_072) + (3 | 1 << 3).to_bytes(3, "little") + b"\0"


def _pointing(folder: Path, offset: int, length: int) -> bytes:
    from fastcrc.crc32 import iscsi

    data = (folder / "labels.zarr/logits/c.0.0").read_bytes()
    index_bytes = (offset % 2**64).to_bytes(8, "little") + length.to_bytes(8, "little")
    return data[:-20] + index_bytes + iscsi(index_bytes).to_bytes(4, "little")


def _agreeing_bomb(folder: Path) -> None:
    """16 million classes of zeros in every shard, and every claim in agreement: a gigabyte from some kilobytes."""
    classes = 1 << 24
    body = zstd(bytes(8 * classes))
    for number in range(len(records(folder))):
        put(folder, f"labels.zarr/values/c.{number}.0", shard([body]))
    path = "labels.zarr/values/zarr.json"
    found = json.loads((folder / path).read_bytes())
    found["shape"][1] = found["chunk_grid"]["configuration"]["chunk_shape"][1] = classes
    found["codecs"][0]["configuration"]["chunk_shape"][1] = classes
    put(folder, path, json.dumps(found).encode())
    manifest(folder, lambda body: body.update(classes=classes, class_names=[]))


class Harm:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("hostile-was-here",)


def weights() -> Iterator[tuple[str, Callable[[Path], Any], bool]]:
    """(file name, how it is made, whether it is to be loaded) of what ``--weights`` may be given."""
    model = build_model("mlp-4", classes=3, input_shape=(1, 2, 2))
    state = model.state_dict()
    good = safetensors.torch.save(state)
    harm = {"state_dict": state, "more": Harm()}

    def written(data: bytes) -> Callable[[Path], Any]:
        return lambda path: path.write_bytes(data)

    def headed(header: Any, data: bytes = b"", length: int | None = None) -> Callable[[Path], Any]:
        head = header if isinstance(header, bytes) else json.dumps(header).encode()
        return written(struct.pack("<Q", len(head) if length is None else length) + head + data)

    def zipped(names: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Callable[[Path], Any]:
        def make(path: Path) -> None:
            with zipfile.ZipFile(path, "w", how) as archive:
                for name, data in names.items():
                    archive.writestr(name, data)

        return make

    yield "good.safetensors", written(good), True
    yield "safetensors-named.pt", written(good), True
    yield "good.pt", lambda path: torch.save(state, path), True
    program = {"archive/archive_format": b"pt2", "archive/models/model.json": b"{}"}
    for name in ("program.pt2", "program.pt", "program.safetensors", "program"):
        yield name, zipped({**program, "archive/data/weights/w.pkl": pickle.dumps(Harm())}), False
    yield "old-program.pt", zipped({"serialized_exported_program.json": b"{}", "x.pt": pickle.dumps(Harm())}), False
    yield "harm.pt2", written(pickle.dumps(harm)), False
    yield "state.pt2", lambda path: torch.save(state, path), False
    script = {"a/constants.pkl": pickle.dumps(()), "a/code/x.py": b"import os", "a/data.pkl": pickle.dumps(Harm())}
    yield "script.pt", zipped(script), False
    for name in ("harm.pt", "harm.safetensors", "harm.bin"):
        yield f"pickle-{name}", written(pickle.dumps(harm)), False
        yield f"torch-{name}", lambda path: torch.save(harm, path), False
        yield f"legacy-{name}", lambda path: torch.save(harm, path, _use_new_zipfile_serialization=False), False
    yield "model.pt", lambda path: torch.save(model, path), False
    yield "zip-pickle.pt", zipped({"a/data.pkl": pickle.dumps(Harm()), "a/version": b"3"}), False
    yield "zip-bomb.pt", zipped({"a/data.pkl": bytes(64 << 20), "a/version": b"3"}, zipfile.ZIP_DEFLATED), False
    for number, protocol in enumerate((b"cos\nsystem\n(S'true'\ntR.", b"\x80\x02c__builtin__\neval\nU\x041+1\n\x85R.")):
        yield f"opcodes-{number}.pt", written(protocol), False
    yield "nested.pt", written(b"\x80\x02" + b"]" * 10**5 + b"a" * 10**5 + b"."), False
    yield "long-text.pt", written(b"\x80\x02X" + struct.pack("<I", 2**31) + b"a."), False
    spanning = b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 2) + b"PK\x05\x06" + bytes(18)
    yield "spanning-zip.pt", written(spanning), False
    yield "bytes.pt", written(b"\x80\x02cbuiltins\nbytearray\nK\x05\x85R."), False
    sizes = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    yield "length.safetensors", headed(b"{}", length=2**63), False
    yield "length-2.safetensors", headed(b"{}", length=10**9), False
    yield "offsets.safetensors", headed({"a": sizes, "b": sizes}, bytes(4)), False
    yield "outside.safetensors", headed({"a": {**sizes, "data_offsets": [0, 2**60]}}, bytes(4)), False
    yield "shape.safetensors", headed({"a": {**sizes, "shape": [HUGE, HUGE]}}, bytes(4)), False
    yield "empty-shape.safetensors", headed({"a": {**sizes, "shape": [HUGE, 0], "data_offsets": [0, 0]}}), False
    yield "type.safetensors", headed({"a": {**sizes, "dtype": "OBJECT"}}, bytes(4)), False
    for dtype in ("F8_E8M0", "F4", "F6_E2M3", "C64"):
        yield (
            f"{dtype}.safetensors",
            headed({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}}, bytes(8)),
            False,
        )
    yield "deep.safetensors", headed(b'{"a":' * 100_000), False
    for number, own in enumerate([3, [1], {"a": 1}, None, "[" * 100_000, '{"aliases": {"a": [1], "b": {}}}']):
        tensors = safetensors.torch.save(state)
        size = int.from_bytes(tensors[:8], "little")
        header = json.loads(tensors[8 : 8 + size]) | {"__metadata__": {"softlabels": own}}
        yield f"own-{number}.safetensors", headed(header, tensors[8 + size :]), number == 5
    yield "list.safetensors", headed({"__metadata__": [1]}), False
    yield "pipe.pt", os.mkfifo, False
    yield "pipe.safetensors", os.mkfifo, False
    yield "zero.pt", lambda path: path.symlink_to("/dev/zero"), False
    sparse = {name: value.to_sparse() for name, value in state.items()}
    yield "sparse.pt", lambda path: torch.save(sparse, path), False
    yield "meta.pt", lambda path: torch.save({n: v.to("meta") for n, v in state.items()}, path), False
    huge = {name: torch.zeros(1).expand(10**6, 10**6) for name in state}
    yield "expanded.pt", lambda path: torch.save(huge, path), False


def catalogue() -> list[Forgery]:
    """All forged caches."""
    return [*manifests(), *links(), *indices(), *tables(), *shards()]


def bytes_under(path: Path) -> int:
    """Bytes on disk of a file or folder, the targets of links not counted."""
    places = [path] if not path.is_dir() else path.rglob("*")
    return sum(place.lstat().st_blocks * 512 for place in places if not place.is_dir())


def judge(name: str, found: Outcome, sound: bool, size: int, seed: int) -> str:
    """How a forgery ended. AssertionError when it did anything but be refused, or read where it is legitimate."""
    case = f"{name} (seed {seed}): {found.steps}"
    assert not found.escaped, f"{case}: {found.escaped}"
    assert not found.forbidden, f"{case}: it made the reader {found.forbidden}"
    room = ROOM + GROWTH * size
    assert found.grown <= room, f"{case}: {found.grown:,} bytes of memory for {size:,} on disk, {room:,} at most"
    assert found.refused != sound, f"{case}: it should have been {'read' if sound else 'refused'}"
    return "read, as it should be" if sound else "refused by name"


def campaign(folder: Path, times: int, seed: int) -> Counts:
    """The catalogue ``times`` times, in an order that follows from ``seed``, over all kinds of caches."""
    counts = Counts()
    folder.mkdir(parents=True, exist_ok=True)
    bases = {name: folder / f"base-{name}" for name in BASES}
    for name, (encoding, store) in BASES.items():
        sound_cache(bases[name], encoding, store)
    (folder / "weights").mkdir()
    rng = random.Random(seed)
    with Receiver(*bases.values()) as receiver:
        for turn in range(times):
            for forgery in rng.sample(every_one := catalogue(), len(every_one)):
                place = folder / f"forged-{turn}"
                shutil.copytree(bases[forgery.base], place)
                forgery.forge(place)
                found = receiver.receive(place)
                counts[judge(forgery.name, found, forgery.sound, bytes_under(place), seed)] += 1
                counts["caches"] += 1
                shutil.rmtree(place)
                for left in folder.glob(f"forged-{turn}-*"):
                    left.unlink()
            for name, make, sound in weights():
                path = folder / "weights" / name
                make(path)
                found = receiver.receive(path)
                counts[judge(name, found, sound, bytes_under(path), seed)] += 1
                counts["weights"] += 1
                path.unlink()
    assert not list(folder.rglob("hostile-was-here")) and not Path("hostile-was-here").exists(), (
        f"code ran (seed {seed})"
    )
    return counts
