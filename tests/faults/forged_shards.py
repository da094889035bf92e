"""Forged caches: zarr metadata and shards that are not what an honest dump would write."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.encodings import KEPT
from pipeline.store.shards import ShardPlan
from tests.faults.forged_manifests import HUGE, Forge, Forgery
from tests.faults.forging import manifest, put, records, shard


def shards(base: str = "zarr", plain: str = "logits", packed: str = "id_deltas") -> Iterator[Forgery]:
    """What zarr metadata and shards can hold: those of an array that is stored ``plain``, and of one in zstd."""

    def described(change: Callable[[dict[str, Any]], Any]) -> Forge:
        def forge(folder: Path) -> None:
            path = f"labels.zarr/{plain}/zarr.json"
            body = json.loads((folder / path).read_bytes())
            change(body)
            put(folder, path, json.dumps(body).encode())

        return forge

    def forgery(name: str, forge: Forge) -> Forgery:
        return Forgery(name, forge, base)

    for value in (None, [], {}, "O", "object", "f4,f4", "(1000000,1000000)f4", "<f2", "S10", "float16" * 10**5, 3):
        yield forgery(f"zarr: dtype {str(value)[:20]}", described(lambda b, v=value: b.update(data_type=v)))
    for value in (HUGE, -1, 32.0, "32", 10**4000):
        first: Callable[..., Any] = lambda b, v=value: b.update(shape=[v, *b["shape"][1:]])  # noqa: E731
        yield forgery(f"zarr: shape {str(value)[:20]}", described(first))
    for value in ([], None, [32, 3, 3]):
        yield forgery(f"zarr: shape {value}", described(lambda b, v=value: b.update(shape=v)))
    for name in ("pickle", "blosc", "hostile_codec", "gzip", "numcodecs.pickle", "vlen-utf8"):
        inner = [{"name": "bytes"}, {"name": name}, {"name": "crc32c"}]
        change: Callable[..., Any] = lambda b, i=inner: b["codecs"][0]["configuration"].update(codecs=i)  # noqa: E731
        yield forgery(f"zarr: codec {name}", described(change))
    yield forgery("zarr: no codec", described(lambda b: b.update(codecs=[])))
    yield forgery("zarr: big-endian", described(lambda b: b["codecs"][0]["configuration"]["codecs"][0].update(configuration={"endian": "big"})))  # fmt: skip # noqa: E501
    yield forgery("zarr: a transformer", described(lambda b: b.update(node_type="group")))
    for name, rows in (("nothing", 0), ("one", 1)):
        cut: Callable[..., Any] = lambda b, n=rows: b["codecs"][0]["configuration"]["chunk_shape"].__setitem__(0, n)  # noqa: E731
        yield forgery(f"zarr: chunks of {name}", described(cut))
    path = f"labels.zarr/{plain}/zarr.json"
    yield forgery("zarr: 100,000 levels", lambda f: put(f, path, b'{"shape":' + b"[" * 100_000))
    yield forgery("zarr: not JSON", lambda f: put(f, path, b"\x80\x04cos\nsystem\n"))
    yield forgery("zarr: a number of a megabyte", lambda f: put(f, path, b'{"shape": [' + b"9" * 10**6 + b"]}"))

    def chunked(name: str, make: Callable[[int], list[bytes]]) -> Forge:
        """The first shard of an array, of encoded chunks that are made from how many bytes a chunk has."""

        def forge(folder: Path) -> None:
            plan = plan_of(folder, name)
            put(folder, f"labels.zarr/{name}/{plan.key(0)}", shard(make(plan.chunk * plan.row_bytes)))

        return forge

    def numbers(value: float) -> Forge:
        """One number everywhere in the array that is stored plain."""

        def forge(folder: Path) -> None:
            plan = plan_of(folder, plain)
            body = np.full((plan.chunk, *plan.trailing), value, plan.dtype).tobytes()
            put(folder, f"labels.zarr/{plain}/{plan.key(0)}", shard([body]))

        return forge

    def broken(change: Callable[[Path, str], bytes]) -> Forge:
        def forge(folder: Path) -> None:
            place = f"labels.zarr/{plain}/{plan_of(folder, plain).key(0)}"
            put(folder, place, change(folder, place))

        return forge

    yield forgery("shard: a bomb", chunked(packed, lambda n: [zstd(bytes(256 << 20))]))
    yield forgery("shard: a frame without a size", chunked(packed, lambda n: [_streamed(64 << 20)]))
    endless = b"\x28\xb5\x2f\xfd\xe0" + b"\0" * 7 + b"\x10"
    yield forgery("shard: a frame of 2**60 bytes", chunked(packed, lambda n: [endless]))
    yield forgery("shard: two frames", chunked(packed, lambda n: [zstd(bytes(n)) * 2]))
    yield forgery("shard: no frame", chunked(packed, lambda n: [b"garbage"]))
    yield forgery("shard: an empty chunk", chunked(packed, lambda n: [b""]))
    yield forgery("shard: ids that leave the classes", chunked(packed, lambda n: [zstd(b"\xff" * n)]))
    yield forgery("shard: ids that repeat", chunked(packed, lambda n: [zstd(bytes(n))]))
    if plain == KEPT:
        for value in (0, 1, 6, 255):
            yield forgery(f"shard: {value} kept everywhere", numbers(value))
    else:
        yield forgery("shard: NaN", numbers(math.nan))
        yield forgery("shard: infinities", numbers(-math.inf))
    yield forgery("shard: too long", chunked(plain, lambda n: [bytes(n) * 2]))
    yield forgery("shard: too short", chunked(plain, lambda n: [bytes(n)[:-2]]))
    yield forgery("shard: more chunks", chunked(plain, lambda n: [bytes(n)] * 2))
    yield forgery("shard: no chunk", broken(lambda f, p: shard([], 1)))
    yield forgery("shard: beyond the file", broken(lambda f, p: _pointing(f / p, 2**40, 52)))
    yield forgery("shard: wrapping around", broken(lambda f, p: _pointing(f / p, 2**64 - 50, 52)))
    yield forgery("shard: huge", broken(lambda f, p: _pointing(f / p, 0, 2**63)))
    yield forgery("shard: empty", broken(lambda f, p: b""))


def dense_shards() -> Iterator[Forgery]:
    """What shards of dense labels in int8 can hold besides."""
    scale = np.full(8, np.nan, np.float32)
    yield Forgery("shard: NaN scales", lambda f: put(f, "labels.zarr/scale/c.0", shard([scale.tobytes()])), "int8")
    yield Forgery("shard: a bomb that agrees", _agreeing_bomb, "int8")


def plan_of(folder: Path, name: str) -> ShardPlan:
    """How an array of a sound cache is stored."""
    path = f"labels.zarr/{name}/zarr.json"
    return ShardPlan.parse((folder / path).read_bytes(), path)


def zstd(data: bytes) -> bytes:
    """One frame."""
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


def _streamed(size: int) -> bytes:
    """zeros in a zstd frame that does not say how long it is: blocks of one repeated byte."""
    block = (2 | 131_072 << 3).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\x00\x58" + block * (size // 131_072) + (3 | 1 << 3).to_bytes(3, "little") + b"\0"


def _pointing(place: Path, offset: int, length: int) -> bytes:
    from fastcrc.crc32 import iscsi

    index_bytes = (offset % 2**64).to_bytes(8, "little") + length.to_bytes(8, "little")
    return place.read_bytes()[:-20] + index_bytes + iscsi(index_bytes).to_bytes(4, "little")


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
