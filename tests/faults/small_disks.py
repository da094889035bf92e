"""Disks that are soon full: a small tmpfs with a ballast on it, and what stands in for it, a limit on file sizes."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
from pathlib import Path

SIZE = 8 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
MOUNT = 'mount -t tmpfs -o size="$0" tmpfs "$1" && shift && exec "$@"'


def namespace() -> list[str]:
    """The command that starts another where a tmpfs can be mounted for it alone; [] where there is none."""
    if shutil.which("unshare") is None:
        return []
    for flags in ("-Urm", "-m"):
        command = ["unshare", flags, "sh", "-c", MOUNT, "64k", "/tmp", "true"]
        if subprocess.run(command, capture_output=True).returncode == 0:
            return command[:2]
    return []


class Tmpfs:
    """A disk that a ballast fills up."""

    name = "full disk"
    said = "No space left on device"

    def __init__(self, folder: Path) -> None:
        self.folder, self.ballast = folder, folder / "ballast"

    def free(self) -> int:
        """Bytes that are left."""
        return shutil.disk_usage(self.folder).free

    def leave(self, room: int) -> None:
        """Leave ``room`` bytes, in whole pages."""
        self.lift()
        rest = self.free() - room // PAGE * PAGE
        if rest > 0:
            with open(self.ballast, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, rest)

    def lift(self) -> None:
        """Make room again."""
        self.ballast.unlink(missing_ok=True)

    def holds(self, needed: int, free: int) -> bool:
        """Whether what an error says is so: that many bytes are free now, and too few for the file."""
        return free <= self.free() and -(-needed // PAGE) * PAGE > free

    def room(self, random: random.Random, sizes: list[int], last: int, there: int) -> int:
        """Bytes with which a run that writes files of ``sizes`` fails in any of them alike, or in the ``last`` ones.

        ``there``: bytes that an earlier run wrote.
        """
        pages = [-(-size // PAGE) for size in sizes]
        missing = [n for n in range(len(sizes)) if sum(pages[:n]) * PAGE >= there] or [len(sizes) - 1]
        number = random.choice(missing if random.random() < 0.6 else missing[-last:])
        return max(0, (sum(pages[:number]) + random.randrange(pages[number])) * PAGE - there)


class Limit(Tmpfs):
    """A limit on the size of any file."""

    name = "limit on file sizes"
    said = "File too large"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def leave(self, room: int) -> None:
        self.limit = room
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, self.most))

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.most))

    def holds(self, needed: int, free: int) -> bool:
        return needed > self.limit and free > 0

    def room(self, random: random.Random, sizes: list[int], last: int, there: int) -> int:
        return random.randrange(max(sizes))


def paged(files: dict[str, bytes]) -> int:
    """Bytes that files take on a disk."""
    return sum(-(-len(data) // PAGE) * PAGE for data in files.values())
