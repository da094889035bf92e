"""Named arrays of a cache as they are stored, whole parts or some rows of them: its labels, or some of its features.

What a manifest says of a position is held to the bytes that there are before much memory is asked for. Only the files
of the named arrays are looked at: a cache may have been pulled with some of its features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encodings import KEPT, Arrays
from pipeline.store.backend import Backend
from pipeline.store.files import Files
from pipeline.store.layout import Layout
from pipeline.store.parts import PartRecord
from pipeline.store.spans import bounds_of, expand, placed

Rows = npt.NDArray[np.int64]

Spans = Callable[[PartRecord, Rows], tuple[Rows, Rows]]
"""Where some entries (n,) of a part begin within it (n,), and how many positions they have (n,)."""

_FREE_BYTES = 32 * 1024 * 1024
"""So much memory is given without asking whether the files could fill it."""

_MOST_GROWTH = 1000
"""All arrays of a part together grow by less: each encoding keeps a float that is not compressed, and rows differ."""


@dataclass(frozen=True)
class StoredArrays:
    """The arrays ``names`` of a ``backend``, whose ``parts`` lie in ``files`` as ``layout`` cuts them.

    Arrays of kept classes are ``kept``; whoever names one of them names ``encodings.KEPT`` too.
    """

    files: Files
    backend: Backend
    layout: Layout
    parts: Sequence[PartRecord]
    names: tuple[str, ...]
    spans: Spans

    @property
    def kept(self) -> frozenset[str]:
        """Those of ``names`` that have a row for each kept class instead of each position."""
        return self.backend.kept & set(self.names)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Array name -> (shape after the first axis, dtype)."""
        known = self.backend.shapes()
        return {name: known[name] for name in self.names}

    def paths(self, number: int) -> dict[str, str]:
        """Array name -> path of the file that holds part ``number`` of it."""
        known = self.backend.paths(number)
        return {name: known[name] for name in self.names}

    def allocate(self, positions: int, kept: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Empty arrays that can take ``positions`` positions, which keep ``kept`` classes in all.

        Raises CacheCorruptError when the files could not fill a part of what that takes.
        """
        self._check_room(positions, kept)
        return self._empty(positions, kept)

    def _empty(self, positions: int, kept: int) -> dict[str, npt.NDArray[Any]]:
        rows = {name: kept if name in self.kept else positions for name in self.names}
        return {name: np.empty((rows[name], *shape), dtype) for name, (shape, dtype) in self.shapes().items()}

    def read_part(self, part: PartRecord, out: Arrays | None = None) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a part, ``part.positions`` rows each (``part.kept`` of kept classes), into ``out`` when given.

        Raises CacheIncompleteError when a file is missing, CacheCorruptError when one is not what was committed.
        """
        if out is None:
            self._check_room(part.positions, part.kept, part)
        found = self.backend.read(self.files, part, out, self.names)
        if self.kept:
            self._bounds(part, found)
        return found

    def read_parts(self, records: Sequence[PartRecord], out: Arrays | None = None) -> dict[str, npt.NDArray[Any]]:
        """The arrays of several parts, one after the other, read straight into their places in ``out``.

        It may have more rows than needed; views of its first rows come back. Raises as ``read_part`` does.
        """
        ends = {name: 0 for name in self.names}
        totals = {name: sum(self.rows_of(record, name) for record in records) for name in self.names}
        given = self.allocate(sum(r.positions for r in records), sum(r.kept for r in records)) if out is None else out
        arrays = {name: given[name][: totals[name]] for name in self.names}
        for record in records:
            starts, ends = ends, {name: end + self.rows_of(record, name) for name, end in ends.items()}
            self.read_part(record, {name: rows[starts[name] : ends[name]] for name, rows in arrays.items()})
        return arrays

    def rows_of(self, part: PartRecord, name: str) -> int:
        """Rows that a part has in the array ``name``."""
        return part.kept if name in self.kept else part.positions

    def read_rows(self, parts: Sequence[PartRecord], rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """The arrays of the entries ``rows`` (n,) of one view, whose ``parts`` these are, in any order.

        Positions of an entry, and classes of a position, come one after the other. Raises IndexError for a row out of
        range, and as ``read_part`` does.
        """
        entries = parts[-1].first + parts[-1].entries if parts else 0
        rows = np.asarray(rows, dtype=np.int64)
        if rows.ndim != 1 or (len(rows) and not 0 <= rows.min() <= rows.max() < entries):
            raise IndexError(f"rows should be numbers from 0 to {entries - 1} in one dimension")
        blocks, within = np.divmod(rows, self.layout.part_size)
        lengths = np.zeros(len(rows), dtype=np.int64)
        pieces: list[tuple[PartRecord, Rows, Rows]] = []
        for block in np.unique(blocks).tolist():
            # A part that claims more than its files hold is refused for a single row, too: rows add up.
            self._check_room(parts[block].positions, parts[block].kept, parts[block])
            here = np.flatnonzero(blocks == block)
            starts, lengths[here] = self.spans(parts[block], within[here])
            pieces.append((parts[block], here, expand(starts, lengths[here])))
        begin = bounds_of(lengths)
        self._check_room(max(1, int(begin[-1])), 0)
        plain, kept = (tuple(n for n in self.names if (n in self.kept) == uneven) for uneven in (False, True))
        found: list[tuple[Rows, Arrays]] = []
        for part, here, positions in pieces:
            arrays = self.backend.read_rows(self.files, part, positions, plain)
            if kept:
                bounds = self._bounds(part, self.backend.read(self.files, part, None, (KEPT,)))
                arrays |= self.backend.read_rows(self.files, part, positions, kept, bounds)
            found.append((expand(begin[here], lengths[here]), arrays))
        return placed(found, int(begin[-1]), self._empty(0, 0), kept)

    def _bounds(self, part: PartRecord, arrays: Arrays) -> Rows:
        """Where the kept classes of each position of a part begin, and the last ones end, held to what it should keep.

        Raises CacheCorruptError.
        """
        counts = arrays[KEPT]
        bounds = bounds_of(counts)
        if bounds[-1] != part.kept or (len(counts) and not counts.min()):
            what = f"its positions should keep {part.kept:,} classes, each one or more; it says {bounds[-1]:,}"
            raise self.files.corrupt(self.paths(part.number)[KEPT], what)
        return bounds

    def _check_room(self, positions: int, kept: int, record: PartRecord | None = None) -> None:
        """Hold what the manifest says of a position to the bytes that there are, before much memory is asked for.

        ``record`` is the part to be read, whose files are then held to their sizes; None looks at the largest one's.
        """
        row, kept_row = self._row_bytes()
        if not self.parts or positions * row + kept * kept_row <= _FREE_BYTES:
            return
        part = record or max(self.parts, key=lambda each: each.positions)
        paths = sorted(set(self.paths(part.number).values()))
        sizes = {path: part.files[path].size for path in paths}
        if record is None:
            sizes = {path: self.files.check_size(path, size) for path, size in sizes.items()}
        asked = part.positions * row + part.kept * kept_row
        if self.kept:
            # Their number is not compressed, and a position keeps so many at most (checked when the cache was opened).
            counted = self.paths(part.number)[KEPT]
            paths, most = [counted], sizes[counted] // np.dtype(self.shapes()[KEPT][1]).itemsize
            sound = part.positions <= most
        else:
            sound = asked <= _FREE_BYTES + _MOST_GROWTH * sum(sizes.values())
        if not sound:
            what = f"{sum(sizes[path] for path in paths):,} bytes cannot hold {part.positions:,} rows of {row:,}"
            raise self.files.corrupt(max(paths, key=lambda path: sizes[path]), what)

    def _row_bytes(self) -> tuple[int, int]:
        """Bytes of a position, and of a kept class, in all arrays together."""
        each = {name: math.prod(shape) * np.dtype(dtype).itemsize for name, (shape, dtype) in self.shapes().items()}
        kept = sum(size for name, size in each.items() if name in self.kept)
        return sum(each.values()) - kept, kept
