"""Which parts a process does when several make one cache: each claims a part before it asks the teacher.

A claim is a file lock beside the scratch directory, which the system lets go of when its process dies. No process needs
to know of another; ranks of torchrun and the tasks of a batch array work the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.devices import torchrun_rank
from pipeline.errors import ConfigError
from pipeline.store import CacheWriter, Part


@dataclass(frozen=True)
class Share:
    """One of ``world`` processes that make a cache together: ``rank`` counts from 0.

    ``chosen``: the parts asked for by number (--parts), None for all. Only a process that does all of them, alone or as
    a rank, finishes the cache.
    """

    rank: int = 0
    world: int = 1
    chosen: str | None = None

    @classmethod
    def of_this_process(cls, chosen: str | None) -> Share:
        """What the environment says (torchrun sets RANK and WORLD_SIZE), and the parts that were asked for."""
        rank, world = torchrun_rank()
        return cls(rank, world, chosen)

    @property
    def shared(self) -> bool:
        """Whether other processes may be making the same cache."""
        return self.world > 1 or self.chosen is not None

    def parts(self, parts: Sequence[Part]) -> list[Part]:
        """The parts to look at, each rank beginning at another place. Raises ConfigError when there are none such."""
        numbers = range(len(parts)) if self.chosen is None else chosen_parts(self.chosen, len(parts))
        ordered = [parts[number] for number in numbers]
        first = self.rank * len(ordered) // self.world
        return ordered[first:] + ordered[:first]


def chosen_parts(text: str, count: int) -> range:
    """The numbers that ``--parts`` names among ``count``: FIRST:END, or I/N for every N-th from I on (I from 0).

    >>> list(chosen_parts("2:5", 10)), list(chosen_parts("1/4", 10)), list(chosen_parts("8:99", 10))
    ([2, 3, 4], [1, 5, 9], [8, 9])

    Raises ConfigError when it is neither, or names none.
    """
    found = range(0)
    for sign in (":", "/"):
        first, _, second = text.partition(sign)
        if first.isdecimal() and second.isdecimal():
            a, b = int(first), int(second)
            found = range(a, min(b, count)) if sign == ":" else range(a, count, b) if a < b else range(0)
    if not found:
        raise ConfigError(
            f"--parts should be FIRST:END (END left out) or I/N (every N-th from I on, I from 0), and name some of the "
            f"{count} parts; found {text!r}"
        )
    return found


def folder_of(scratch: Path) -> Path:
    """Where the claims on the parts of a scratch directory lie."""
    return scratch.with_name(f"{scratch.name}-claims")


class Claims:
    """The parts of ``share`` that nobody has written and nobody else is making, claimed one by one.

    Locks lie beside ``writer.folder``, not in it: a process that comes late must not make it anew.
    """

    def __init__(self, writer: CacheWriter, share: Share) -> None:
        self._folder = folder_of(writer.folder)
        self._writer = writer
        self._shared = share.shared
        self._parts = share.parts(writer.layout.parts)
        self._held: dict[int, FileLock] = {}
        if self._shared:
            self._folder.mkdir(exist_ok=True)

    def __iter__(self) -> Iterator[Part]:
        """Parts to make now. Those that others are making are left out: look again when this ends."""
        for part in self._parts:
            if self._writer.look(part.number) or not self._claim(part.number):
                continue
            # Whoever held the claim a moment ago may have finished the part since.
            if self._writer.look(part.number):
                self.release(part)
                continue
            yield part

    @property
    def left(self) -> int:
        """How many parts of the share are not written yet, by anybody."""
        return sum(not self._writer.look(part.number) for part in self._parts)

    def release(self, part: Part) -> None:
        """Let go of a claim: the part is written, or somebody else may try."""
        lock = self._held.pop(part.number, None)
        if lock is not None:
            lock.release()

    def _claim(self, number: int) -> bool:
        if not self._shared:
            return True
        # Released by the thread that writes, not by the one that claims.
        lock = FileLock(self._folder / f"part-{number:05d}.lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return False
        self._held[number] = lock
        return True
