"""Whole parts of a cache, read window by window in the sampler's order, and the batches gathered from them.

A window is what the sampler shuffles at a time: the parts that its blocks lie in. While the batches of one window are
gathered, the parts of the next are read one by one, in step, so that no batch waits for a whole window and no more
than two windows are held. A ``Loader`` reads them in a thread of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from functools import cached_property
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.sampler import Order, Rows
from pipeline.sources.matching import Matching
from pipeline.sources.stored import Stored
from pipeline.store import Cache

Arrays = dict[str, npt.NDArray[Any]]


class PartTable:
    """Which part of (split, view) holds which entries: entries of one part are consecutive."""

    def __init__(self, cache: Cache, split: str, view: int) -> None:
        self.cache = cache
        self.records = sorted(cache.parts_of(split, view), key=lambda record: record.first)
        self.firsts = np.array([record.first for record in self.records], dtype=np.int64)
        self.sizes = np.array([record.entries for record in self.records], dtype=np.int64)

    def part_of(self, entries: Rows) -> Rows:
        """The number (B,) of the part, within this table, of each entry."""
        return np.asarray(np.searchsorted(self.firsts, entries, side="right") - 1, dtype=np.int64)


class Buffers:
    """Memory for windows, used again: touching fresh pages costs more than reading into old ones."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self._free: list[Arrays] = []

    def take(self, positions: int) -> Arrays:
        """Arrays of at least so many positions."""
        for number, arrays in enumerate(self._free):
            if min(len(values) for values in arrays.values()) >= positions:
                return self._free.pop(number)
        self._free = []
        return self.stored.allocate(positions)

    def give(self, arrays: Arrays) -> None:
        """Arrays that nobody reads any more."""
        if arrays:
            self._free.append(arrays)


class Window:
    """Some parts side by side in memory, as they are stored, in arrays out of ``buffers``."""

    def __init__(self, table: PartTable, entries: Rows, buffers: Buffers) -> None:
        self.table = table
        self.parts: Rows = np.flatnonzero(np.bincount(table.part_of(entries[entries >= 0])))
        self.offset = np.full(len(table.records), -1, dtype=np.int64)
        sizes = table.sizes[self.parts]
        self.offset[self.parts] = np.cumsum(sizes) - sizes
        self.total = int(sizes.sum())
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
            number = int(self.parts[place])
            start, size = int(self.offset[number]), int(self.table.sizes[number])
            places = {name: values[start : start + size] for name, values in self.arrays.items()}
            try:
                self.buffers.stored.read_part(self.table.records[number], places)
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
                        self.arrays = self.buffers.take(self.total)
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

    def slots(self, entries: Rows) -> Rows:
        """Where each entry (B,) lies in ``arrays``; entries of -1 (no labels) get slot 0, a placeholder."""
        known = np.maximum(entries, 0)
        parts = self.table.part_of(known)
        slots = self.offset[parts] + known - self.table.firsts[parts]
        return np.asarray(np.where(entries >= 0, slots, 0), dtype=np.int64)


class _Stretch:
    """One window of an epoch with the stretch of visits [start, stop) that it serves."""

    def __init__(self, window: Window, start: int, rows: Rows, entries: Rows) -> None:
        self.window, self.start, self.stop = window, start, start + len(rows)
        self.entries = entries

    @cached_property
    def slots(self) -> Rows:
        """Where the entry of each visit lies in the window, found for all of them together."""
        return self.window.slots(self.entries)

    def gather(self, first: int, last: int, threads: bool) -> Arrays:
        """Stored arrays of the visits [first, last) of the epoch."""
        self.window.load(len(self.window.parts))
        return take(self.window.arrays, self.slots[first - self.start : last - self.start], threads)


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


class Batches:
    """(dataset rows (B,), stored arrays of B positions) of each batch of one epoch, from batch ``start`` on.

    The first window is being read when this has been made; batches are gathered by whoever asks for them, with
    torch's ``threads`` or alone (see ``take``). ``buffers`` say what is read, and may serve one epoch after another;
    ``name`` is that of the thread.
    """

    def __init__(
        self,
        matching: Matching,
        order: Order,
        epoch: int,
        start: int,
        table: PartTable,
        buffers: Buffers,
        name: str,
        *,
        threads: bool,
    ) -> None:
        ahead, visited = itertools.tee(order.windows(epoch))
        coming = _stretches(table, matching, ahead, buffers)
        begin = (order.rank + start * order.world) * order.batch_size
        self._held = deque(itertools.islice((stretch for stretch in coming if stretch.stop > begin), 1))
        self._loader = Loader(table.cache, name)
        for stretch in self._held:
            self._loader.announce(stretch.window)
            self._loader.ask(stretch.window, len(stretch.window.parts))
        batches = enumerate(order.epoch(epoch, start, visited), start)
        self._found = _gathered(order, batches, coming, self._held, self._loader, threads)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> tuple[Rows, Mapping[str, npt.NDArray[Any]]]:
        return next(self._found)

    def close(self) -> None:
        """End the thread that reads, and give the memory back. May be called twice."""
        self._loader.close()
        self._found.close()
        while self._held:
            self._held.popleft().window.release()


def _gathered(
    order: Order,
    batches: Iterator[tuple[int, Rows]],
    coming: Iterator[_Stretch],
    held: deque[_Stretch],
    loader: Loader,
    threads: bool,
) -> Generator[tuple[Rows, Mapping[str, npt.NDArray[Any]]], None, None]:
    for number, rows in batches:
        first = (order.rank + number * order.world) * order.batch_size
        last = first + len(rows)
        while held and held[0].stop <= first:
            held.popleft().window.release()
        while not held or held[-1].stop < last:
            following = next(coming)
            if following.stop > first:
                loader.announce(following.window)
                held.append(following)
        pieces = [s.gather(max(first, s.start), min(last, s.stop), threads) for s in held if s.start < last]
        current = held[-1] if held[-1].start < last else held[-2]
        if current is held[-1] and (ahead := next(coming, None)) is not None:
            loader.announce(ahead.window)
            held.append(ahead)
        if held[-1] is not current:
            share = (last - current.start) / (current.stop - current.start)
            loader.ask(held[-1].window, math.ceil(share * len(held[-1].window.parts)))
        yield rows, _joined(pieces)


def _stretches(
    table: PartTable, matching: Matching, windows: Iterator[tuple[Rows, Rows]], buffers: Buffers
) -> Iterator[_Stretch]:
    start = 0
    for _, rows in windows:
        entries = matching.entry_of[rows]
        yield _Stretch(Window(table, _some_known(entries, matching), buffers), start, rows, entries)
        start += len(rows)


def _some_known(entries: Rows, matching: Matching) -> Rows:
    """At least one entry that exists, so that rows without labels have a placeholder to take."""
    if (entries >= 0).any():
        return entries
    known = matching.entry_of[matching.entry_of >= 0]
    return known[:1]


def _joined(pieces: list[Arrays]) -> Arrays:
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
