"""A process that may die at any instant, and what the one that watches it sees of that."""

from __future__ import annotations

import functools
import mmap
import os
import signal
import stat
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from pipeline import outputs
from pipeline.workspace import MARK, Workspace

LONGEST_SECONDS = 60


class Aim(NamedTuple):
    """A child's own death at the ``number``-th entry of ``phase``; "in the middle" after ``share`` of its mean time."""

    phase: str
    number: int
    where: str
    share: float


class Watch:
    """What a child does, in memory that its parent reads; and where the child is to kill itself."""

    def __init__(self, phases: tuple[str, ...], pieces: int) -> None:
        n = len(phases)
        board = np.frombuffer(mmap.mmap(-1, 8 * (3 + 2 * n + pieces)), np.int64)
        self.phases, self.aim = phases, None
        self.inside, self.resumed = board[:2], board[2:3]  # inside: a bit per phase, of the main and of other threads
        self.entered, self.nanoseconds, self.asked = board[3 : 3 + n], board[3 + n : 3 + 2 * n], board[3 + 2 * n :]
        self._thread = threading.local()

    def active(self) -> list[str]:
        """The phases that the child is in, or was in when it died."""
        return [phase for n, phase in enumerate(self.phases) if int(self.inside[0] | self.inside[1]) >> n & 1]

    def around(self, phase: str, real: Callable[..., Any], *, cover: bool = False, fine: bool = False) -> Any:
        """``real``, watched. Whatever happens within a phase that covers counts as an entry of that phase.

        What is ``fine`` counts within another phase only: not what the run does to files for its own ends.
        """

        @functools.wraps(real)
        def watched(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(self._thread, "cover", None)
            name, thread = outer or phase, int(threading.current_thread() is not threading.main_thread())
            inside, began = int(self.inside[thread]), time.perf_counter_ns()
            if name not in self.phases or (fine and not inside):
                return real(*args, **kwargs)
            number = self.phases.index(name)
            self.inside[thread] |= 1 << number
            self.entered[number] += 1
            aimed = self.aim is not None and self.aim[:2] == (name, self.entered[number])
            if aimed:
                self._aim_at(number, real, args)
            self._thread.cover = name if cover else outer
            try:
                result = real(*args, **kwargs)
            finally:
                self._thread.cover = outer
            if aimed:
                die()
            self.nanoseconds[number] += time.perf_counter_ns() - began
            self.inside[thread] = inside
            return result

        return watched

    def _aim_at(self, number: int, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self.aim.where == "before":
            die()
        if self.aim.where == "in the middle of":
            if real.__name__ == "fsync" and stat.S_ISREG(os.fstat(args[0]).st_mode):
                os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)  # what a kill within a long write leaves
                die()
            wait = self.aim.share * self.nanoseconds[number] / 1e9 / max(1, self.entered[number] - 1)
            threading.Thread(target=lambda: (time.sleep(wait), die()), daemon=True).start()

    def files(self) -> None:
        """Patch, in a child, what every stage does with files. Nothing is put back: the child is thrown away."""
        os.fsync, os.replace = self.around("write", os.fsync, fine=True), self.around("rename", os.replace, fine=True)
        for name in ("rename", "unlink", "rmdir"):
            setattr(os, name, self.around("", getattr(os, name)))
        Workspace.commit = self.around("commit", Workspace.commit, cover=True)
        outputs.write_atomic = self.around("report", outputs.write_atomic, cover=True)


def fork(body: Callable[[], Any]) -> int:
    """A child that does ``body`` and nothing else; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.alarm(LONGEST_SECONDS)
        body()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def complete(body: Callable[[], Any]) -> None:
    """``body`` in a child, undisturbed."""
    assert os.waitpid(fork(body), 0)[1] == 0, "see its error above"


def die() -> NoReturn:
    while True:
        os.kill(os.getpid(), signal.SIGKILL)


def scratch(out: Path) -> list[Path]:
    """Where unfinished work on ``out`` is kept, if there is any."""
    found = out.parent.glob(f".{out.name}{MARK}*")
    return [path for path in found if path.is_dir() and path != replaced(out)]


def replaced(out: Path) -> Path:
    """Where a commit keeps what was at ``out`` until its successor is there."""
    return out.with_name(f".{out.name}{MARK}old")
