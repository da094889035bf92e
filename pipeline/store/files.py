"""Reading files by their path within a cache, from a local folder or through fsspec.

Every path is checked here before it touches a filesystem: it stays inside the cache, whatever a manifest says.
"""

from __future__ import annotations

import io
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from pipeline.errors import CacheCorruptError, CacheIncompleteError, CacheNotFoundError, MissingDependencyError

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


class Files(ABC):
    """The files of one cache."""

    address: str

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Bytes of a file; None when there is no regular file."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """A file for ranged reads, unbuffered where it is local."""

    @abstractmethod
    def whole(self, path: str) -> BinaryIO:
        """A file that will be read from end to end: one request where it is remote."""

    @abstractmethod
    def listing(self) -> list[str]:
        """Paths of all files of the cache."""

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

    def _full(self, path: str) -> str:
        return f"{self.root}/{safe_path(path)}"

    def size(self, path: str) -> int | None:
        try:
            found = self.filesystem.info(self._full(path))
        except FileNotFoundError:
            return None
        return int(found["size"]) if found.get("type") == "file" else None

    def open(self, path: str) -> BinaryIO:
        return cast(BinaryIO, self.filesystem.open(self._full(path), "rb"))

    def whole(self, path: str) -> BinaryIO:
        return io.BytesIO(self.filesystem.cat_file(self._full(path)))

    def listing(self) -> list[str]:
        found = self.filesystem.find(self.root)
        return sorted(str(PurePosixPath(str(p)).relative_to(self.root)) for p in found)
