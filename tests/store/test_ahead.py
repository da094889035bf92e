"""Files fetched before they are read: in order, within bounds, by threads that end, errors at who needs the file."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from filelock import FileLock
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import CacheCorruptError, CacheError
from pipeline.store import Cache, open_cache, push
from pipeline.store.ahead import NAME, THREADS, FetchAhead, FetchQueue
from pipeline.store.parts import FileRecord
from tests.store.small import LAYOUT, logits_of, small_cache

URL = "memory://ahead/cache"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    small_cache(tmp_path / "cache")
    push(tmp_path / "cache", URL)
    yield tmp_path / "cache"
    fsspec.filesystem("memory").rm("/ahead", recursive=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was asked for at the URL, which takes 20 ms to answer."""
    counts: Counter[str] = Counter()
    real = MemoryFileSystem.cat_file

    def counting(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        counts[path.rpartition("/ahead/cache/")[2]] += 1
        time.sleep(0.02)
        return real(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counting)
    return counts


def labels_of(cache: Cache) -> list[str]:
    return [path for part in LAYOUT.parts for path in cache.label_paths(part.number).values()]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def wait_until(condition: Callable[[], bool]) -> bool:
    return any(condition() or time.sleep(0.01) for _ in range(500))


def read_all(cache: Cache) -> None:
    for part in LAYOUT.parts:
        assert (cache.decode(cache.read_part(part)).logits == logits_of(part)).all()


def bytes_in(copies: Path) -> int:
    """Of copies, whole or on their way."""
    total = 0
    for path in copies.glob("??/*"):
        try:
            total += path.stat().st_size if path.suffix not in (".lock", ".partial") else 0
        except FileNotFoundError:
            continue
    return total


# The queue alone.


class Fetching:
    """Notes what is fetched and how many at once; each waits until it is let through."""

    def __init__(self, count: int, most_bytes: int = 1000, failing: str = "") -> None:
        self.failing = failing
        self.begun: list[str] = []
        self.gate = threading.Semaphore(0)
        self.paths = [f"file-{number}" for number in range(count)]
        self.queue = FetchQueue(
            self, lambda path: False, {path: FileRecord("0" * 64, 10) for path in self.paths}, most_bytes
        )

    def __call__(self, path: str) -> None:
        self.begun.append(path)
        self.gate.acquire()
        if path == self.failing:
            raise CacheError("it is not there")


def test_a_few_at_once_in_the_order_of_asking() -> None:
    fetching = Fetching(12)
    ahead = FetchAhead(fetching.queue)
    ahead.ask(["strange", *fetching.paths[:3]])
    ahead.ask(fetching.paths)
    assert wait_until(lambda: len(fetching.begun) == THREADS)
    time.sleep(0.03)  # time for a fifth, if there were one
    assert sorted(fetching.begun) == fetching.paths[:THREADS] and len(threads()) == THREADS
    fetching.gate.release(12)
    assert wait_until(lambda: not threads())
    assert sorted(fetching.begun) == sorted(fetching.paths)
    ahead.close()


def test_no_more_than_there_is_room_for_waits_to_be_read() -> None:
    fetching = Fetching(9, most_bytes=35)
    fetching.gate.release(9)
    ahead = FetchAhead(fetching.queue)
    ahead.ask(fetching.paths)
    for number in range(9):
        assert wait_until(lambda number=number: len(fetching.begun) == min(9, number + 3))  # type: ignore[misc]
        time.sleep(0.01)
        assert len(fetching.begun) <= number + 3
        fetching.queue.turn(fetching.paths[number])
        fetching.queue.read(fetching.paths[number])
    assert wait_until(lambda: not threads())
    ahead.close()


def test_an_error_is_raised_once_by_who_needs_the_file() -> None:
    fetching = Fetching(3, failing="file-1")
    fetching.gate.release(3)
    ahead = FetchAhead(fetching.queue)
    ahead.ask(fetching.paths)
    assert wait_until(lambda: not threads())
    fetching.queue.turn("file-0")
    with pytest.raises(CacheError, match="it is not there"):
        fetching.queue.turn("file-1")
    fetching.queue.turn("file-1")
    ahead.close()


@pytest.mark.parametrize("how", ["closed", "abandoned"])
def test_threads_end_when_the_stream_does(how: str) -> None:
    fetching = Fetching(9, most_bytes=20)
    ahead, other = FetchAhead(fetching.queue), FetchAhead(fetching.queue)
    ahead.ask(fetching.paths[:8])
    assert wait_until(lambda: len(fetching.begun) == 2)
    other.ask(fetching.paths[8:])
    if how == "closed":
        ahead.close()
        ahead.close()
    del ahead
    gc.collect()
    fetching.gate.release(9)
    assert wait_until(lambda: not threads())
    assert sorted(fetching.begun) == [*fetching.paths[:2], "file-8"]  # another stream's file is fetched all the same


# Into a folder of copies.


def test_what_is_asked_for_is_there_when_it_is_read(folder: Path, asked: Counter[str], tmp_path: Path) -> None:
    cache = open_cache(URL, cache_dir=tmp_path / "copies")
    ahead = cache.files.ahead()
    ahead.ask(labels_of(cache))
    read_all(cache)  # overtakes the threads, or waits for them
    assert {path: times for path, times in asked.items() if "/c." in path} == dict.fromkeys(labels_of(cache), 1)
    assert wait_until(lambda: not threads())
    before = asked.total()
    ahead.ask(labels_of(cache))
    assert not threads()  # there is nothing for them to do
    ahead.close()
    read_all(cache)
    assert asked.total() == before


def test_copies_stay_within_bounds_while_they_are_fetched(folder: Path, asked: Counter[str], tmp_path: Path) -> None:
    sizes = [record.size for path, record in open_cache(folder).file_records().items() if "/c." in path]
    most = 3 * max(sizes)
    cache = open_cache(URL, cache_dir=tmp_path / "copies", cache_bytes=most)
    seen: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            seen.append(bytes_in(tmp_path / "copies"))

    watching = threading.Thread(target=watch)
    watching.start()
    for _ in range(2):
        ahead = cache.files.ahead()
        ahead.ask(labels_of(cache))
        read_all(cache)
        ahead.close()
    ended.set()
    watching.join()
    # A file that has just arrived is counted with its reservation, for a moment.
    assert max(sizes) < max(seen) <= most + THREADS * max(sizes)
    assert wait_until(lambda: not threads()) and bytes_in(tmp_path / "copies") <= most
    # Nothing that was fetched for the stream made room for something else before it was read.
    assert {times for path, times in asked.items() if path in labels_of(cache)} == {2}


def test_damage_found_ahead_is_named_where_the_part_is_read(folder: Path, asked: Counter[str], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    cache = open_cache(URL, cache_dir=tmp_path / "copies")
    path = labels_of(cache)[2]
    sound = memory.cat_file(f"/ahead/cache/{path}")
    memory.pipe_file(f"/ahead/cache/{path}", sound[:-1] + bytes([sound[-1] ^ 1]))
    ahead = cache.files.ahead()
    ahead.ask(labels_of(cache))
    assert wait_until(lambda: not threads())
    cache.read_part(1)
    memory.pipe_file(f"/ahead/cache/{path}", sound)
    with pytest.raises(CacheCorruptError, match=r"c\.2"):
        cache.read_part(2)
    ahead.close()
    read_all(cache)


def test_what_a_killed_process_left_is_cleared_away(folder: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    cache = open_cache(URL, cache_dir=copies)
    record = cache.file_records()[labels_of(cache)[0]]
    left = [copies / record.sha256[:2] / f"{record.sha256}{suffix}" for suffix in (".partial", ".room")]
    left += [copies / "zz" / f"{'z' * 64}{suffix}" for suffix in (".partial", ".room")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 100)
    read_all(cache)
    assert not [path for path in left if path.exists()]


def test_without_room_files_are_read_without_a_copy(folder: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    cache = open_cache(URL, cache_dir=copies, cache_bytes=10_000)
    (copies / "zz").mkdir(parents=True)
    (copies / "zz" / f"{'z' * 64}.room").write_bytes(b"x" * 10_000)
    with FileLock(copies / "zz" / "claim.lock"):  # another process is fetching a large file
        read_all(cache)
        assert bytes_in(copies) == 10_000
    read_all(cache)
    assert 0 < bytes_in(copies) < 10_000
