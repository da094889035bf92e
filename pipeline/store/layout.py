"""Where every entry of a cache lies: groups of (split, view), cut into parts, one shard of positions for each part.

    group = (split, view)      train/0, train/1, ..., validation/0, ..., test/0
    part                       part_size consecutive entries of one group; the last of a group may be short
    positions of part p        start = p * capacity, then one after the other; the rest of the shard is a hole

An entry has ``length`` positions, the same for all, or as many as it has (*ragged*: the scored tokens of a sequence),
the same in every view. The layout of ragged entries knows how many each part has, not each entry: the index does.

Parts never straddle a group, so block b of a split is the same examples, [b * part_size, (b + 1) * part_size), in
every view, and an epoch reads its own view and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.identity import SPLITS

Ints = npt.NDArray[np.int64]

MOST_LENGTH = 2**31 - 1
"""Positions of an entry: the index has 32 bits for them."""

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

    ``counts``: the positions of each part, where entries are ragged; ``length`` is then 0. None where they are not.

    >>> layout = Layout.of({"train": (5, 2), "test": (3, 1)}, part_size=4)
    >>> [(p.split, p.view, p.first, p.entries, p.start) for p in layout.parts]
    [('train', 0, 0, 4, 0), ('train', 0, 4, 1, 4), ('train', 1, 0, 4, 8), ('train', 1, 4, 1, 12), ('test', 0, 0, 3, 16)]
    """

    groups: tuple[Group, ...]
    part_size: int
    length: int = 1
    counts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.part_size < 1 or self.length < (self.counts is None):
            raise ValueError(f"part size and length should be at least 1; found {self.part_size} and {self.length}")
        wanted = [(g.split, g.view) for g in self.groups]
        ordered = [(s, v) for s in SPLITS for v in range(sum(split == s for split, _ in wanted))]
        if wanted != ordered:
            raise ValueError(f"groups should be the views 0, 1, ... of {', '.join(SPLITS)}, in order; found {wanted}")
        if any(g.entries < 0 for g in self.groups):
            raise ValueError("a group cannot have fewer than 0 entries")
        if self.counts is not None:
            self._check_counts(self.counts)

    def _check_counts(self, counts: tuple[int, ...]) -> None:
        cuts = [(group, first, entries) for group, first, entries in self._cuts()]
        if self.length or len(counts) != len(cuts):
            raise ValueError(f"ragged entries have no length, and {len(cuts)} parts; found {len(counts)} counts")
        plain: dict[tuple[str, int], int] = {}
        for (group, first, entries), count in zip(cuts, counts, strict=True):
            if not entries <= count <= entries * MOST_LENGTH:
                raise ValueError(f"{entries:,} entries cannot have {count:,} positions: each has one at least")
            if plain.setdefault((group.split, first), count) != count:
                raise ValueError(f"every view of the same examples has the same positions; view {group.view} differs")

    @classmethod
    def of(cls, splits: Mapping[str, tuple[int, int]], part_size: int, length: int = 1) -> Layout:
        """The layout of ``splits``: name -> (examples, views). Splits without examples or views are left out."""
        return cls(groups_of(splits), part_size, length)

    @classmethod
    def ragged(cls, splits: Mapping[str, tuple[Ints, int]], part_size: int) -> Layout:
        """The layout of ``splits``: name -> (positions of each example (n,), views).

        Where all examples have equally many, that is ``Layout.of``. Raises ValueError for an entry without positions.

        >>> layout = Layout.ragged({"train": (np.array([3, 1, 2]), 1)}, part_size=2)
        >>> layout.capacity, [(p.entries, p.start, p.positions) for p in layout.parts]
        (4, [(2, 0, 4), (1, 4, 2)])
        """
        lengths = {split: np.asarray(given, dtype=np.int64) for split, (given, _) in splits.items()}
        odd = [n for n in lengths.values() if n.ndim != 1 or (len(n) and not 1 <= n.min() <= n.max() <= MOST_LENGTH)]
        if odd:
            raise ValueError(f"an entry has 1 to {MOST_LENGTH:,} positions; found {odd[0].min()} to {odd[0].max()}")
        seen = [given for split, given in lengths.items() if len(given) and splits[split][1]]
        known = {int(n) for given in seen for n in (given.min(), given.max())}
        counted = {split: (len(lengths[split]), views) for split, (_, views) in splits.items()}
        if len(known) < 2:
            return cls.of(counted, part_size, *known)
        groups = groups_of(counted)
        sums = {s: np.add.reduceat(n, np.arange(0, len(n), part_size)).tolist() for s, n in lengths.items() if len(n)}
        return cls(groups, part_size, 0, tuple(count for group in groups for count in sums[group.split]))

    @property
    def is_ragged(self) -> bool:
        """Whether entries have uneven numbers of positions."""
        return self.counts is not None

    @property
    def mean_length(self) -> float:
        """Positions of an entry, in the mean."""
        return self.positions / self.entries if self.is_ragged and self.entries else float(max(1, self.length))

    @cached_property
    def capacity(self) -> int:
        """Positions of a shard: the longest part's, rounded up (by a sixteenth) so that powers of two divide it.

        Inner chunks must divide the shard; the surplus is a hole and takes no space.
        """
        positions = self.part_size * self.length if self.counts is None else max(self.counts, default=1)
        step = 1 << max(0, positions.bit_length() - 5)
        return -(-positions // step) * step

    def _cuts(self) -> Iterator[tuple[Group, int, int]]:
        """(group, first entry, entries) of each part, in the order of their numbers."""
        for group in self.groups:
            for first in range(0, group.entries, self.part_size):
                yield group, first, min(self.part_size, group.entries - first)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All parts, in the order of their numbers."""
        parts: list[Part] = []
        for number, (group, first, entries) in enumerate(self._cuts()):
            positions = entries * self.length if self.counts is None else self.counts[number]
            parts.append(Part(number, group.split, group.view, first, entries, number * self.capacity, positions))
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
        return self.entries * self.length if self.counts is None else sum(self.counts)

    def splits(self) -> dict[str, tuple[int, int]]:
        """Name -> (examples, views) of each split that has entries."""
        found: dict[str, tuple[int, int]] = {}
        for group in self.groups:
            found[group.split] = (group.entries, group.view + 1)
        return found


def groups_of(splits: Mapping[str, tuple[int, int]]) -> tuple[Group, ...]:
    """The groups of ``splits``: name -> (examples, views), in order. Splits without examples or views are left out."""
    unknown = set(splits) - set(SPLITS)
    if unknown:
        raise ValueError(f"splits are {', '.join(SPLITS)}; found {', '.join(sorted(unknown))}")
    counts = {s: splits[s] for s in SPLITS if s in splits}
    return tuple(Group(s, v, examples) for s, (examples, views) in counts.items() if examples for v in range(views))


def part_size_for(row_bytes: float, groups: Sequence[Group], length: float = 1.0) -> int:
    """Entries that take at most 32 MiB, at ``row_bytes`` a position and ``length`` positions an entry in the mean.

    The parts of a group then have about equally many entries.
    """
    most = max(1, int(TARGET_PART_BYTES // max(1, row_bytes * length)))
    largest = max((group.entries for group in groups), default=1)
    return -(-largest // -(-largest // most))
