"""A table of the page: columns that say what they hold, entries that sort by their value and not by their text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.report.words import NONE


@dataclass(frozen=True)
class Head:
    """The head of a column. ``better``: which way is good, ``higher``, ``lower`` or neither."""

    title: str
    left: bool = False
    better: str = ""
    wrap: bool = False
    mono: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Entry:
    """What stands in a cell: ``text``, a quieter ``minor`` beside it, and the ``value`` that it sorts by.

    ``tone``: the colour of a verdict (``higher``, ``lower``, ``noise``), ``tag`` a word in a frame, ``notes`` sentences
    below, ``strong`` whether it stands out.
    """

    text: str
    value: float | str | None = None
    minor: str = ""
    tone: str = ""
    tag: str = ""
    notes: tuple[str, ...] = ()
    strong: bool = False
    below: str = ""

    @property
    def key(self) -> str:
        """What the script sorts by: a number where there is one, empty for none, which sorts last."""
        if isinstance(self.value, float | int):
            return "" if math.isnan(self.value) else f"{self.value:.10g}"
        if self.value is None:
            return "" if self.text == NONE else self.text
        return self.value


@dataclass(frozen=True)
class Group:
    """Rows under one title; rows are sorted within it. The first entry of a row is its head."""

    title: str
    rows: tuple[tuple[Entry, ...], ...]


@dataclass(frozen=True)
class Table:
    """A table with what it is about, said to those who hear the page. ``fixed``: in its own order, never sorted."""

    caption: str
    heads: tuple[Head, ...]
    groups: tuple[Group, ...]
    fixed: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it sorts by numbers."""
        entries = [row for group in self.groups for row in group.rows]
        return [all(_is_number(row[i].key) for row in entries) for i in range(len(self.heads))]

    @property
    def sortable(self) -> bool:
        """Whether some group has rows to sort."""
        return not self.fixed and any(len(group.rows) > 1 for group in self.groups)


def table(
    caption: str, heads: Iterable[Head | str], rows: Iterable[Sequence[Entry | str]], *, fixed: bool = False
) -> Table | None:
    """A table of one group. None without rows. A head that is a text is that of a column of text."""
    found = grouped(caption, heads, [("", rows)])
    return replace(found, fixed=fixed) if found else None


def grouped(
    caption: str, heads: Iterable[Head | str], groups: Iterable[tuple[str, Iterable[Sequence[Entry | str]]]]
) -> Table | None:
    """A table of several groups, each with its title. None without rows."""
    made = tuple(
        Group(title, tuple(tuple(e if isinstance(e, Entry) else Entry(e) for e in row) for row in rows))
        for title, rows in groups
    )
    made = tuple(group for group in made if group.rows)
    if not made:
        return None
    return Table(caption, tuple(h if isinstance(h, Head) else Head(h, left=True) for h in heads), made)


def number(value: float | None, digits: int = 1, scale: float = 1.0, *, strong: bool = False, minor: str = "") -> Entry:
    """A number as an entry; a dash where there is none."""
    if value is None or math.isnan(value):
        return Entry(NONE)
    return Entry(f"{value * scale:,.{digits}f}", float(value), strong=strong, minor=minor)


def verdict(text: str, tone: str) -> Entry:
    """A verdict in its colour."""
    return Entry(text, tone=tone if tone in ("higher", "lower") else "noise")


def _is_number(key: str) -> bool:
    try:
        float(key or 0)
    except ValueError:
        return False
    return True
