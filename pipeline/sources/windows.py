"""Whole parts of a cache, read window by window in the sampler's order; ``batches`` gathers from them.

A window is what the sampler shuffles at a time: the parts that its blocks lie in. While the batches of one window are
gathered, the parts of the next are read one by one, in step, so that no batch waits for a whole window and no more
than two windows are held. A ``Loader`` reads them in a thread of its own.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from functools import cached_property
from queue import SimpleQueue

import numpy as np

from pipeline.sampler import Rows
from pipeline.sources.gathering import Arrays, Places, gather, kept_bounds
from pipeline.sources.stored import Stored
from pipeline.store import Cache, PartRecord
from pipeline.store.spans import bounds_of


class PartTable:
    """Which part of (split, view) holds which entries: entries of one part are consecutive.

    ``length``: positions of each entry, 0 where they are ragged.
    """

    def __init__(self, cache: Cache, split: str, view: int) -> None:
        self.cache = cache
        self.records = sorted(cache.parts_of(split, view), key=lambda record: record.first)
        self.firsts = np.array([record.first for record in self.records], dtype=np.int64)
        self.is_ragged, self.length = cache.manifest.layout.is_ragged, cache.manifest.layout.length

    def part_of(self, entries: Rows) -> Rows:
        """The number (B,) of the part, within this table, of each entry."""
        return np.asarray(np.searchsorted(self.firsts, entries, side="right") - 1, dtype=np.int64)


class Buffers:
    """Memory for windows, used again: touching fresh pages costs more than reading into old ones."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self._free: list[Arrays] = []

    def take(self, positions: int, kept: int) -> Arrays:
        """Arrays of at least so many positions, and classes that they keep."""
        for number, arrays in enumerate(self._free):
            if all(len(values) >= self._rows(name, positions, kept) for name, values in arrays.items()):
                return self._free.pop(number)
        self._free = []
        return self.stored.allocate(positions, kept)

    def _rows(self, name: str, positions: int, kept: int) -> int:
        return kept if name in self.stored.kept else positions

    def places(self, arrays: Arrays, record: PartRecord, position: int, kept: int) -> Arrays:
        """The rows of ``arrays`` for a part that begins at this position, and at this kept class."""
        begin = {name: self._rows(name, position, kept) for name in arrays}
        end = {name: begin[name] + self._rows(name, record.positions, record.kept) for name in arrays}
        return {name: values[begin[name] : end[name]] for name, values in arrays.items()}

    def give(self, arrays: Arrays) -> None:
        """Arrays that nobody reads any more."""
        if arrays:
            self._free.append(arrays)


