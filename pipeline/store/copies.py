"""Files of a cache at a URL, copied into a bounded folder of this machine when they are first read whole.

A copy is named after its sha256 and held to it on arrival: what is there is what was committed, whichever cache it
belongs to, and processes share it. The least recently used go when room is needed.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

from filelock import FileLock, Timeout

from pipeline.store.ahead import FetchAhead, FetchQueue
from pipeline.store.arrival import fetch_bytes, fetch_file
from pipeline.store.files import Ahead, Files
from pipeline.store.parts import FileRecord
from pipeline.store.remote import PatientFiles
from pipeline.workspace import user_cache

DEFAULT_BYTES = 16 << 30
_TRIES = 4
_POLL = 0.005
_CLAIM = "claim.lock"
"""Held by who fetches a file into the folder that it lies in, one of 256."""

_RESERVED = ".room"
"""A hole as large as the file that is on its way."""

_UNFINISHED = (".partial", _RESERVED)


def default_folder() -> Path:
    """Where copies are kept unless something else is said: softlabels/parts in the user's cache folder."""
    return user_cache("parts")


class CopiedFiles(Files):
    """The files of ``remote``; those of ``records`` are copied into ``folder``, at most ``most_bytes`` in all.

    Ranged reads use a copy where there is one, and go to the URL otherwise: looking at one row fetches no whole file.
    What is asked for ahead is fetched by threads of its own. Where there is no room, files are read without a copy.
    """

    def __init__(
        self, remote: PatientFiles, records: Mapping[str, FileRecord], folder: Path, most_bytes: int = DEFAULT_BYTES
    ) -> None:
        self.address = remote.address
        self.folder = Path(folder)
        self.most_bytes = most_bytes
        self._remote, self._records = remote, records
        self._room = threading.Lock()
        self._queue = FetchQueue(self._fetch_ahead, self._is_there, records, most_bytes)

    def size(self, path: str) -> int | None:
        self._queue.settle(path)
        record = self._records.get(path)
        return record.size if record is not None and self._there(record) else self._remote.size(path)

    def open(self, path: str) -> BinaryIO:
        record = self._records.get(path)
        if record is not None and self._there(record):
            with contextlib.suppress(FileNotFoundError):
                return self._used(record)
        return self._remote.open(path)

    def whole(self, path: str) -> BinaryIO:
        """Raises CacheIncompleteError or CacheCorruptError when it does not arrive as committed, DiskFullError."""
        record = self._records.get(path)
        if record is None:
            return self._remote.whole(path)
        try:
            self._queue.turn(path)
            for _ in range(_TRIES if record.size <= self.most_bytes else 0):
                if not self._fetch(path, record, ahead=False):
                    break
                with contextlib.suppress(FileNotFoundError):  # another process has made room of it
                    return self._used(record)
            return io.BytesIO(fetch_bytes(self._remote, path, record))
        finally:
            self._queue.read(path)

    def listing(self) -> list[str]:
        return self._remote.listing()

    def ahead(self) -> Ahead:
        return FetchAhead(self._queue)

    def _place(self, record: FileRecord) -> Path:
        return self.folder / record.sha256[:2] / record.sha256

    def _there(self, record: FileRecord) -> bool:
        place = self._place(record)
        return place.is_file() and place.stat().st_size == record.size

    def _used(self, record: FileRecord) -> BinaryIO:
        place = self._place(record)
        with contextlib.suppress(OSError):
            os.utime(place)  # the last use, by which copies are chosen to go
        return cast(BinaryIO, open(place, "rb", buffering=0))

    def _is_there(self, path: str) -> bool:
        """Whether there is a copy; if so, it is about to be used."""
        record = self._records[path]
        if not self._there(record):
            return False
        with contextlib.suppress(OSError):
            os.utime(self._place(record))
        return True

    def _fetch_ahead(self, path: str) -> None:
        if not self._is_there(path):
            self._fetch(path, self._records[path], ahead=True)

    def _fetch(self, path: str, record: FileRecord, *, ahead: bool) -> bool:
        """Have a copy; False when there is no room for it. What others will read soon makes room only for a reader."""
        if self._there(record):
            return True
        place = self._place(record)
        place.parent.mkdir(parents=True, exist_ok=True)
        claim = FileLock(place.with_name(_CLAIM), thread_local=False, poll_interval=_POLL)
        with claim:
            if self._there(record):
                return True
            kept = {self._place(self._records[each]).name for each in self._queue.unread()}
            if not self._make_room(place, record.size, kept, spare=ahead):
                return False
            try:
                fetch_file(self._remote, path, record, place)
            finally:
                for suffix in _UNFINISHED:
                    place.with_name(place.name + suffix).unlink(missing_ok=True)
        return True

    def _make_room(self, place: Path, needed: int, kept: set[str], *, spare: bool) -> bool:
        """Reserve ``needed`` bytes for ``place``, whose claim is held; False if the limit leaves no room.

        The copies used longest ago go, those in ``kept`` last of all, or not at all to ``spare`` them.
        """
        with self._room, FileLock(self.folder / "room.lock", thread_local=False, poll_interval=_POLL):
            total, copies = 0, []
            for each in self.folder.glob("??/*"):
                with contextlib.suppress(FileNotFoundError):
                    found = each.stat()
                    if each.suffix in _UNFINISHED:
                        if self._left_behind(each, place):
                            each.unlink()
                        elif each.suffix == _RESERVED:
                            total += found.st_size
                    elif each.name != _CLAIM:
                        total += found.st_size
                        copies.append((each.name in kept, found.st_mtime, found.st_size, each))
            for wanted, _, size, copy in sorted(copies):
                if total + needed <= self.most_bytes or (wanted and spare):
                    break
                with contextlib.suppress(OSError):  # open elsewhere, where the system minds
                    copy.unlink()
                    total -= size
            if total + needed > self.most_bytes:
                return False
            with open(place.with_name(place.name + _RESERVED), "wb") as file:
                file.truncate(needed)  # a hole: it takes no space
            return True

    def _left_behind(self, unfinished: Path, own: Path) -> bool:
        """Whether nobody is fetching it: a process was killed. ``own`` is what this thread has claimed."""
        if unfinished.parent == own.parent:
            return True
        try:
            with FileLock(unfinished.with_name(_CLAIM), thread_local=False, timeout=0):
                return unfinished.exists()
        except Timeout:
            return False
