"""Reading files by their path within a cache, from a local folder or through fsspec.

Every path is checked here before it touches a filesystem: it stays inside the cache, whatever a manifest says.
"""

from __future__ import annotations

import io
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from pipeline.errors import (
    CacheCorruptError,
    CacheError,
    CacheIncompleteError,
    CacheNotFoundError,
    MissingDependencyError,
)

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def safe_name(name: str) -> bool:
    """Whether ``name`` can be a folder's name anywhere: letters, digits, ``_ . + -``, no leading dot, 100 at most."""
    return len(name) <= 100 and _SAFE.fullmatch(name) is not None and not name.endswith(".")


def safe_path(path: str) -> str:
    """``path`` if it is a plain relative path; CacheCorruptError otherwise (``..``, absolute, drives, odd names)."""
    pieces = path.split("/")
    if not pieces or not all(safe_name(piece) for piece in pieces):
        shown = f"{path[:200]!r}{'...' if len(path) > 200 else ''}"
        raise CacheCorruptError(f"the cache names a file {shown}, which is no plain path within it. Do not use it")
    return path


class RangeFile(io.RawIOBase):
    """A file of ``size`` bytes elsewhere, read by ``fetch(start, end)``: a read is a request for its bytes, no more.

    No reading ahead: that of fsspec's files takes 5 to 50 MB where a row needs a chunk. For one thread at a time.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self.size, self._place = fetch, size, 0
        self._held, self._held_from = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def hold(self, start: int, end: int) -> None:
        """Get these bytes in one request; reads within them take them from memory."""
        self._held, self._held_from = self._fetch(start, end), start

    def readinto(self, into: Any) -> int:
        view = memoryview(into).cast("B")
        data = self._some(min(view.nbytes, max(0, self.size - self._place)))
        view[: len(data)] = data
        self._place += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = self._some(max(0, self.size - self._place))
        self._place += len(data)
        return data

    def _some(self, count: int) -> bytes:
        first = self._place - self._held_from
        if first >= 0 and first + count <= len(self._held):
            return self._held[first : first + count]
        # What a store sends beyond what it was asked for must not run over.
        return self._fetch(self._place, self._place + count)[:count] if count else b""


class Ahead:
    """Tells the files which of them will be read whole soon. Nothing comes of it where they are near."""

    def ask(self, paths: Iterable[str]) -> None:
        """``paths`` will be read, in this order, after those asked for before."""

    def close(self) -> None:
        """Nothing that was asked for is wanted any more. May be called twice."""


class Files(ABC):
    """The files of one cache."""

    address: str

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Bytes of a file; None when there is no regular file."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """A file for ranged reads, unbuffered: a read is a system call, or a request."""

    @abstractmethod
    def whole(self, path: str) -> BinaryIO:
        """A file that will be read from end to end: one request where it is remote."""

    @abstractmethod
    def listing(self) -> list[str]:
        """Paths of all files of the cache."""

    def ahead(self) -> Ahead:
        """For whoever reads many files, one after the other."""
        return Ahead()

    def read(self, path: str, size: int | None = None, limit: int | None = None) -> bytes:
        """All bytes of a file of ``size`` bytes (when known) and at most ``limit``.

        Raises CacheIncompleteError when it is not there, CacheCorruptError when its size is another.
        """
        self.check_size(path, size, limit)
        try:
            with self.whole(path) as file:
                return file.read()
        except OSError as error:
            raise self.unreadable(path, error) from error

    def check_size(self, path: str, size: int | None = None, limit: int | None = None) -> int:
        """The size of a file, found to be ``size`` (when known) and at most ``limit``. Raises as ``read`` does."""
        try:
            found = self.size(path)
        except OSError as error:
            raise self.unreadable(path, error) from error
        if found is None:
            raise CacheIncompleteError(
                f"{self.where(path)} is missing. Fetch the cache again, or dump again to restore it"
            )
        if size is not None and found != size:
            raise self.corrupt(path, f"it should have {size:,} bytes and has {found:,}")
        if limit is not None and found > limit:
            raise self.corrupt(path, f"it has {found:,} bytes where {limit:,} are the most that is sensible")
        return found

    def where(self, path: str) -> str:
        """A file's full name, for people."""
        return f"{self.address.rstrip('/')}/{path}"

    def corrupt(self, path: str, what: str) -> CacheCorruptError:
        """The error for a file that is not what was committed."""
        return CacheCorruptError(
            f"{self.where(path)} is damaged: {what}. Fetch that file again, or dump again to restore it"
        )

    def unreadable(self, path: str, error: Exception) -> CacheCorruptError:
        """The error for a file that the system or a codec fails to read."""
        return self.corrupt(path, f"reading it failed with {type(error).__name__}: {error}")