class Window:
    """Some parts side by side in memory, as they are stored, in arrays out of ``buffers``."""

    def __init__(self, table: PartTable, entries: Rows, buffers: Buffers) -> None:
        self.table = table
        self.parts: Rows = np.flatnonzero(np.bincount(table.part_of(entries[entries >= 0])))
        records = [table.records[number] for number in self.parts.tolist()]
        self._entries = bounds_of(np.array([r.entries for r in records], dtype=np.int64))
        self._positions = bounds_of(np.array([r.positions for r in records], dtype=np.int64))
        self._kept = bounds_of(np.array([r.kept if buffers.stored.kept else 0 for r in records], dtype=np.int64))
        self._place = np.full(len(table.records), -1, dtype=np.int64)
        self._place[self.parts] = np.arange(len(self.parts))
        self._spans: dict[int, tuple[Rows, Rows]] = {}  # by place, where entries are ragged
        self.buffers = buffers
        self.arrays: Arrays = {}
        self.asked = 0
        self._changed = threading.Condition()
        self._todo = set(range(len(self.parts)))
        self._reading: set[int] = set()

    def load(self, parts: int, *, wait: bool = True) -> None:
        """Read what is missing of the first ``parts`` parts of this window; all of them are here on return.

        Threads that call this at once read different parts, and wait for each other's; without ``wait`` those are left
        to who reads them. Raises what reading raises; a part that failed is there to be tried again.
        """
        while (place := self._claim(parts, wait)) is not None:
            record = self.table.records[int(self.parts[place])]
            begin = int(self._positions[place]), int(self._kept[place])
            try:
                if self.table.is_ragged:
                    self._spans[place] = self.table.cache.spans(record, np.arange(record.entries))
                self.buffers.stored.read_part(record, self.buffers.places(self.arrays, record, *begin))
            except BaseException:
                self._todo.add(place)
                raise
            finally:
                with self._changed:
                    self._reading.remove(place)
                    self._changed.notify_all()

    def _claim(self, parts: int, wait: bool) -> int | None:
        """A part to read, the first that nobody reads; None when there is none among the first ``parts``."""
        with self._changed:
            while True:
                place = min(self._todo, default=parts)
                if place < parts:
                    self._todo.remove(place)
                    self._reading.add(place)
                    if not self.arrays:
                        self.arrays = self.buffers.take(int(self._positions[-1]), int(self._kept[-1]))
                    return place
                if not wait or min(self._reading, default=parts) >= parts:
                    return None
                self._changed.wait()

    def release(self) -> None:
        """Give the memory back. Nothing is read into this window after that."""
        with self._changed:
            self._todo.clear()
            if not self._reading:
                self.buffers.give(self.arrays)
            self.arrays = {}

    def paths(self) -> list[str]:
        """The files that ``load`` reads, in order."""
        numbers = (self.table.records[place].number for place in self.parts.tolist())
        return list(dict.fromkeys(p for number in numbers for p in self.buffers.stored.paths(number).values()))

    def places(self, entries: Rows, lengths: Rows) -> Places:
        """Where each entry (n,) lies in ``arrays``, once all parts are here.

        Entries of -1 (no labels) get the first position as a placeholder, as often as ``lengths`` (n,) says.
        """
        known = entries >= 0
        held = np.where(known, entries, self.table.firsts[self.parts[0]] if len(self.parts) else 0)
        parts = self.table.part_of(held)
        place, within = self._place[parts], held - self.table.firsts[parts]
        if self.table.is_ragged:
            numbers = self._entries[place] + within
            starts, own = (np.concatenate([self._spans[n][i] for n in range(len(self.parts))]) for i in (0, 1))
            starts, own = starts[numbers], own[numbers]
        else:
            starts, own = within * self.table.length, np.full(len(entries), self.table.length, dtype=np.int64)
        starts = np.where(known, self._positions[place] + starts, 0)
        return Places(starts, np.where(known, own, lengths), known)

    def gather(self, places: Places, threads: bool) -> Arrays:
        """The stored arrays of ``places``."""
        return gather(self.arrays, self.buffers.stored.kept, self._bounds, places, threads)

    @cached_property
    def _bounds(self) -> Rows | None:
        return kept_bounds(self.arrays, self.buffers.stored.kept, int(self._positions[-1]))


class Loader:
    """A thread that reads parts of windows when it is asked to, in the order of asking.

    Files that are far away are fetched ahead of it. It ends when ``close`` is called and when this object is abandoned.
    A part that it fails to read is tried again, and fails again, by whoever gathers from the window.
    """

    def __init__(self, cache: Cache, name: str) -> None:
        self._ahead = cache.files.ahead()
        self._asked: SimpleQueue[tuple[Window, int] | None] = SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=_load, args=(self._asked, self._closed), name=name, daemon=True)
        self._finaliser = weakref.finalize(self, _stop, self._asked, self._closed)
        self._thread.start()

    def announce(self, window: Window) -> None:
        """``window`` will be asked for, after those announced before."""
        self._ahead.ask(window.paths())

    def ask(self, window: Window, parts: int) -> None:
        """Have the first ``parts`` parts of ``window`` read, one by one."""
        while window.asked < min(parts, len(window.parts)):
            window.asked += 1
            self._asked.put((window, window.asked))

    def close(self) -> None:
        """End the thread and wait for it: as long as one part takes."""
        self._ahead.close()
        self._finaliser()
        self._thread.join()


def _load(asked: SimpleQueue[tuple[Window, int] | None], closed: threading.Event) -> None:
    while (item := asked.get()) is not None and not closed.is_set():
        with contextlib.suppress(Exception):
            item[0].load(item[1], wait=False)
        del item  # no window stays here while the thread waits


def _stop(asked: SimpleQueue[tuple[Window, int] | None], closed: threading.Event) -> None:
    closed.set()
    asked.put(None)
