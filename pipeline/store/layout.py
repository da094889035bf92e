"""Where every entry of a cache lies: groups of (split, view), cut into parts, one shard of positions for each part.

    group = (split, view)      train/0, train/1, ..., validation/0, ..., test/0
    part                       part_size consecutive entries of one group; the last of a group may be short
    positions of part p        start = p * capacity, then one after the other; the rest of the shard is a hole

Parts never straddle a group, so block b of a split is the same examples, [b * part_size, (b + 1) * part_size), in
every view, and an epoch reads its own view and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.identity import SPLITS

TARGET_PART_BYTES = 32 << 20


@dataclass(frozen=True)
class Group:
    """All entries of one view of one split."""

    split: str
    view: int
    entries: int


@dataclass(frozen=True)
class Part:
    """The unit of commit, resume, checksum and download.

    - ``first``, ``entries``: its entries, counted within its group;
    - ``start``, ``positions``: its positions in the arrays of the cache.
    """

    number: int
    split: str
    view: int
    first: int
    entries: int
    start: int
    positions: int


@dataclass(frozen=True)
class Layout:
    """How the entries of ``groups`` are cut into parts of ``part_size``, at ``length`` positions an entry.

    >>> layout = Layout.of({"train": (5, 2), "test": (3, 1)}, part_size=4)
    >>> [(p.split, p.view, p.first, p.entries, p.start) for p in layout.parts]
    [('train', 0, 0, 4, 0), ('train', 0, 4, 1, 4), ('train', 1, 0, 4, 8), ('train', 1, 4, 1, 12), ('test', 0, 0, 3, 16)]
    """

    groups: tuple[Group, ...]
    part_size: int
    length: int = 1

    def __post_init__(self) -> None:
        if self.part_size < 1 or self.length < 1:
            raise ValueError(f"part size and length should be at least 1; found {self.part_size} and {self.length}")
        wanted = [(g.split, g.view) for g in self.groups]
        ordered = [(s, v) for s in SPLITS for v in range(sum(split == s for split, _ in wanted))]
        if wanted != ordered:
            raise ValueError(f"groups should be the views 0, 1, ... of {', '.join(SPLITS)}, in order; found {wanted}")
        if any(g.entries < 0 for g in self.groups):
            raise ValueError("a group cannot have fewer than 0 entries")

    @classmethod
    def of(cls, splits: Mapping[str, tuple[int, int]], part_size: int, length: int = 1) -> Layout:
        """The layout of ``splits``: name -> (examples, views). Splits without examples or views are left out."""
        unknown = set(splits) - set(SPLITS)
        if unknown:
            raise ValueError(f"splits are {', '.join(SPLITS)}; found {', '.join(sorted(unknown))}")
        counts = {s: splits[s] for s in SPLITS if s in splits}
        groups = [Group(s, v, examples) for s, (examples, views) in counts.items() if examples for v in range(views)]
        return cls(tuple(groups), part_size, length)

    @cached_property
    def capacity(self) -> int:
        """Positions of a shard: a part's, rounded up so that powers of two divide it (by a sixteenth at most).

        Inner chunks must divide the shard; the surplus is a hole and takes no space.
        """
        positions = self.part_size * self.length
        step = 1 << max(0, positions.bit_length() - 5)
        return -(-positions // step) * step

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All parts, in the order of their numbers."""
        parts: list[Part] = []
        for group in self.groups:
            for first in range(0, group.entries, self.part_size):
                entries = min(self.part_size, group.entries - first)
                number = len(parts)
                start = number * self.capacity
                parts.append(Part(number, group.split, group.view, first, entries, start, entries * self.length))
        return tuple(parts)

    @property
    def rows(self) -> int:
        """Positions of the arrays, holes included."""
        return len(self.parts) * self.capacity

    @property
    def entries(self) -> int:
        """Entries of all groups."""
        return sum(group.entries for group in self.groups)

    @property
    def positions(self) -> int:
        """Positions of all entries, holes not included."""
        return self.entries * self.length

    def splits(self) -> dict[str, tuple[int, int]]:
        """Name -> (examples, views) of each split that has entries."""
        found: dict[str, tuple[int, int]] = {}
        for group in self.groups:
            found[group.split] = (group.entries, group.view + 1)
        return found


def part_size_for(row_bytes: int, groups: Sequence[Group]) -> int:
    """Entries that take at most 32 MiB at ``row_bytes`` an entry, so that a group's parts are about equally long."""
    most = max(1, TARGET_PART_BYTES // max(1, row_bytes))
    largest = max((group.entries for group in groups), default=1)
    return -(-largest // -(-largest // most))
