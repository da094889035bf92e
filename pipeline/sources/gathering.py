"""The positions of a batch, gathered out of arrays in which whole parts lie side by side."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.encodings import KEPT
from pipeline.sampler import Rows
from pipeline.store.spans import bounds_of, expand

Arrays = dict[str, npt.NDArray[Any]]

_SLICED = 16
"""Runs of so many rows in the mean are copied one by one: a copy of memory, where an index is a gather."""


@dataclass(frozen=True)
class Places:
    """Where the positions of some entries lie: ``lengths`` (n,) of them from each of ``starts`` (n,) on.

    ``known`` (n,): False for entries without labels, which take the position at their start again and again.
    """

    starts: Rows
    lengths: Rows
    known: npt.NDArray[np.bool_]

    def some(self, which: slice | Rows) -> Places:
        """Those of some of the entries."""
        return Places(self.starts[which], self.lengths[which], self.known[which])

    def positions(self) -> Rows:
        """All positions (P,), those of one entry after those of another."""
        if not self.lengths.size or (self.lengths.max() == 1 and self.lengths.min() == 1):
            return self.starts
        found = expand(self.starts, self.lengths)
        if not self.known.all():
            again = np.repeat(~self.known, self.lengths)
            found[again] = np.repeat(self.starts, self.lengths)[again]
        return found


def gather(arrays: Arrays, kept: Collection[str], bounds: Rows | None, places: Places, threads: bool) -> Arrays:
    """The rows of each array that belong to ``places``, copied by all of torch's ``threads`` or by this one alone.

    ``kept`` names the arrays of kept classes; ``bounds``, given where there are some, says where those of each
    position begin (``bounds_of`` all of ``KEPT``).
    """
    plain = {name: values for name, values in arrays.items() if name not in kept}
    if bounds is None and len(places.starts) and places.lengths.max() == 1:
        return take(plain, places.positions(), threads)
    if not places.known.all():
        positions = places.positions()
        runs = positions, np.ones(len(positions), np.int64)
    else:
        runs = places.starts, places.lengths
    found = _runs(plain, *runs, threads)
    if bounds is not None:
        begin = bounds[runs[0]]
        uneven = {name: arrays[name] for name in kept}
        found.update(_runs(uneven, begin, bounds[runs[0] + runs[1]] - begin, threads))
    return found


def some_positions(arrays: Arrays, kept: Collection[str], positions: Rows) -> Arrays:
    """Some positions (P,) of the stored arrays of a part, or of any positions, with the classes that these keep."""
    each = Places(positions, np.ones(len(positions), np.int64), np.ones(len(positions), bool))
    return gather(arrays, kept, kept_bounds(arrays, kept, len(arrays[KEPT]) if kept else 0), each, threads=False)


def _runs(arrays: Arrays, starts: Rows, lengths: Rows, threads: bool) -> Arrays:
    """The rows of some runs, one run after another."""
    if not len(starts) or int(lengths.sum()) < _SLICED * len(starts):
        return take(arrays, expand(starts, lengths), threads)
    runs = list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))
    return {name: np.concatenate([values[a:b] for a, b in runs]) for name, values in arrays.items()}


def take(arrays: Arrays, slots: Rows, threads: bool) -> Arrays:
    """Rows ``slots`` (n,) of each array, copied by all of torch's ``threads`` or by this one alone.

    A thread that reads beside a training step should do it alone: those of the step are busy, and a second set of them
    would spin beside them.
    """
    if not threads:
        return {name: values.take(slots, axis=0) for name, values in arrays.items()}
    index = torch.from_numpy(slots)
    # As signed integers of the same width: torch gathers those of every width.
    signed = {name: torch.from_numpy(values.view(f"i{values.itemsize}")) for name, values in arrays.items()}
    return {name: signed[name].index_select(0, index).numpy().view(arrays[name].dtype) for name in arrays}


def joined(pieces: list[Arrays]) -> Arrays:
    """The arrays of several pieces of a batch, one after another."""
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def kept_bounds(arrays: Arrays, kept: Collection[str], positions: int) -> Rows | None:
    """Where the kept classes of each of so many positions begin, and the last ones end; None where all keep as many."""
    return bounds_of(arrays[KEPT][:positions]) if kept else None
