"""Streaming out of a cache beside the inputs, or holding in memory what fits: the same for labels and for features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.devices import on_device
from pipeline.errors import CacheMismatchError
from pipeline.sampler import Order, Rows
from pipeline.sources.batches import Batches
from pipeline.sources.gathering import Places
from pipeline.sources.matching import Matching
from pipeline.sources.prefetch import Prefetch
from pipeline.sources.stored import Content
from pipeline.sources.windows import Buffers, PartTable, Window
from pipeline.store import Cache

AUTO_BYTES = 256 << 20
BYTES_AHEAD = 32 << 20
MOST_BATCHES_AHEAD = 64

T = TypeVar("T")


class CachedStream(Generic[T]):
    """Labels or features of one epoch. Give each batch to ``next``, or iterate over (rows, batch); then ``close``.

    A ``with`` statement closes it; an abandoned one ends its thread too.
    """

    def __init__(self, found: Iterator[tuple[Rows, T]], content: Content[T], device: torch.device) -> None:
        self._found = found
        self._content = content
        self._device = device

    def __iter__(self) -> Iterator[tuple[Rows, T]]:
        for rows, batch in self._found:
            yield rows, self._here(batch)

    def next(self, inputs: Tensor | None, rows: Rows) -> T:
        """What belongs to the next batch of the order, on the source's device.

        Raises CacheMismatchError when ``rows`` are not that batch: the inputs come in another order.
        """
        found = next(self._found, None)
        if found is None or not np.array_equal(found[0], rows):
            what = self._content.what
            have = "no batch is left" if found is None else f"the {what} are those of rows {_head(found[0])}"
            raise CacheMismatchError(
                f"inputs and {what} are out of step: the inputs are rows {_head(rows)}, {have}. Read both in the order "
                "of one Order, with the same epoch and start"
            )
        return self._here(found[1])

    def close(self) -> None:
        """End the thread that reads ahead, if there is one."""
        close = getattr(self._found, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> CachedStream[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _here(self, batch: T) -> T:
        if self._device.type == "cpu":
            return batch
        return self._content.map(batch, lambda tensor: tensor.to(self._device, non_blocking=True))


class _Made(Generic[T]):
    """Batches, made by whoever asks for them."""

    def __init__(self, content: Content[T], found: Batches) -> None:
        self._content, self._found = content, found
        self.close = found.close

    def __iter__(self) -> _Made[T]:
        return self

    def __next__(self) -> tuple[Rows, T]:
        rows, arrays = next(self._found)
        return rows, self._content.batch(arrays)


class Streams(Generic[T]):
    """Streams of one ``content`` of a cache for the rows of ``matching``.

    ``resident``: ``none``, ``ram`` or ``device`` (see ``CachedLabels``); ``auto`` is ``device`` when ``views`` views of
    it take less than ``AUTO_BYTES`` there, and ``none`` otherwise.
    """

    def __init__(
        self,
        cache: Cache,
        matching: Matching,
        content: Content[T],
        *,
        device: torch.device,
        resident: str,
        views: int,
    ) -> None:
        self._cache, self._matching, self._content, self._device = cache, matching, content, device
        self._kept: dict[int, Callable[[Rows], T]] = {}
        self._buffers = Buffers(content.stored)
        if resident == "auto":
            resident = "device" if self._entry_bytes * len(matching.rows) * views < AUTO_BYTES else "none"
        self.resident = resident

    @cached_property
    def _entry_bytes(self) -> int:
        """Bytes of the tensors of one entry, in the mean."""
        return math.ceil(self._content.position_bytes * self._cache.manifest.layout.mean_length)

    def stream(self, order: Order, epoch: int, start: int, view: int) -> CachedStream[T]:
        """Those of ``view``, which the cache holds, for the batches of one epoch, from batch ``start`` on."""
        content, device = self._content, self._device
        if self.resident != "none":
            if view not in self._kept:
                self._kept[view] = self._read_all(view)
            find = self._kept[view]
            return CachedStream(((rows, find(rows)) for rows in order.epoch(epoch, start)), content, device)
        cache, matching, buffers, name = self._cache, self._matching, self._buffers, f"softlabels-{content.what}"
        if device.type == "cpu":
            # The student computes in this thread too: gathering a batch costs less than taking it over from another.
            table = PartTable(cache, matching.split, view)
            found = Batches(matching, order, epoch, start, table, buffers, name, threads=True)
            return CachedStream(_Made(content, found), content, device)

        def read() -> Iterator[tuple[Rows, T]]:
            table = PartTable(cache, matching.split, view)
            with closing(Batches(matching, order, epoch, start, table, buffers, name, threads=False)) as found:
                for rows, arrays in found:
                    yield rows, content.batch(arrays, pin=device.type == "cuda")

        depth = max(2, min(MOST_BATCHES_AHEAD, BYTES_AHEAD // max(1, self._entry_bytes * order.batch_size)))
        return CachedStream(Prefetch(read, depth, name), content, device)

    def _read_all(self, view: int) -> Callable[[Rows], T]:
        """A function from dataset rows to what belongs to them, out of memory."""
        content, device, matching = self._content, self._device, self._matching
        table = PartTable(self._cache, matching.split, view)
        window = Window(table, matching.entry_of[matching.rows], Buffers(content.stored))
        with closing(self._cache.files.ahead()) as ahead:
            ahead.ask(window.paths())
            window.load(len(window.parts))
        places = _of_rows(window, matching, table.length)
        if self.resident == "ram":
            pin = device.type == "cuda"
            return lambda rows: content.batch(window.gather(places.some(rows), threads=True), pin=pin)
        everything = content.map(content.batch(window.arrays), lambda tensor: tensor.to(device))
        starts = torch.from_numpy(places.starts).to(device)

        def find(rows: Rows) -> T:
            if table.length == 1:
                return content.select(everything, starts[on_device(rows, device)])
            return content.select(everything, on_device(places.some(rows).positions(), device))

        return find


def _of_rows(window: Window, matching: Matching, length: int) -> Places:
    """Where the positions of every dataset row lie in a window that holds all of them; placeholders for other rows."""
    rows, everyone = matching.rows, np.arange(len(matching.entry_of), dtype=np.int64)
    found = window.places(matching.entry_of[rows], matching.lengths_of(rows, length))
    starts, lengths = np.zeros_like(everyone), np.array(matching.lengths_of(everyone, length), dtype=np.int64)
    known = np.zeros(len(everyone), dtype=bool)
    starts[rows], lengths[rows], known[rows] = found.starts, found.lengths, found.known
    return Places(starts, lengths, known)


def _head(rows: Rows) -> str:
    return f"{rows[:4].tolist()}{'...' if len(rows) > 4 else ''}".replace("]...", ", ...]")
