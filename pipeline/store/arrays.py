"""Named arrays of a cache as they are stored, whole parts or some rows of them: its labels, or some of its features.

What a manifest says of a position is held to the bytes that there are before much memory is asked for. Only the files
of the named arrays are looked at: a cache may have been pulled with some of its features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encodings import Arrays
from pipeline.store.backend import Backend
from pipeline.store.files import Files
from pipeline.store.layout import Layout
from pipeline.store.parts import PartRecord

Rows = npt.NDArray[np.int64]

_FREE_BYTES = 32 * 1024 * 1024
"""So much memory is given without asking whether the files could fill it."""

_MOST_GROWTH = 1000
"""All arrays of a part together grow by less: each encoding keeps a float that is not compressed, and rows differ."""


@dataclass(frozen=True)
class StoredArrays:
    """The arrays ``names`` of a ``backend``, whose ``parts`` lie in ``files`` as ``layout`` cuts them."""

    files: Files
    backend: Backend
    layout: Layout
    parts: Sequence[PartRecord]
    names: tuple[str, ...]

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Array name -> (shape after the position axis, dtype)."""
        known = self.backend.shapes()
        return {name: known[name] for name in self.names}

    def paths(self, number: int) -> dict[str, str]:
        """Array name -> path of the file that holds part ``number`` of it."""
        known = self.backend.paths(number)
        return {name: known[name] for name in self.names}

    def allocate(self, positions: int) -> dict[str, npt.NDArray[Any]]:
        """Empty arrays that can take ``positions`` positions.

        Raises CacheCorruptError when the files could not fill a part of what that takes.
        """
        self._check_room(positions)
        return {name: np.empty((positions, *shape), dtype) for name, (shape, dtype) in self.shapes().items()}

    def read_part(self, part: PartRecord, out: Arrays | None = None) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a part, ``part.positions`` rows each, into ``out`` when given.

        Raises CacheIncompleteError when a file is missing, CacheCorruptError when one is not what was committed.
        """
        if out is None:
            self._check_room(part.positions, part)
        return self.backend.read(self.files, part, out, self.names)

    def read_rows(self, parts: Sequence[PartRecord], rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """The arrays of the entries ``rows`` (n,) of one view, whose ``parts`` these are, in any order.

        Entries of several positions come one after the other. Raises IndexError for a row out of range, and as
        ``read_part`` does.
        """
        entries = parts[-1].first + parts[-1].entries if parts else 0
        rows = np.asarray(rows, dtype=np.int64)
        if rows.ndim != 1 or (len(rows) and not 0 <= rows.min() <= rows.max() < entries):
            raise IndexError(f"rows should be numbers from 0 to {entries - 1} in one dimension")
        length = self.layout.length
        blocks, within = np.divmod(rows, self.layout.part_size)
        shapes = self.shapes()
        self._check_room(length * max(1, len(rows)))
        out = {name: np.empty((len(rows), length, *shape), dtype) for name, (shape, dtype) in shapes.items()}
        for block in np.unique(blocks).tolist():
            part = parts[block]
            # A part that claims more than its files hold is refused for a single row, too: rows add up.
            self._check_room(part.positions, part)
            here = np.flatnonzero(blocks == block)
            positions = (within[here, None] * length + np.arange(length)).reshape(-1)
            found = self.backend.read_rows(self.files, part, positions, self.names)
            for name, (shape, _) in shapes.items():
                out[name][here] = found[name].reshape(len(here), length, *shape)
        return {name: array.reshape(-1, *array.shape[2:]) for name, array in out.items()}

    def _check_room(self, positions: int, record: PartRecord | None = None) -> None:
        """Hold what the manifest says of a position to the bytes that there are, before much memory is asked for.

        ``record`` is the part to be read, whose files are then held to their sizes; None looks at the largest one's.
        """
        row = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.shapes().values())
        if not self.parts or positions * row <= _FREE_BYTES:
            return
        part = record or max(self.parts, key=lambda each: each.positions)
        paths = sorted(set(self.paths(part.number).values()))
        sizes = {path: part.files[path].size for path in paths}
        if record is None:
            sizes = {path: self.files.check_size(path, size) for path, size in sizes.items()}
        if part.positions * row > _FREE_BYTES + _MOST_GROWTH * sum(sizes.values()):
            what = f"{sum(sizes.values()):,} bytes cannot hold {part.positions:,} rows of {row:,}"
            raise self.files.corrupt(max(sizes, key=lambda path: sizes[path]), what)
