"""The commit record: round trip, and refusal of everything that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.encodings import TopK
from pipeline.errors import CacheCorruptError, CacheError, CacheFormatError
from pipeline.identity import digest
from pipeline.store import Cache, Manifest, open_cache
from tests.store.small import small_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("manifest") / "c", TopK(3, "float16", (1.0, 4.0)))


def resealed(body: dict[str, Any]) -> bytes:
    """``body`` as a manifest with a digest that fits: what a hostile author would write."""
    body.pop("digest", None)
    return json.dumps({**body, "digest": digest(body)}).encode()


def test_it_comes_back_equal(cache: Cache) -> None:
    data = Path(cache.address, "manifest.json").read_bytes()
    again = Manifest.from_json(data, "m")
    assert again == cache.manifest
    assert again.to_json() == data


def test_it_says_what_the_cache_holds(cache: Cache) -> None:
    found = json.loads(Path(cache.address, "manifest.json").read_bytes())
    assert found["format"] == 1
    assert found["counts"] == {
        "entries": 80,
        "positions": 80,
        "parts": 12,
        "splits": {
            "train": {"examples": 21, "views": 3},
            "validation": {"examples": 8, "views": 1},
            "test": {"examples": 9, "views": 1},
        },
    }
    assert found["temperatures"] == [1.0, 4.0]
    assert found["features"] == {"block.1": {"shape": [2, 3], "dtype": "float16"}}
    assert 0 < found["bound"] < 0.01
    assert {"parts.parquet", "README.md", "labels.zarr/zarr.json"} <= found["files"].keys()


def test_another_version_is_refused_by_name(cache: Cache) -> None:
    with pytest.raises(CacheFormatError, match="format version 4; this release reads versions 1 to 3"):
        Manifest.from_json(resealed({**cache.manifest.as_dict(), "format": 4}), "m")


def test_a_changed_word_is_noticed(cache: Cache) -> None:
    data = cache.manifest.to_json().replace(b"class 1", b"class X")
    with pytest.raises(CacheCorruptError, match="its own digest"):
        Manifest.from_json(data, "m")


def change(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(body: dict[str, Any]) -> None:
        for name in path[:-1]:
            body = body[name]
        body[path[-1]] = value

    apply.__name__ = ".".join(path) + f"={str(value)[:20]}"
    return apply


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    def apply(body: dict[str, Any]) -> None:
        del body[name]

    apply.__name__ = f"no {name}"
    return apply


HUGE = 10**30
RECORD = {"sha256": "0" * 64, "size": 1}
WRONG = [
    drop("counts"),
    change("surprise", value=1),
    change("format", value=True),
    change("classes", value=0),
    change("classes", value=True),
    change("classes", value=HUGE),
    change("classes", value=2),
    change("class_names", value=["a"]),
    change("class_names", value=[1, 2, 3, 4, 5, 6]),
    change("bound", value=-1.0),
    change("bound", value="small"),
    change("temperatures", value=[2.0]),
    change("encoding", "name", value="pickle"),
    change("encoding", "k", value=HUGE),
    change("encoding", value=None),
    change("identity", "store", value="hdf5"),
    change("identity", "digest", value="abc"),
    change("identity", "part_size", value=0),
    change("identity", "teacher", value="cnn-32"),
    change("identity", "data", value={"examples": 3}),
    change("identity", "preprocessing", value=None),
    change("identity", "views", "count", value="many"),
    change("identity", "part_size", value=9),
    change("counts", "entries", value=81),
    change("counts", "parts", value=13),
    change("counts", "parts", value=HUGE),
    change("counts", "positions", value=0),
    change("counts", "splits", value={"dev": {"examples": 80, "views": 1}}),
    change("counts", "splits", "train", "views", value=HUGE),
    change("counts", "splits", "train", "examples", value=-21),
    change("features", value={"../x": {"shape": [2, 3], "dtype": "float16"}}),
    change("features", value={"x": {"shape": [-1], "dtype": "float16"}}),
    change("features", value={"x": {"shape": [2], "dtype": "object"}}),
    change("features", value={"x": 3}),
    change("replay", value="elsewhere.parquet"),
    change("fidelity", value=[]),
    change("files", value=[]),
    change("files", value={"/etc/passwd": RECORD}),
    change("files", value={"../other/manifest.json": RECORD}),
    change("files", value={"a/../../b": RECORD}),
    change("files", value={"C:\\x": RECORD}),
    change("files", value={"a": {"sha256": "0" * 64, "size": HUGE}}),
    change("files", value={"a": {"sha256": "xyz", "size": 1}}),
    change("files", value={"a": {"size": 1}}),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
def test_a_manifest_that_cannot_be_is_refused_though_its_digest_fits(
    cache: Cache, wrong: Callable[[dict[str, Any]], None]
) -> None:
    body = json.loads(cache.manifest.to_json())
    wrong(body)
    with pytest.raises(CacheError, match="m "):
        Manifest.from_json(resealed(body), "m ")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 10_000, b'{"format": NaN}'])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(CacheError):
        Manifest.from_json(data, "m")


def test_a_manifest_of_absurd_size_is_not_read(cache: Cache, tmp_path: Path) -> None:
    with open(tmp_path / "manifest.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(CacheCorruptError, match="1,099,511,627,776 bytes"):
        open_cache(tmp_path)


def test_the_card_says_what_the_cache_is(cache: Cache) -> None:
    text = Path(cache.address, "README.md").read_text()
    for words in ("80 entries", "cnn-32", "21 examples, 3 views", "topk", "T = 1, 4", "agreement", "open_cache"):
        assert words in text


UNKNOWN = {
    "teacher": {"reference": None, "args": {}, "state": None},
    "data": {"digest": None, "examples": 38},
    "preprocessing": None,
    "views": {"transform": None, "seed": None, "count": 3, "plain": False},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_nobody_knows_takes_version_2(cache: Cache, name: str) -> None:
    body = cache.manifest.as_dict()
    body = {**body, "identity": {**body["identity"], name: UNKNOWN[name]}}
    found = Manifest.from_json(resealed({**body, "format": 2}), "m")
    assert found.format == 2 and found.unknown == (name,)
    assert found.knows_content == (name != "data")
    with pytest.raises(CacheCorruptError):
        Manifest.from_json(resealed({**body, "format": 1}), "m")


def test_version_2_is_not_claimed_for_nothing(cache: Cache) -> None:
    with pytest.raises(CacheCorruptError, match="takes 1"):
        Manifest.from_json(resealed({**cache.manifest.as_dict(), "format": 2}), "m")


def test_merged_views_come_to_the_count(cache: Cache) -> None:
    body = cache.manifest.as_dict()
    views = {**body["identity"]["views"], "merged": [{"seed": 0, "count": 1}, {"seed": 5, "count": 1}]}
    merged = {**body, "format": 2, "identity": {**body["identity"], "views": views}}
    assert Manifest.from_json(resealed(dict(merged)), "m").identity["views"] == views
    views["merged"].append({"seed": 6, "count": 1})
    with pytest.raises(CacheCorruptError, match="do not come to 3"):
        Manifest.from_json(resealed(dict(merged)), "m")
