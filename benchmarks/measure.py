"""Timing in turn, ratios with their spread, a description of the machine, and tables in Markdown.

A single timing on a shared machine says little. ``in_turn`` runs every contender once per round, in an order that
turns around from round to round, and ``ratio`` compares within each round before it takes the median.
"""

from __future__ import annotations

import datetime
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

Seconds = list[float]


@dataclass(frozen=True)
class Settings:
    """How much to measure. ``scratch`` is an empty folder for what a benchmark writes.

    ``only``: the sections to run, of a benchmark that has some; () runs all of them.
    """

    scratch: Path
    quick: bool = False
    only: tuple[str, ...] = ()

    def pick(self, full: int, quick: int) -> int:
        """``full``, or ``quick`` when only the plumbing is tried."""
        return quick if self.quick else full

    def chosen(self, sections: Collection[str]) -> list[str]:
        """Those of ``sections`` to run, in their order. Raises ValueError when ``only`` names one that is not there."""
        if unknown := sorted(set(self.only) - set(sections)):
            raise ValueError(f"there is no section {', '.join(unknown)}; there are {', '.join(sections)}")
        return [name for name in sections if name in (self.only or sections)]


@dataclass(frozen=True)
class Ratio:
    """The median over rounds, and the middle half of the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def error(self) -> float:
        """Standard error of the median of independent, normal rounds: 0.93 of their middle half over sqrt(rounds)."""
        return 0.93 * (self.high - self.low) / math.sqrt(self.rounds)

    def sure(self) -> str:
        """The median with twice its standard error, for a figure that is near its aim."""
        return f"median within {2 * self.error:.3f} ({self.rounds} rounds)"

    def __str__(self) -> str:
        digits = 3 if self.median < 2 else 1
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True)
class Row:
    """One line of a table. ``met`` is None where the figure is shown without an aim."""

    what: str
    on: str
    measured: str
    aim: str = "shown"
    met: bool | None = None


@dataclass(frozen=True)
class Table:
    """What one benchmark found. ``notes`` say what a reader must know to believe the figures."""

    title: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The table with its title and notes."""
        lines = [f"## {self.title}", "", "| what | on | measured | aim | met |", "|---|---|---|---|---|"]
        for row in self.rows:
            met = "" if row.met is None else "yes" if row.met else "no"
            cells = (row.what, row.on, row.measured, row.aim, met)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def synchronised(device: torch.device, action: Callable[[], object]) -> float:
    """How long one call takes, with all that it leaves for a GPU to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def in_turn(contenders: Mapping[str, Callable[[], float]], rounds: int, *, warm: int = 1) -> dict[str, Seconds]:
    """What each contender returned in each round: seconds, by its own clock, for a fixed amount of work.

    Odd rounds run in reverse, so that no contender always comes after the same one. ``warm`` rounds come first and
    are not kept.
    """
    kept: dict[str, Seconds] = {name: [] for name in contenders}
    for number in range(-warm, rounds):
        names = list(contenders)
        for name in reversed(names) if number % 2 else names:
            taken = contenders[name]()
            if number >= 0:
                kept[name].append(taken)
    return kept


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """The ratio of two contenders, compared round by round.

    >>> str(ratio([2.0, 4.0, 6.0], [2.0, 2.0, 2.0]))
    '2.0 (1.5 to 2.5)'
    """
    each = sorted(a / b for a, b in zip(over, under, strict=True))
    if len(each) == 1:
        return Ratio(each[0], each[0], each[0], 1)
    low, _, high = statistics.quantiles(each, n=4, method="inclusive")
    return Ratio(statistics.median(each), low, high, len(each))


def at_most(what: str, on: str, found: Ratio, limit: float, extra: str = "") -> Row:
    """A row that is met when the median is at most ``limit``."""
    return Row(what, on, f"{found}{extra}", f"at most {limit:g}", found.median <= limit)


def at_least(what: str, on: str, found: Ratio, limit: float, extra: str = "") -> Row:
    """A row that is met when the median is at least ``limit``."""
    return Row(what, on, f"{found}{extra}", f"at least {limit:g}", found.median >= limit)


def rate(amount: float, times: Sequence[float]) -> float:
    """Amount per second, by the median time."""
    return amount / statistics.median(times)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    packages = ("torch", "numpy", "zarr", "pyarrow")
    return {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{_memory() / 2**30:.0f} GiB" if _memory() else "unknown",
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "date": datetime.date.today().isoformat(),
        "load average at the start": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
    }


def processor() -> str:
    """The processor's name."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def peak_memory() -> int:
    """The most memory this process has held so far, in bytes.

    Linux's VmHWM starts at zero with the program; ``ru_maxrss`` there still remembers the process that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget(paths: Iterable[Path]) -> None:
    """Drop files from the page cache, as far as the system allows; only what has reached the disk can go."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def result_name(described: Mapping[str, str]) -> str:
    """``2026-01-31-some-processor-2-cores.md``, with the GPU's name at the end where there is one."""
    about = f"{described['processor']} {described['cores']} cores {described.get('gpu', '')}"
    slug = re.sub(r"[^a-z0-9]+", "-", about.lower()).strip("-")
    return f"{described['date']}-{slug}.md"


def document(described: Mapping[str, str], tables: Sequence[Table], command: str, taken: float) -> str:
    """All tables of one run, under what they were measured on."""
    about = "; ".join(f"{name} {value}" for name, value in described.items())
    rows = [row for table in tables for row in table.rows if row.met is not None]
    head = [
        f"# Benchmarks, {described['date']}",
        "",
        f"`{command}`, {taken:.0f} s. {about}.",
        "",
        "A ratio is the median over rounds in which both sides ran in turn; in brackets, the rounds' middle half.",
        f"{sum(bool(row.met) for row in rows)} of {len(rows)} aims met.",
        "",
    ]
    return "\n".join([*head, *(table.markdown() for table in tables)])