class LocalFiles(Files):
    """Files under a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = str(root)

    def size(self, path: str) -> int | None:
        try:
            found = (self.root / safe_path(path)).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # a link to itself, a folder that may not be entered
            raise self.unreadable(path, error) from error
        # A link may lead elsewhere (DVC links into its own store), but a device or a pipe is never a cache file.
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def open(self, path: str) -> BinaryIO:
        return cast(BinaryIO, open(self.root / safe_path(path), "rb", buffering=0))

    def whole(self, path: str) -> BinaryIO:
        return self.open(path)

    def listing(self) -> list[str]:
        found = (p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_symlink() or not p.is_dir())
        # A name need not be UTF-8, and reports are.
        return sorted(os.fsencode(path).decode(errors="backslashreplace") for path in found)


class MemoryFiles(Files):
    """Files that are not written yet."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self.contents = contents
        self.address = "memory"

    def size(self, path: str) -> int | None:
        return len(self.contents[path]) if path in self.contents else None

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self.contents[path])

    def whole(self, path: str) -> BinaryIO:
        return self.open(path)

    def listing(self) -> list[str]:
        return sorted(self.contents)


class RemoteFiles(Files):
    """Files under an fsspec URL."""

    def __init__(self, address: str, options: Mapping[str, Any] | None = None) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise MissingDependencyError(f"{address} needs fsspec: pip install fsspec") from error
        try:
            filesystem, root = fsspec.core.url_to_fs(address, **(options or {}))
        except ImportError as error:
            raise MissingDependencyError(f"{address} needs another package: {error}") from error
        except ValueError as error:
            raise CacheNotFoundError(f"{address} is no address that fsspec knows: {error}") from error
        self.filesystem: Any = filesystem
        self.root = str(root).rstrip("/")
        self.address = address.rstrip("/")
        self._sizes: dict[str, int | None] = {}

    def _full(self, path: str) -> str:
        return f"{self.root}/{safe_path(path)}"

    def size(self, path: str) -> int | None:
        try:
            return self._look(path)
        except FileNotFoundError:
            return None

    def _look(self, path: str) -> int | None:
        """The size of a regular file, None for anything else. Raises FileNotFoundError where nothing is."""
        found = self.filesystem.info(self._full(path))
        if found.get("type") == "file" and found.get("size") is None:
            raise CacheError(f"{self.where(path)}: its server does not say how long it is. Name another URL")
        self._sizes[path] = size = int(found["size"]) if found.get("type") == "file" else None
        return size

    def open(self, path: str) -> BinaryIO:
        size = self._sizes.get(path)
        size = self.size(path) if size is None else size
        if size is None:
            raise FileNotFoundError(self.where(path))
        return cast(BinaryIO, RangeFile(lambda start, end: self.ranged(path, start, end), size))

    def ranged(self, path: str, start: int, end: int) -> bytes:
        """The bytes of a file from ``start`` to before ``end``: one request."""
        data: bytes = self.filesystem.cat_file(self._full(path), start=start, end=end)
        # A plain web server may not know ranges, and sends the whole file.
        return data if len(data) <= end - start else data[start:end]

    def whole(self, path: str) -> BinaryIO:
        return io.BytesIO(self.filesystem.cat_file(self._full(path)))

    def listing(self) -> list[str]:
        found = self.filesystem.find(self.root)
        return sorted(str(PurePosixPath(str(p)).relative_to(self.root)) for p in found)
