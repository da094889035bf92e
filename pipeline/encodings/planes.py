"""Ids and counts of drawn classes as arrays of bytes that zstd packs well.

The lower bits of a difference between ids are noise, and higher ones and counts are mostly small: arrays of bytes of
one kind each, apart from one another, are coded to within a few hundredths of their entropy, where whole numbers of
two or four bytes come to 30% more. Counts alone fare badly, for zstd takes short runs of ones for something that comes
again; beside four bits of noise in a byte there are no such runs (docs/decisions/0014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import EncodingError

LOW = 4
"""Bits of the id, the lowest ones, and then of the count, that share a byte."""

Ints = npt.NDArray[np.integer[Any]]
Signed = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Planes:
    """Where the bits go: ``LOW`` lowest of the id and of the count, the other bits of the id, those of the count.

    All these, one after another from the lowest, are a number of ``number`` bytes; array i holds byte i of each.
    Without counts (``count_bits`` 0) it is the id alone.
    """

    id_bits: int
    count_bits: int

    @classmethod
    def of(cls, classes: int, n: int) -> Planes:
        """For ids below ``classes`` and n draws, the largest count of each position left out; 0 draws: no counts."""
        return cls(max(1, (classes - 1).bit_length()), max(1, (n // 2).bit_length()) if n else 0)

    @property
    def number(self) -> int:
        """How many arrays.

        >>> Planes.of(128_256, 50).number, Planes.of(128_256, 0).number, Planes.of(10, 50).number
        (3, 3, 2)
        """
        bits = self.id_bits
        if self.count_bits:
            bits = 2 * LOW + max(self.id_bits - LOW, 0) + max(self.count_bits - LOW, 0)
        return -(-bits // 8)

    def split(self, ids: Ints, counts: Ints) -> list[npt.NDArray[np.uint8]]:
        """The arrays (M,) of so many ids, or differences of them, and counts."""
        whole = ids.astype(np.uint64)
        if self.count_bits:
            low, times = np.uint64(2**LOW - 1), counts.astype(np.uint64)
            high = whole >> np.uint64(LOW) | times >> np.uint64(LOW) << np.uint64(max(self.id_bits - LOW, 0))
            whole = whole & low | (times & low) << np.uint64(LOW) | high << np.uint64(2 * LOW)
        return [(whole >> np.uint64(8 * plane)).astype(np.uint8) for plane in range(self.number)]

    def join(self, stored: Sequence[npt.NDArray[np.uint8]]) -> tuple[Signed, Signed]:
        """Ids and counts (M,), signed, of the arrays that ``split`` made; counts are empty where there are none."""
        wide = np.int32 if 8 * self.number < 32 else np.int64
        if not self.count_bits:
            return _number(stored, wide, 0), np.zeros(0, wide)
        ids, counts = (
            _number(stored[1:], wide, len(stored[0])),
            _number([np.right_shift(stored[0], np.uint8(LOW))], wide, 0),
        )
        if self.count_bits > LOW:
            rest = max(self.id_bits - LOW, 0)
            np.bitwise_or(counts, ids >> rest << LOW, out=counts)
            np.bitwise_and(ids, 2**rest - 1, out=ids)
        np.left_shift(ids, LOW, out=ids)
        np.bitwise_or(ids, stored[0] & np.uint8(2**LOW - 1), out=ids)
        return ids, counts


def _number(stored: Sequence[npt.NDArray[np.uint8]], wide: type[np.signedinteger[Any]], rows: int) -> Signed:
    whole = stored[0].astype(wide) if stored else np.zeros(rows, wide)
    for plane, values in enumerate(stored[1:], start=1):
        np.bitwise_or(whole, values.astype(wide) << (8 * plane), out=whole)
    return whole


def without_largest(counts: Ints, kept: Ints) -> Ints:
    """``counts`` (M,), ``kept`` (N,) of them to a position, with 0 for the first of the largest of each position.

    The others are at most half of all draws, and say what the largest is: all draws less theirs.

    >>> without_largest(np.array([1, 7, 2, 4, 4]), np.array([3, 2])).tolist()
    [1, 0, 2, 0, 4]
    """
    if not len(kept):
        return counts
    ends = np.cumsum(kept, dtype=np.int64)
    position = np.repeat(np.arange(len(kept)), kept)
    largest = np.flatnonzero(counts == np.maximum.reduceat(counts, ends - kept)[position])
    first = np.ones(len(largest), bool)
    first[1:] = position[largest[1:]] != position[largest[:-1]]
    left = counts.copy()
    left[largest[first]] = 0
    return left


def fill_largest(counts: Ints, starts: npt.NDArray[np.int64], n: int) -> None:
    """Put back, in place, what ``without_largest`` left out of positions that begin at ``starts`` (N,), of n draws.

    Raises EncodingError when there is not one 0 for each position.
    """
    missing = np.flatnonzero(counts == 0)
    if len(missing) != len(starts):
        raise EncodingError(
            f"one class of each position is without a count, {len(starts):,} in all; found {len(missing):,}"
        )
    if len(starts):
        counts[missing] = n - np.add.reduceat(counts, starts)
