"""Caches at a URL, read through a bounded folder of copies: the same numbers, fetched once, checked on arrival."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import CacheCorruptError, CacheIncompleteError
from pipeline.store import Cache, open_cache, push
from pipeline.store.copies import CopiedFiles, default_folder
from tests.store.small import LAYOUT, logits_of, small_cache

URL = "memory://copies/cache"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    small_cache(tmp_path / "cache")
    push(tmp_path / "cache", URL)
    yield tmp_path / "cache"
    fsspec.filesystem("memory").rm("/copies", recursive=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was asked for at the URL."""
    counts: Counter[str] = Counter()
    real = MemoryFileSystem.cat_file

    def counting(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        counts[path.rpartition("/copies/cache/")[2]] += 1
        return real(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counting)
    return counts


def read_all(cache: Cache) -> None:
    for part in LAYOUT.parts:
        np.testing.assert_array_equal(cache.decode(cache.read_part(part)).logits, logits_of(part))


def test_parts_are_fetched_once_and_held_to_their_digest(folder: Path, asked: Counter[str], tmp_path: Path) -> None:
    cache = open_cache(URL, cache_dir=tmp_path / "copies")
    assert not list((tmp_path / "copies").rglob("*"))
    read_all(cache)
    read_all(open_cache(URL, cache_dir=tmp_path / "copies"))
    shards = {path: times for path, times in asked.items() if "/c." in path}
    assert len(shards) == len(LAYOUT.parts) and set(shards.values()) == {1}
    for place in (tmp_path / "copies").glob("??/*"):
        assert place.suffix == ".lock" or place.read_bytes()


def test_the_least_recently_used_go(folder: Path, tmp_path: Path) -> None:
    whole = open_cache(folder)
    sizes = [file.size for part in whole.parts for path, file in part.files.items() if "/c." in path]
    most = 3 * max(sizes)
    cache = open_cache(URL, cache_dir=tmp_path / "copies", cache_bytes=most)
    for number in range(len(LAYOUT.parts)):
        cache.read_part(number)
        os.utime(tmp_path / "copies")
        held = [p.stat().st_size for p in (tmp_path / "copies").glob("??/*") if p.suffix != ".lock"]
        assert sum(held) <= most
        time.sleep(0.01)
    last = whole.parts[-1].files[next(p for p in whole.parts[-1].files if p.startswith("labels.zarr"))]
    assert (tmp_path / "copies" / last.sha256[:2] / last.sha256).is_file()
    read_all(cache)


def test_one_row_fetches_no_whole_file(folder: Path, asked: Counter[str], tmp_path: Path) -> None:
    cache = open_cache(URL, cache_dir=tmp_path / "copies")
    cache.read_rows("train", 0, np.array([3]))
    # Two requests for ranges of one shard: its index, and the chunk.
    assert [n for path, n in asked.items() if "/c." in path] == [2] and not list((tmp_path / "copies").glob("??/*"))


def test_what_is_larger_than_the_limit_is_read_all_the_same(folder: Path, tmp_path: Path) -> None:
    read_all(open_cache(URL, cache_dir=tmp_path / "copies", cache_bytes=0))
    assert not list((tmp_path / "copies").rglob("*"))


def test_bytes_that_differ_and_files_that_are_gone_are_named(folder: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    shard = next(path for path in memory.find("/copies/cache/labels.zarr") if "/c.0" in path)
    data = bytearray(memory.cat_file(shard))
    data[40] ^= 1
    memory.pipe_file(shard, bytes(data))
    with pytest.raises(CacheCorruptError, match=r"c\.0"):
        open_cache(URL, cache_dir=tmp_path / "copies").read_part(0)
    memory.rm_file(shard)
    with pytest.raises(CacheIncompleteError, match=r"c\.0"):
        open_cache(URL, cache_dir=tmp_path / "copies").read_part(0)
    assert not [p for p in (tmp_path / "copies").glob("??/*") if p.suffix != ".lock"]


def test_readers_beside_each_other_fetch_a_part_once(folder: Path, asked: Counter[str], tmp_path: Path) -> None:
    caches = [open_cache(URL, cache_dir=tmp_path / "copies") for _ in range(4)]
    threads = [threading.Thread(target=read_all, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {times for path, times in asked.items() if "/c." in path} == {1}
    assert isinstance(caches[0].files, CopiedFiles)


def test_where_copies_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "softlabels" / "parts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "softlabels" / "parts"
