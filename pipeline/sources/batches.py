"""The batches of an epoch, gathered from windows of parts that a thread reads one by one, in step."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy.typing as npt

from pipeline.sampler import Order, Rows
from pipeline.sources.gathering import Arrays, Places, joined
from pipeline.sources.matching import Matching
from pipeline.sources.windows import Buffers, Loader, PartTable, Window


class _Stretch:
    """One window of an epoch with the stretch of visits [start, stop) that it serves."""

    def __init__(self, window: Window, start: int, entries: Rows, lengths: Rows) -> None:
        self.window, self.start, self.stop = window, start, start + len(entries)
        self.entries, self.lengths = entries, lengths

    @cached_property
    def places(self) -> Places:
        """Where the entry of each visit lies in the window, found for all of them together."""
        return self.window.places(self.entries, self.lengths)

    def gather(self, first: int, last: int, threads: bool) -> Arrays:
        """Stored arrays of the visits [first, last) of the epoch."""
        self.window.load(len(self.window.parts))
        return self.window.gather(self.places.some(slice(first - self.start, last - self.start)), threads)


class Batches:
    """(dataset rows (B,), stored arrays of their positions) of each batch of one epoch, from batch ``start`` on.

    The first window is being read when this has been made; batches are gathered by whoever asks for them, with
    torch's ``threads`` or alone (see ``gathering.take``). ``buffers`` say what is read, and may serve one epoch after
    another; ``name`` is that of the thread.
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
        yield rows, joined(pieces)


def _stretches(
    table: PartTable, matching: Matching, windows: Iterator[tuple[Rows, Rows]], buffers: Buffers
) -> Iterator[_Stretch]:
    start = 0
    for _, rows in windows:
        entries = matching.entry_of[rows]
        window = Window(table, _some_known(entries, matching), buffers)
        yield _Stretch(window, start, entries, matching.lengths_of(rows, table.length))
        start += len(rows)


def _some_known(entries: Rows, matching: Matching) -> Rows:
    """At least one entry that exists, so that rows without labels have a placeholder to take."""
    if (entries >= 0).any():
        return entries
    known = matching.entry_of[matching.entry_of >= 0]
    return known[:1]
