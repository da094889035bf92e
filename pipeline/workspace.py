"""Output directories that appear whole or not at all, and survive a kill half way.

Work happens in a scratch directory beside the output, on the same filesystem and named after what is being made,
under a file lock. Nothing but a finished ``commit`` touches the output, so a killed run resumes from its scratch and
a pipeline tool that deletes incomplete outputs (DVC does) cannot delete the work.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from pipeline.errors import BusyError, ConfigError, some

MARK = ".softlabels-"

_HARMLESS = (".gitignore", ".gitkeep")
"""What a repository keeps in a folder of outputs; no reason to take it for somebody else's."""


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
    directory, the same one finds its own again. Raises BusyError when another process is making ``out``, ConfigError
    when ``out`` is a file, or a folder that one works in: it is replaced as a whole.
    """

    def __init__(self, out: Path, identity: str) -> None:
        # Where a link leads: scratch must lie on the filesystem of what it becomes, and the link must stay a link.
        self.out = Path(os.path.realpath(out))
        self.path = self.out.parent / f".{self.out.name}{MARK}{identity[:16]}"
        self._old = self.out.parent / f".{self.out.name}{MARK}old"
        self._lock_path = self.out.parent / f".{self.out.name}{MARK}lock"
        self._holder_path = self.out.parent / f".{self.out.name}{MARK}holder"
        self._lock = FileLock(self._lock_path, timeout=0)

    def __enter__(self) -> Workspace:
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out should be a directory; {self.out} is a file. Name another place")
        if Path.cwd().is_relative_to(self.out):
            raise ConfigError(
                f"--out is replaced as a whole, and {self.out} is the current folder or holds it. Name another place"
            )
        self.out.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise BusyError(f"{self.out} is being written by {self._holder()}. Wait for it, or stop it") from None
        self._holder_path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        if self._old.exists() and not self.out.exists():
            os.rename(self._old, self.out)  # killed between the two renames of a commit
        self.path.mkdir(exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._holder_path.unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()  # nothing was made in it: a wrong option, say
        self._lock.release()
        # The lock file may go only while it is held by nobody else; leaving it behind is harmless, removing it
        # under a waiting process is not, so it stays until `cache gc`.

    def _holder(self) -> str:
        try:
            holder = json.loads(self._holder_path.read_text())
            return f"process {int(holder['pid'])} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def clear(self) -> None:
        """Start over: whatever a killed run left in the scratch directory goes."""
        shutil.rmtree(self.path)
        self.path.mkdir()

    def commit(self) -> None:
        """Rename the scratch directory to ``out``, replacing what was there, and make it durable."""
        shutil.rmtree(self._old, ignore_errors=True)
        if self.out.exists():
            os.rename(self.out, self._old)
        os.rename(self.path, self.out)
        sync_directory(self.out.parent)
        shutil.rmtree(self._old, ignore_errors=True)


def refuse_strangers(out: Path, own: Sequence[str]) -> None:
    """Raise ConfigError when ``out`` holds anything but files of the names ``own`` (patterns are allowed).

    For stages that replace their earlier result without being asked: what they did not write is not theirs to delete.
    """
    if not out.is_dir():
        return
    names = sorted(p.name + "/" * p.is_dir() for p in out.iterdir())
    odd = [n for n in names if n not in _HARMLESS and not any(fnmatch.fnmatchcase(n, pattern) for pattern in own)]
    if odd:
        raise ConfigError(
            f"--out {out} holds {some(odd)}, which this command does not write, and it replaces the whole folder. Name "
            "another place, or empty that one"
        )


def leftovers(folder: Path) -> Iterator[Path]:
    """Scratch directories, locks and replaced outputs under ``folder`` that no running process holds.

    An output that was being replaced, and whose successor is not in place, is no leftover: the next run puts it back.
    """
    for lock_path in sorted(folder.rglob(f".*{MARK}lock")):
        name = lock_path.name[: -len("lock")]
        lock = FileLock(lock_path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue
        try:
            kept = {lock_path}
            if not (lock_path.parent / name.removeprefix(".").removesuffix(MARK)).exists():
                kept.add(lock_path.parent / f"{name}old")
            yield from sorted(p for p in lock_path.parent.glob(f"{glob.escape(name)}*") if p not in kept)
            yield lock_path
        finally:
            lock.release()
