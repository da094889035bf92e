"""Soft labels out of a cache: streamed beside the inputs, or held in memory when they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.datasets import Dataset
from pipeline.errors import CacheMismatchError, ConfigError
from pipeline.sampler import Order, Rows, blocks_of
from pipeline.softlabels import SoftLabels
from pipeline.sources.matching import Matching, match
from pipeline.sources.prefetch import Prefetch
from pipeline.sources.windows import Batches, Buffers, PartTable, Window, take
from pipeline.store import Cache

RESIDENT = ("auto", "none", "ram", "device")
LABELS = ("own", "plain")
AUTO_BYTES = 256 << 20
BYTES_AHEAD = 32 << 20
MOST_BATCHES_AHEAD = 64

Batch = tuple[Rows, SoftLabels]


class CachedStream:
    """The labels of one epoch. Give each batch to ``next``, or iterate over (rows, soft labels); then ``close``.

    A ``with`` statement closes it; an abandoned one ends its thread too.
    """

    def __init__(self, found: Iterator[Batch], device: torch.device) -> None:
        self._found = found
        self._device = device

    def __iter__(self) -> Iterator[Batch]:
        for rows, soft in self._found:
            yield rows, self._here(soft)

    def next(self, inputs: Tensor | None, rows: Rows) -> SoftLabels:
        """Labels of the next batch of the order, on the source's device.

        Raises CacheMismatchError when ``rows`` are not that batch: the inputs come in another order than the labels.
        """
        found = next(self._found, None)
        if found is None or not np.array_equal(found[0], rows):
            have = "no batch is left" if found is None else f"the labels are those of rows {_head(found[0])}"
            raise CacheMismatchError(
                f"inputs and labels are out of step: the inputs are rows {_head(rows)}, {have}. Read both in the order "
                "of one Order, with the same epoch and start"
            )
        return self._here(found[1])

    def close(self) -> None:
        """End the thread that reads ahead, if there is one."""
        close = getattr(self._found, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> CachedStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _here(self, soft: SoftLabels) -> SoftLabels:
        if self._device.type == "cpu":
            return soft
        return soft.map(lambda tensor: tensor.to(self._device, non_blocking=True))


class _Decoded:
    """Batches, decoded by whoever asks for them."""

    def __init__(self, cache: Cache, found: Batches) -> None:
        self._cache, self._found = cache, found
        self.close = found.close

    def __iter__(self) -> _Decoded:
        return self

    def __next__(self) -> Batch:
        rows, arrays = next(self._found)
        return rows, decoded(self._cache, arrays)


class CachedLabels:
    """Soft labels of one split of a dataset, out of a cache that belongs to it.

    - ``data``: the dataset (checked against the cache by ``match``), or the result of ``match``;
    - ``missing``: what becomes of examples without labels, ``error``, ``skip`` or ``hard``;
    - ``resident``: ``none`` streams whole parts in a background thread in the order of the batches; ``ram`` keeps
      what is needed in memory as it is stored, ``device`` decoded on ``device``; either reads each view once.
      ``auto`` keeps them on the device when all views take less than 256 MiB there, and streams them otherwise;
    - ``labels_view``: ``own`` gives each view its own label, ``plain`` that of view 0 whatever the view.

    Raises CacheMismatchError when the cache belongs to something else.
    """

    def __init__(
        self,
        cache: Cache,
        data: Dataset | Matching,
        *,
        split: str = "train",
        missing: str = "error",
        device: str | torch.device = "cpu",
        resident: str = "auto",
        labels_view: str = "own",
    ) -> None:
        for name, value, choices in (("resident", resident, RESIDENT), ("labels_view", labels_view, LABELS)):
            if value not in choices:
                raise ConfigError(f"{name} should be one of {', '.join(choices)}; found {value!r}")
        self.cache = cache
        self.matching = data if isinstance(data, Matching) else match(cache, data, split, missing)
        self.device = torch.device(device)
        self.labels_view = labels_view
        self.resident = self._fitting() if resident == "auto" else resident
        self._kept: dict[int, Callable[[Rows], SoftLabels]] = {}
        self._buffers = Buffers(cache)

    def _fitting(self) -> str:
        """``device`` when the decoded labels of all views are small enough to be kept there, else ``none``."""
        sizes: list[int] = []

        def weigh(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        blank = {n: np.zeros_like(rows) for n, rows in self.cache.allocate(self.cache.manifest.layout.length).items()}
        decoded(self.cache, blank).map(weigh)
        views = 1 if self.labels_view == "plain" else len(self.views)
        return "device" if sum(sizes) * len(self.rows) * views < AUTO_BYTES else "none"

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.cache.classes

    @property
    def rows(self) -> Rows:
        """The dataset rows (n,) to train on, in dataset order."""
        return self.matching.rows

    @property
    def views(self) -> tuple[int, ...]:
        """The views that the cache holds of this split; 0 is the plain one."""
        return self.cache.views(self.matching.split)

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of these dataset rows have labels, (B,)."""
        return np.asarray(self.matching.entry_of[rows] >= 0)

    def blocks(self, rows: Rows | None = None) -> tuple[Rows, ...]:
        """``rows`` (all by default) cut into blocks that share a part; one without labels goes with the row before."""
        rows = self.rows if rows is None else rows
        entries = self.matching.entry_of[rows]
        table = PartTable(self.cache, self.matching.split, 0)
        known = entries >= 0
        last_known = np.maximum.accumulate(np.where(known, np.arange(len(rows)), -1))
        filled = np.where(last_known >= 0, entries[np.maximum(last_known, 0)], 0)
        return blocks_of(rows, table.part_of(filled))

    def order(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        window: int = 8,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        rows: Rows | None = None,
        first_window: int = 0,
    ) -> Order:
        """Shuffled batches whose labels stream well: blocks are the cache's parts (see ``Order``).

        ``rows`` picks some of ``self.rows``; a row that occurs twice is visited twice an epoch.
        """
        return Order(
            self.blocks(rows),
            batch_size,
            seed=seed,
            window=window,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world=world,
            first_window=first_window,
        )

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> CachedStream:
        """Labels of ``view`` for the batches of one epoch, from batch ``start`` on.

        Raises CacheMismatchError when the cache does not hold that view.
        """
        view = 0 if self.labels_view == "plain" else view
        if view not in self.views:
            raise CacheMismatchError(
                f"{self.cache.address} holds no view {view} of its {self.matching.split} split; it holds "
                f"{', '.join(map(str, self.views))}"
            )
        if self.resident != "none":
            if view not in self._kept:
                self._kept[view] = self._read_all(view)
            find = self._kept[view]
            return CachedStream(((rows, find(rows)) for rows in order.epoch(epoch, start)), self.device)
        cache, matching, device, buffers = self.cache, self.matching, self.device, self._buffers
        if device.type == "cpu":
            # The student computes in this thread too: gathering a batch costs less than taking it over from another.
            found = Batches(matching, order, epoch, start, view, cache, buffers, threads=True)
            return CachedStream(_Decoded(cache, found), device)

        def read() -> Iterator[Batch]:
            with closing(Batches(matching, order, epoch, start, view, cache, buffers, threads=False)) as found:
                for rows, arrays in found:
                    yield rows, decoded(cache, arrays, pin=device.type == "cuda")

        depth = max(2, min(MOST_BATCHES_AHEAD, BYTES_AHEAD // max(1, 4 * self.classes * order.batch_size)))
        return CachedStream(Prefetch(read, depth, "softlabels-labels"), device)

    def _read_all(self, view: int) -> Callable[[Rows], SoftLabels]:
        """A function from dataset rows to their labels, out of memory."""
        table = PartTable(self.cache, self.matching.split, view)
        window = Window(table, self.matching.entry_of[self.rows], Buffers(self.cache))
        with closing(self.cache.files.ahead()) as ahead:
            ahead.ask(window.paths())
            window.load(len(window.parts))
        slot_of = np.zeros(len(self.matching.entry_of), dtype=np.int64)
        slot_of[self.rows] = window.slots(self.matching.entry_of[self.rows])
        cache, device = self.cache, self.device
        if self.resident == "ram":
            pin = device.type == "cuda"
            return lambda rows: decoded(cache, take(window.arrays, slot_of[rows], threads=True), pin=pin)
        everything = decoded(cache, window.arrays).map(lambda tensor: tensor.to(device))
        slots = torch.from_numpy(slot_of).to(device)

        def find(rows: Rows) -> SoftLabels:
            index = slots[torch.from_numpy(rows).to(device, non_blocking=True)]
            return everything.map(lambda tensor: tensor.index_select(0, index))

        return find


def decoded(cache: Cache, arrays: Mapping[str, npt.NDArray[Any]], *, pin: bool = False) -> SoftLabels:
    """Stored arrays as soft labels of torch tensors on the host, in page-locked memory when ``pin``."""

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        # torch indexes with signed integers only.
        signed = array.astype(np.int64) if array.dtype.kind == "u" else array
        made = torch.from_numpy(np.ascontiguousarray(signed))
        return made.pin_memory() if pin else made

    return cache.decode(arrays).map(tensor)


def _head(rows: Rows) -> str:
    return f"{rows[:4].tolist()}{'...' if len(rows) > 4 else ''}".replace("]...", ", ...]")
