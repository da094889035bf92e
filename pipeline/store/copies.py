"""Files of a cache at a URL, copied into a bounded folder of this machine when they are first read whole.

A copy is named after its sha256 and held to it on arrival: what is there is what was committed, whichever cache it
belongs to, and processes share it. The least recently used go when room is needed.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

from filelock import FileLock

from pipeline.store.arrival import fetch_file
from pipeline.store.files import Files
from pipeline.store.parts import FileRecord
from pipeline.store.remote import PatientFiles
from pipeline.workspace import user_cache

DEFAULT_BYTES = 16 << 30
_TRIES = 4


def default_folder() -> Path:
    """Where copies are kept unless something else is said: softlabels/parts in the user's cache folder."""
    return user_cache("parts")


class CopiedFiles(Files):
    """The files of ``remote``; those of ``records`` are copied into ``folder``, at most ``most_bytes`` in all.

    Ranged reads use a copy where there is one, and go to the URL otherwise: looking at one row fetches no whole file.
    """

    def __init__(
        self, remote: PatientFiles, records: Mapping[str, FileRecord], folder: Path, most_bytes: int = DEFAULT_BYTES
    ) -> None:
        self.address = remote.address
        self.folder = Path(folder)
        self.most_bytes = most_bytes
        self._remote, self._records = remote, records

    def size(self, path: str) -> int | None:
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
        if record.size > self.most_bytes:
            return io.BytesIO(b"".join(self._remote.blocks(path, record.size)))
        for _ in range(_TRIES):
            self._fetch(path, record)
            with contextlib.suppress(FileNotFoundError):  # another process has made room of it
                return self._used(record)
        raise self.corrupt(path, f"its copy in {self.folder} goes as soon as it is there: give --cache-bytes more room")

    def listing(self) -> list[str]:
        return self._remote.listing()

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

    def _fetch(self, path: str, record: FileRecord) -> None:
        if self._there(record):
            return
        place = self._place(record)
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f"{place.name}.lock"), thread_local=False):
            if not self._there(record):
                self._make_room(record.size)
                try:
                    fetch_file(self._remote, path, record, place)
                finally:
                    place.with_name(f"{place.name}.partial").unlink(missing_ok=True)

    def _make_room(self, needed: int) -> None:
        """Remove the copies used longest ago until ``needed`` bytes more are within the limit."""
        copies: list[tuple[float, int, Path]] = []
        for place in self.folder.glob("??/*"):
            if place.suffix not in (".lock", ".partial"):
                with contextlib.suppress(FileNotFoundError):
                    found = place.stat()
                    copies.append((found.st_mtime, found.st_size, place))
        total = sum(size for _, size, _ in copies)
        for _, size, place in sorted(copies):
            if total + needed <= self.most_bytes:
                return
            with contextlib.suppress(OSError):  # open elsewhere, where the system minds
                place.unlink()
                place.with_name(f"{place.name}.lock").unlink(missing_ok=True)
                total -= size
