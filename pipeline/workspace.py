"""Output directories that appear whole or not at all, and survive a kill half way.

Work happens in a scratch directory beside the output, on the same filesystem and named after what is being made,
under a file lock. Nothing but a finished ``commit`` touches the output, so a killed run resumes from its scratch and
a pipeline tool that deletes incomplete outputs (DVC does) cannot delete the work.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from pipeline.errors import BusyError, ConfigError

MARK = ".softlabels-"


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path`` so that a crash leaves the old file or the new one, on disk, never a mixture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the platform can."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Workspace:
    """A scratch directory for making ``out``; ``with`` takes the lock, ``commit`` puts the result in place.

    ``identity`` is a digest of everything that decides what is made: another identity gets another scratch
    directory, the same one finds its own again. Raises BusyError when another process is making ``out``.
    """

    def __init__(self, out: Path, identity: str) -> None:
        self.out = Path(os.path.abspath(out))
        self.path = self.out.parent / f".{self.out.name}{MARK}{identity[:16]}"
        self._lock_path = self.out.parent / f".{self.out.name}{MARK}lock"
        self._holder_path = self.out.parent / f".{self.out.name}{MARK}holder"
        self._lock = FileLock(self._lock_path, timeout=0)

    def __enter__(self) -> Workspace:
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out should be a directory; {self.out} is a file. Name another place")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise BusyError(f"{self.out} is being written by {self._holder()}. Wait for it, or stop it") from None
        self._holder_path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self.path.mkdir(exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._holder_path.unlink()
        self._lock.release()
        # The lock file may go only while it is held by nobody else; leaving it behind is harmless, removing it
        # under a waiting process is not, so it stays until `cache gc`.

    def _holder(self) -> str:
        try:
            holder = json.loads(self._holder_path.read_text())
            return f"process {int(holder['pid'])} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def commit(self) -> None:
        """Rename the scratch directory to ``out``, replacing what was there, and make it durable."""
        old = self.out.with_name(f".{self.out.name}{MARK}old")
        shutil.rmtree(old, ignore_errors=True)
        if self.out.exists():
            os.rename(self.out, old)
        os.rename(self.path, self.out)
        sync_directory(self.out.parent)
        shutil.rmtree(old, ignore_errors=True)


def leftovers(folder: Path) -> Iterator[Path]:
    """Scratch directories, locks and half-replaced outputs under ``folder`` that no running process holds."""
    for lock_path in sorted(folder.rglob(f".*{MARK}lock")):
        name = lock_path.name[: -len("lock")]
        lock = FileLock(lock_path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue
        try:
            yield from sorted(p for p in lock_path.parent.glob(f"{name}*") if p != lock_path)
            yield lock_path
        finally:
            lock.release()
