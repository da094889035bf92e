"""Runs of consecutive numbers: the positions of an entry, the kept classes of a position; and where entries lie."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encodings import KEPT, Arrays
from pipeline.store import index as index_files
from pipeline.store.files import Files
from pipeline.store.layout import Layout
from pipeline.store.parts import PartRecord

Ints = npt.NDArray[np.int64]

_REMEMBERED = 16
"""Parts whose index is not read again for every few rows of them."""


def expand(starts: Ints, lengths: Ints) -> Ints:
    """The numbers of all runs, one run after another: ``lengths`` (n,) of them from each of ``starts`` (n,) on.

    >>> expand(np.array([7, 0]), np.array([2, 3])).tolist()
    [7, 8, 0, 1, 2]
    """
    before = np.cumsum(lengths) - lengths
    found = np.repeat(starts - before, lengths)
    found += np.arange(len(found))
    return found


def bounds_of(counts: npt.NDArray[np.integer]) -> Ints:
    """(n + 1,): where each of so many runs begins when they follow one another from 0, and where the last one ends."""
    bounds = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=bounds[1:])
    return bounds


def placed(
    pieces: Sequence[tuple[Ints, Arrays]], positions: int, empty: Arrays, kept: Collection[str]
) -> dict[str, npt.NDArray[Any]]:
    """Arrays of so many positions, put together from pieces.

    Each piece holds the rows of the positions ``places`` (n,), and the classes that these keep in the arrays ``kept``.
    ``empty``: arrays of the shapes and types wanted, of any length.
    """
    out = {n: np.empty((positions, *rows.shape[1:]), rows.dtype) for n, rows in empty.items() if n not in kept}
    for places, found in pieces:
        for name, rows in out.items():
            rows[places] = found[name]
    if not kept:
        return out
    counts = out[KEPT].astype(np.int64)
    begin = bounds_of(counts)
    uneven = {name: np.empty((int(begin[-1]), *empty[name].shape[1:]), empty[name].dtype) for name in kept}
    for places, found in pieces:
        inner = expand(begin[places], counts[places])
        for name, rows in uneven.items():
            rows[inner] = found[name]
    return {**out, **uneven}


class EntrySpans:
    """The positions of the entries of each part: by the layout alone, or by the part's index where they are ragged.

    ``digests``: whether the index of view 0 has digests of its inputs.
    """

    def __init__(self, layout: Layout, *, digests: bool) -> None:
        self._layout, self._digests = layout, digests
        self._found: OrderedDict[int, tuple[Ints, Ints]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, files: Files, part: PartRecord, entries: Ints) -> tuple[Ints, Ints]:
        """Where some ``entries`` (n,) of a part begin (n,), and their positions (n,); counted from the part's first.

        Raises CacheIncompleteError when the index is missing, CacheCorruptError when it is not that of the part.
        """
        if not self._layout.is_ragged:
            return entries * self._layout.length, np.full(len(entries), self._layout.length, dtype=np.int64)
        starts, lengths = self._read(files, part)
        return starts[entries], lengths[entries]

    def _read(self, files: Files, part: PartRecord) -> tuple[Ints, Ints]:
        with self._lock:
            if part.number in self._found:
                self._found.move_to_end(part.number)
                return self._found[part.number]
        size = part.files[index_files.path_of(part.number)].size
        starts, lengths = index_files.spans_of(files, part, size, ragged=True, digests=self._digests)
        found = starts - part.start, lengths
        with self._lock:
            self._found[part.number] = found
            while len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
        return found
