"""Output directories that appear whole or not at all, and survive a kill half way.

Work happens in a scratch directory beside the output, on the same filesystem and named after what is being made,
under a file lock. Nothing but a finished ``commit`` touches the output, so a killed run resumes from its scratch and
a pipeline tool that deletes incomplete outputs (DVC does) cannot delete the work.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from pipeline.errors import BusyError, ConfigError, DiskFullError, some

MARK = ".softlabels-"

JOINING_SECONDS = 120.0
"""How long a process waits for others to join, or to finish: seconds for either, unless one works alone."""

_HARMLESS = (".gitignore", ".gitkeep")
"""What a repository keeps in a folder of outputs; no reason to take it for somebody else's."""


_FULL = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
"""What the system says when a disk, a quota or a limit on file sizes is reached."""


def user_cache(name: str) -> Path:
    """Where this user keeps what can be had again: ``$XDG_CACHE_HOME/softlabels/name``, by default in ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "softlabels" / name


@contextlib.contextmanager
def room_for(path: Path, needed: int) -> Iterator[None]:
    """Turn the system's word that ``needed`` bytes do not fit at ``path`` into DiskFullError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFullError) or error.errno not in _FULL:
            raise
        free, left = _left(path)
        remedy = "raise the limit on file sizes" if error.errno == errno.EFBIG else "make room"
        raise DiskFullError(
            f"{path} takes {needed:,} bytes and cannot be written: {error.strerror}; {left}. What was finished is "
            f"kept: {remedy} and run the same command again, or name another place",
            path,
            needed,
            free,
            error.errno or errno.ENOSPC,
        ) from error


def _left(path: Path) -> tuple[int, str]:
    """What is left on the disk that ``path`` lies on, or will: free bytes (0 when unknown), and in words."""
    for folder in path.absolute().parents:
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder).free
            if hasattr(os, "statvfs"):
                found = os.statvfs(folder)
                if found.f_files and not found.f_favail:
                    return free, f"no more files (inodes) fit on that disk, with {free:,} bytes free"
            return free, f"{free:,} bytes are free on that disk"
    return 0, "how much is free there is unknown"


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path`` so that a crash leaves the old file or the new one, on disk, never a mixture.

    Raises DiskFullError when there is no room for it.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with room_for(path, memoryview(data).nbytes):
        path.parent.mkdir(parents=True, exist_ok=True)
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

    def __enter__(self) -> Self:
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out should be a directory; {self.out} is a file. Name another place")
        if Path.cwd().is_relative_to(self.out):
            raise ConfigError(
                f"--out is replaced as a whole, and {self.out} is the current folder or holds it. Name another place"
            )
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._take()
        try:
            self._say_who()
            if self._old.exists() and not self.out.exists():
                os.rename(self._old, self.out)  # killed between the two renames of a commit
            self.path.mkdir(exist_ok=True)
        except BaseException:
            self._lock.release()  # a full disk, say: this process should not stand in its own way
            raise
        return self

    def _take(self) -> None:
        """Take the lock for this process alone. Raises BusyError naming who holds it."""
        self._acquire(0)
        held = list(self._members())
        if held:
            self._lock.release()
            raise BusyError(f"{self.out} is being written by {some(held)}. Wait for them, or stop them")

    def _acquire(self, seconds: float) -> None:
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            raise BusyError(f"{self.out} is being written by {self._holder()}. Wait for it, or stop it") from None

    def _members(self) -> Iterator[str]:
        """Those that share this output now (see SharedWorkspace); what the dead left behind goes."""
        for path in sorted(self.out.parent.glob(f".{glob.escape(self.out.name)}{MARK}member-*")):
            lock = FileLock(path, timeout=0)
            try:
                lock.acquire()
            except Timeout:
                host, _, pid = path.name.partition(f"{MARK}member-")[2].rpartition("-")
                yield f"process {pid} on {host}"
            else:
                path.unlink(missing_ok=True)
                lock.release()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self.path.rmdir()  # nothing was made in it: a wrong option, say
            self._let_go()
        # The lock file may go only while it is held by nobody else; leaving it behind is harmless, removing it
        # under a waiting process is not, so it stays until `cache gc`.

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):
            self._holder_path.unlink()
        self._lock.release()

    def _say_who(self) -> None:
        write_atomic(self._holder_path, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())

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


class SharedWorkspace(Workspace):
    """A workspace that several processes use at once, on one machine or on several that share the filesystem.

    ``with`` takes the lock, as for one process alone, until ``join`` lets the next one in; ``alone`` takes it again, to
    finish. Raises BusyError while a process that shares with nobody is writing ``out``.
    """

    def __init__(self, out: Path, identity: str) -> None:
        super().__init__(out, identity)
        own = f".{self.out.name}{MARK}member-{socket.gethostname()}-{os.getpid()}"
        self._member = FileLock(self.out.parent / own, timeout=0)

    def _take(self) -> None:
        self._acquire(JOINING_SECONDS)

    def join(self) -> None:
        """Let others in. Until this process leaves, nobody can have the output for itself alone."""
        self._member.acquire()
        self._let_go()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The lock again, once nobody is joining or finishing."""
        self._take()
        try:
            self._say_who()
            yield
        finally:
            self._let_go()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._member.is_locked:
            with contextlib.suppress(OSError):
                Path(self._member.lock_file).unlink()
            self._member.release()
        super().__exit__(kind, error, trace)


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
            out = lock_path.with_name(name.removeprefix(".").removesuffix(MARK))
            if any(Workspace(out, "")._members()):
                continue
            kept = {lock_path}
            if not out.exists():
                kept.add(lock_path.with_name(f"{name}old"))
            for pattern in (f"{glob.escape(name)}*", f"{glob.escape(out.name)}.report.json.*.partial"):
                yield from sorted(p for p in lock_path.parent.glob(pattern) if p not in kept)
            yield lock_path
        finally:
            lock.release()
