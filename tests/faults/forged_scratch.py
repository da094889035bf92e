"""Forged scratch of unfinished dumps: plans and journals, which ``merge`` and ``finalize`` read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.caches.plan import Plan
from pipeline.encodings import Encoding
from pipeline.identity import canonical_json, digest
from pipeline.store import Layout
from tests.faults.forged_manifests import HUGE, TOPK, Forge, Forgery
from tests.store.small import CLASSES, FEATURES, FEW, identity_of, write, writer_of

PLAN, JOURNAL = "plan.json", "journal/part-00001.json"
SHARD = "labels.zarr/logits/c.1.0"


def unfinished(folder: Path, encoding: Encoding = TOPK, layout: Layout = FEW) -> None:
    """Beside ``folder``/cache, all parts of a dump that nobody has finished yet."""
    identity = identity_of(encoding, "zarr", layout)
    scratch = folder / f".cache.softlabels-{identity['digest'][:16]}"
    write(writer_of(scratch, encoding, "zarr", layout))
    names = tuple(f"class {n}" for n in range(CLASSES))
    Plan(identity, layout, CLASSES, names, FEATURES, None).save(scratch)


def _scratch(folder: Path) -> Path:
    (found,) = (place for place in folder.glob(".cache.softlabels-*") if place.is_dir())
    return found


def _sealed(path: str, change: Callable[[dict[str, Any]], Any]) -> Forge:
    """A plan or a journal entry with something changed, its digest put right."""

    def forge(folder: Path) -> None:
        place = _scratch(folder) / path
        body = json.loads(place.read_bytes())
        body.pop("digest")
        change(body)
        place.write_bytes(canonical_json({**body, "digest": digest(body)}))

    return forge


def _set(path: str, *keys: str, value: Any) -> Forge:
    def change(body: dict[str, Any]) -> None:
        for key in keys[:-1]:
            body = body[key]
        body[keys[-1]] = value

    return _sealed(path, change)


def _planned(name: str, *keys: str, value: Any) -> Forgery:
    return Forgery(f"plan: {name}", _set(PLAN, *keys, value=value), "scratch")


def _identified(name: str, value: Any) -> Forgery:
    """Another digest of the identity, in the plan and all that agrees with it."""

    def forge(folder: Path) -> None:
        _set(PLAN, "identity", "digest", value=value)(folder)
        for place in sorted(_scratch(folder).glob("journal/*.json")):
            _set(f"journal/{place.name}", "identity", value=value)(folder)

    return Forgery(f"plan: {name}", forge, "scratch")


def _replaced(path: str, make: Callable[[Path], Any]) -> Forge:
    def forge(folder: Path) -> None:
        place = _scratch(folder) / path
        place.unlink(missing_ok=True)
        make(place)

    return forge


def scratches() -> Iterator[Forgery]:
    """What the scratch of a dump can hold."""
    yield Forgery("scratch: as it was left", lambda folder: None, "scratch", sound=True)
    yield Forgery("scratch: a stranger", lambda f: (_scratch(f) / "labels.zarr/x").touch(), "scratch", sound=True)
    for name, splits in {
        "examples": {"train": [HUGE, 2]},
        "views": {"train": [1, HUGE]},
        "10M parts": {"train": [10_000_000, 8]},
        "400,000 views": {"train": [1, 400_000]},
        "negative": {"train": [-11, 2]},
        "nothing": {"train": [0, 0]},
        "halves": {"train": [1.5, 2]},
        "texts": {"train": ["11", "2"]},
        "no pair": {"train": [11]},
        "another split": {"../x": [11, 2]},
        "a list": [11, 2],
        "true": {"train": [True, True]},
        "a big number": {"train": [10**400, 2]},
    }.items():
        yield _planned(f"splits, {name}", "splits", value=splits)
    for name, value in (("zero", 0), ("negative", -8), ("text", "8"), ("huge", HUGE), ("fraction", 0.5)):
        yield _planned(f"part size, {name}", "identity", "part_size", value=value)
        yield _planned(f"length, {name}", "length", value=value)
        yield _planned(f"classes, {name}", "classes", value=value)
    for name, names in {"fewer": ["a"], "numbers": list(range(CLASSES)), "a text": "abcdef", "null": None}.items():
        yield _planned(f"class names, {name}", "class_names", value=names)
    for name, features in {
        "outside": {"../../x": [2, 3]},
        "huge": {"block.1": [2**31 - 1] * 16},
        "negative": {"block.1": [-2, 3]},
        "texts": {"block.1": "23"},
        "a list": ["block.1"],
    }.items():
        yield _planned(f"features, {name}", "features", value=features)
    for name, encoding in {"pickle": {"name": "pickle"}, "a text": "topk", "k": {**TOPK.describe(), "k": HUGE}}.items():
        yield _planned(f"encoding, {name}", "identity", "encoding", value=encoding)
    for key in ("teacher", "data", "views", "store", "digest", "preprocessing"):
        yield Forgery(f"plan: no {key}", _sealed(PLAN, lambda body, k=key: body["identity"].pop(k)), "scratch")
    yield _planned("a store of strangers", "identity", "store", value="hostile_store")
    yield _planned("no identity", "identity", value=None)
    yield _planned("merged views", "identity", "views", "merged", value=[{"seed": 0, "count": HUGE}])
    yield _planned("replay without views", "replay", value=True)
    yield _identified("an identity that leaves its folder", "/../../" + "x" * 57)
    yield _identified("an identity of capitals", "A" * 64)
    yield _identified("an identity that is a number", 7)
    yield _identified("an identity of half a character", "x\ud7ff" * 32)

    def endless(folder: Path) -> None:
        _set(PLAN, "replay", value=True)(folder)
        (_scratch(folder) / "plan-views.parquet").symlink_to("/dev/zero")

    yield Forgery("plan: replay without end", endless, "scratch")
    deep = b'{"a":' + b"[" * 100_000
    for what, path in (("plan", PLAN), ("journal", JOURNAL)):
        kinds: dict[str, Callable[[Path], Any]] = {
            "/dev/zero": lambda p: p.symlink_to("/dev/zero"),
            "itself": lambda p: p.symlink_to(p),
            "a folder": lambda p: p.mkdir(),
            "a pipe": os.mkfifo,
            "nothing": lambda p: p.symlink_to("/nowhere"),
            "300 MB": lambda p: (p.touch(), os.truncate(p, 300 << 20)),
            "empty": lambda p: p.touch(),
            "a list": lambda p: p.write_text("[1]"),
            "deep": lambda p: p.write_bytes(deep),
            "a number of a megabyte": lambda p: p.write_bytes(b'{"digest":' + b"9" * 10**6 + b"}"),
            "a pickle": lambda p: p.write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR."),
            "no UTF-8": lambda p: p.write_bytes(b'{"digest": "\xff"}'),
        }
        for name, make in kinds.items():
            yield Forgery(f"{what}: {name}", _replaced(path, make), "scratch")
    yield from _journals()


def _journals() -> Iterator[Forgery]:
    def entry(name: str, *keys: str, value: Any) -> Forgery:
        return Forgery(f"journal: {name}", _set(JOURNAL, *keys, value=value), "scratch")

    record = {"sha256": "0" * 64, "size": 1}
    yield entry("of another part", "part", "number", value=0)
    yield entry("huge positions", "part", "positions", value=HUGE)
    yield entry("another identity", "identity", value="0" * 64)
    yield entry("no files", "files", value={})
    yield entry("files as a list", "files", value=[record])
    yield entry("a file outside", "files", "../../x", value=record)
    yield entry("a file too many", "files", "index/part-00009.parquet", value=record)
    yield entry("another size", "files", SHARD, "size", value=HUGE)
    yield entry("another digest", "files", SHARD, "sha256", value="0" * 64)
    yield entry("a seal of nothing", "seals", "x", value=1)
    yield entry("a huge seal", "seals", SHARD, value=2**40)
    yield entry("another seal", "seals", SHARD, value=7)
    for name, statistics in {
        "a text": {"bound": "nan"},
        "a big number": {"bound": 10**400},
        "a list": {"bound": [1]},
        "negative": {"compared": -1, "agreed": -1},
        "too many": {"compared": 100, "agreed": 100},
        "too good": {"compared": 2, "agreed": 4},
        "a KL below zero": {"compared": 2, "agreed": 2, "kl_sum_T1": -1.0, "kl_max_T1": 1.0},
        "a KL without its largest": {"compared": 2, "agreed": 2, "kl_sum_T1": 1.0},
    }.items():
        yield entry(f"statistics, {name}", "statistics", value=statistics)
    yield Forgery("scratch: a shard of zeros", _zeros, "scratch")
    yield Forgery("scratch: a shard leads away", _replaced(SHARD, lambda p: p.symlink_to("/dev/zero")), "scratch")
    yield Forgery("scratch: a shard is a pipe", _replaced(SHARD, os.mkfifo), "scratch")
    yield Forgery("scratch: no shard", _replaced(SHARD, lambda p: None), "scratch")


def _zeros(folder: Path) -> None:
    place = _scratch(folder) / SHARD
    place.write_bytes(bytes(place.stat().st_size))
