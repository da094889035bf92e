"""Caches as an attacker makes them, every digest put right again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fastcrc.crc32 import iscsi as crc32c

from pipeline.encodings import Encoding
from pipeline.identity import digest
from pipeline.store import FileRecord, Layout, PartRecord, index, parts
from pipeline.store.tables import write_table
from pipeline.views import parse_transform
from tests.store.small import FEW, ragged_layout, small_cache

UNEVEN = ragged_layout({"train": (11, 2)}, 8)
"""As many examples and parts as ``FEW``, of uneven entries."""

VIEWS = [{"example_id": "train/0", "view": 1, "seed": 5, "shape": [1, 2, 2], "pixels": [0.0, 0.5, 1.0, 0.25]}]
VIEWS_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("view", pa.int32()),
        ("seed", pa.int64()),
        ("shape", pa.list_(pa.int32())),
        ("pixels", pa.list_(pa.float32())),
    ]
)


def sound_cache(folder: Path, encoding: Encoding, store: str, layout: Layout = FEW) -> None:
    """A cache with all that one can have: features, random views, a replay table."""
    small_cache(folder, encoding, store, layout)
    put(folder, "views.parquet", write_table(pa.Table.from_pylist(VIEWS, VIEWS_SCHEMA), row_group_size=64, zstd=()))

    def complete(body: dict[str, Any]) -> None:
        body["identity"]["features"] = {"block.1": "block.1"}
        body["identity"]["views"] = {"transform": parse_transform("flip")[1], "seed": 0, "count": 2}
        body["replay"] = "views.parquet"

    manifest(folder, complete)


def companions(sound: Path) -> None:
    """Caches that belong with a sound one: SOUND-seed, the views of another seed, and SOUND-others, other examples."""

    def another(end: str, change: Callable[[dict[str, Any]], Any]) -> Path:
        place = sound.with_name(f"{sound.name}{end}")
        shutil.copytree(sound, place)

        def identity(body: dict[str, Any]) -> None:
            change(body["identity"])
            body["identity"].pop("digest")
            body["identity"]["digest"] = digest(body["identity"])

        manifest(place, identity)
        return place

    another("-seed", lambda identity: identity["views"].update(seed=7))
    others = another("-others", lambda identity: identity["data"].update(digest="ef" * 32))
    for part in FEW.parts:
        rows = pq.read_table(others / index.path_of(part.number)).to_pylist()
        for row in rows:
            row["example_id"] = f"other/{row['example_id']}"
        data = write_table(pa.Table.from_pylist(rows, index.SCHEMA), row_group_size=64, zstd=())
        put(others, index.path_of(part.number), data)


def manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and put its digest right."""
    body = json.loads((folder / "manifest.json").read_bytes())
    body.pop("digest")
    change(body)
    (folder / "manifest.json").write_text(json.dumps({**body, "digest": digest(body)}))


def records(folder: Path) -> list[PartRecord]:
    """The parts of a cache that is sound so far."""
    return list(parts.decode((folder / parts.PATH).read_bytes(), len(FEW.parts), "parts"))


def put(folder: Path, path: str, data: bytes) -> None:
    """Write a file, and put right whatever says its digest, size or seal."""
    (folder / path).write_bytes(data)
    record = FileRecord.of(data)
    held = {} if path == parts.PATH else {p: r for r in records(folder) for p in r.files}
    if path not in held:
        manifest(folder, lambda body: body["files"].update({path: vars(record)}))
        return
    owner = held[path]
    seals = {**owner.seals, path: seal_of(data, folder / path)} if path in owner.seals else owner.seals
    changed = PartRecord(**{**vars(owner), "files": {**owner.files, path: record}, "seals": seals})
    with_parts(folder, [changed if r.number == owner.number else r for r in records(folder)])


def with_parts(folder: Path, changed: list[PartRecord]) -> None:
    """Other parts than the manifest counts."""
    put(folder, parts.PATH, parts.encode(changed))


def inner_chunks(place: Path) -> int:
    """Inner chunks of a shard, by the metadata beside it; 1 when that says nothing sensible."""
    try:
        body = json.loads((place.parent / "zarr.json").read_bytes())
        whole = body["chunk_grid"]["configuration"]["chunk_shape"][0]
        return max(1, int(whole // body["codecs"][0]["configuration"]["chunk_shape"][0]))
    except (ValueError, KeyError, TypeError, IndexError, ArithmeticError, OSError, RecursionError):
        return 1


def seal_of(data: bytes, place: Path) -> int:
    """The seal of a shard, made from whatever its index says."""
    count = inner_chunks(place)
    index = data[-16 * count - 4 : -4]
    pairs = [(int.from_bytes(index[n : n + 8], "little"), int.from_bytes(index[n + 8 : n + 16], "little"))
             for n in range(0, len(index) - 15, 16)]  # fmt: skip
    return crc32c(b"".join(data[max(0, a + b - 4) : a + b] for a, b in pairs if a + b <= len(data)))


def shard(bodies: list[bytes], count: int | None = None) -> bytes:
    """A shard of these encoded inner chunks, with good checksums."""
    made, index = b"", b""
    for body in bodies:
        chunk = body + crc32c(body).to_bytes(4, "little")
        index += len(made).to_bytes(8, "little") + len(chunk).to_bytes(8, "little")
        made += chunk
    index += b"\xff" * 16 * ((count or len(bodies)) - len(bodies))
    return made + index + crc32c(index).to_bytes(4, "little")
