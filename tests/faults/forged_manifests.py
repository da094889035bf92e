"""Forged caches: what their manifest claims, and where links in them lead."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.encodings import Dense, TopK
from pipeline.store import index, parts
from pipeline.store.counts import RAGGED
from tests.faults.forging import (
    manifest,
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
        length, numbers = values.get("length", 1), -(-examples // size)
        body["identity"]["part_size"] = size
        each = {}
        if RAGGED in body["counts"] and numbers * views <= 10_000:
            last = examples - max(0, numbers - 1) * size
            each = {RAGGED: [length * n for _ in range(views) for n in [*[size] * (numbers - 1), last]]}
        body["counts"] = {
            "entries": examples * views,
            "positions": examples * views * length,
            "parts": numbers * views,
            "splits": {values.get("split", "train"): {"examples": examples, "views": views}},
            **each,
        }
        body.update(values.get("more", {}))

    return lambda folder: manifest(folder, change)


def text(change: Callable[[str], str]) -> Forge:
    """The manifest as text, its digest left as it is."""

    def forge(folder: Path) -> None:
        place = folder / "manifest.json"
        place.write_text(change(place.read_text()))

    return forge


def _second_version() -> Iterator[Forgery]:
    """What format version 2 can claim: unknown fields, and the views of several dumps."""

    def said(version: int, **changes: Any) -> Forge:
        def change(body: dict[str, Any]) -> None:
            body["format"] = max(version, body["format"])
            for path, value in changes.items():
                *places, last = path.split("__")
                place = body["identity"]
                for name in places:
                    place = place[name]
                place[last] = value

        return lambda folder: manifest(folder, change)

    for version in (1, 2):
        unknown = {"teacher__state": None, "views__transform": None, "views__seed": None}
        yield Forgery(f"an unknown teacher, version {version}", said(version, **unknown), sound=version == 2)
    for field in ("teacher__reference", "preprocessing"):
        yield Forgery(f"unknown {field.partition('__')[2] or field}", said(2, **{field: None}), sound=True)
    yield Forgery("views that are not plain", said(2, views__plain=False), sound=True)
    yield Forgery("merged views of one dump", said(2, views__merged=[{"seed": 0, "count": 1}]), sound=True)
    nobody = {"views__transform": None, "views__seed": None, "views__merged": [{"seed": 0, "count": 1}]}
    yield Forgery("merged views of nobody", said(2, **nobody), sound=True)
    yield Forgery("version 2 for nothing", said(2))
    yield Forgery("unknown content beside its digests", said(2, data__digest=None))
    yield Forgery("plain by name", said(2, views__plain="yes"))
    for name, merged in {
        "a number": 3,
        "none": [],
        "a list": [[0, 1]],
        "no seed": [{"count": 1}],
        "a text": [{"seed": "0", "count": 1}],
        "huge": [{"seed": 0, "count": HUGE}],
        "backwards": [{"seed": 0, "count": 2}, {"seed": 1, "count": -1}],
        "too many": [{"seed": 0, "count": 1}] * 100_000,
    }.items():
        yield Forgery(f"merged views: {name}", said(2, views__merged=merged))
    for name, steps in {
        "a text": "dump",
        "texts": ["dump"],
        "no verb": [{"from": []}],
        "a number": [{"verb": 1}],
        "files": [{"verb": "import", "files": 1}],
        "a file": [{"verb": "import", "files": {"number": HUGE, "bytes": 1, "sha256": "x"}}],
        "caches": [{"verb": "merge", "from": "nowhere"}],
        "a cache": [{"verb": "merge", "from": [{"identity": 3}]}],
        "options": [{"verb": "merge", "options": ["a"]}],
        "unknown": [{"verb": "import", "unknown": [[]]}],
    }.items():
        yield Forgery(f"lineage: {name}", said(1, lineage=steps))
    source = {"identity": "../x", "encoding": {"name": "pickle"}, "bound": "none", "fidelity": {"kl": 1}, "x": [None]}
    yield Forgery("lineage: a strange source", said(1, lineage=[{"verb": "merge", "from": [source]}]), sound=True)
    long = [{"verb": "merge", "options": {"number": n}} for n in range(8_000)]
    yield Forgery("lineage: 8,000 steps", said(1, lineage=long), sound=True)
    strange = [{"verb": "__import__('os').system('x')", "from": [], "options": {"a": [1]}, "more": None}]
    yield Forgery("lineage: a strange step", said(1, lineage=strange), sound=True)


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
    yield from _second_version()
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


def links(array: str = "logits", shard: str = "c.0.0") -> Iterator[Forgery]:
    """Files that are something else, the shard of an array among them."""

    def replaced(path: str, make: Callable[[Path], Any]) -> Forge:
        def forge(folder: Path) -> None:
            place = folder / path
            (folder.parent / f"{folder.name}-elsewhere").write_bytes(place.read_bytes())
            place.unlink()
            make(place)

        return forge

    labels = f"labels.zarr/{array}"
    for path in (
        "manifest.json",
        parts.PATH,
        index.path_of(0),
        f"{labels}/{shard}",
        "views.parquet",
        f"{labels}/zarr.json",
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
    yield Forgery("a stranger among the shards", lambda f: (f / labels / "c.9.0").symlink_to("/dev/zero"))
    yield Forgery("a name that is no UTF-8", lambda f: Path(os.fsdecode(bytes(f) + b"/index/\xff")).write_text(""))
