"""Model inputs, batch by batch, in the sampler's order: loaded as they are needed, or loaded once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.datasets import Dataset
from pipeline.devices import on_device
from pipeline.sampler import Order, Rows
from pipeline.views import Views, input_loader

AUTO_BYTES = 1 << 30
KEEPING_BATCH = 256


class Inputs(Protocol):
    """Where batches of model inputs come from."""

    def stream(self, order: Order, epoch: int, start: int, view: int) -> Iterator[Tensor]:
        """Inputs (B, ...) float32 on the device, of one view, from batch ``start`` of ``epoch`` on."""


class EntryBatches:
    """A DataLoader's batch sampler: the (row, view) pairs of each batch of an epoch that may be set anew."""

    def __init__(self) -> None:
        self._what: tuple[Order, int, int, int] | None = None

    def set(self, order: Order, epoch: int, start: int, view: int) -> None:
        """Which batches the next iteration gives."""
        self._what = (order, epoch, start, view)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if self._what is not None:
            order, epoch, start, view = self._what
            for rows in order.epoch(epoch, start):
                yield [(row, view) for row in rows.tolist()]

    def __len__(self) -> int:
        if self._what is None:
            return 0
        order, _, start, _ = self._what
        return max(0, order.batches - start)


class LoadedInputs:
    """Inputs read and transformed each time they are needed, in ``workers`` processes (0: in this one)."""

    def __init__(self, dataset: Dataset, views: Views, device: torch.device, workers: int) -> None:
        self.device = device
        self._batches = EntryBatches()
        # It draws from no global generator: a run resumed in the middle of an epoch, which opens that epoch once
        # more, would end with other dropout.
        self._loader = input_loader(
            dataset, views, self._batches, workers, pin_memory=device.type == "cuda", persistent=True
        )

    def stream(self, order: Order, epoch: int, start: int, view: int) -> Iterator[Tensor]:
        self._batches.set(order, epoch, start, view)
        loaded = iter(self._loader)  # now, not at the first batch: workers fork before other threads start
        return (batch.to(self.device, non_blocking=True) for batch in loaded)


class ResidentInputs:
    """Inputs of some rows, each view loaded once, when its first epoch comes, and kept on ``device``."""

    def __init__(
        self, dataset: Dataset, views: Views, rows: Rows, device: torch.device, keep_on: torch.device, workers: int
    ) -> None:
        self.rows = np.unique(rows)
        self.device, self.keep_on = device, keep_on
        self._dataset, self._views, self._workers = dataset, views, workers
        self._kept: dict[int, Tensor] = {}

    def stream(self, order: Order, epoch: int, start: int, view: int) -> Iterator[Tensor]:
        if view not in self._kept:
            self._kept[view] = self._load(view)
        return self._gather(self._kept[view], order.epoch(epoch, start))

    def _gather(self, kept: Tensor, batches: Iterator[Rows]) -> Iterator[Tensor]:
        for rows in batches:
            slots = on_device(np.searchsorted(self.rows, rows), self.keep_on)
            yield kept.index_select(0, slots).to(self.device, non_blocking=True)

    def _load(self, view: int) -> Tensor:
        order = Order((self.rows,), KEEPING_BATCH, shuffle=False)
        loader = LoadedInputs(self._dataset, self._views, torch.device("cpu"), self._workers)
        return torch.cat(list(loader.stream(order, 0, 0, view))).to(self.keep_on)


def make_inputs(
    dataset: Dataset,
    views: Views,
    rows: Rows,
    number_of_views: int,
    *,
    device: torch.device,
    resident: str,
    workers: int,
) -> Inputs:
    """Kept or loaded inputs for ``rows``; ``auto`` keeps them on the device when they need less than 1 GiB."""
    if resident == "auto":
        size = 4 * int(np.prod(dataset.input_shape)) * len(np.unique(rows)) * number_of_views
        resident = "device" if size < AUTO_BYTES else "none"
    if resident == "none":
        return LoadedInputs(dataset, views, device, workers)
    return ResidentInputs(
        dataset, views, rows, device, device if resident == "device" else torch.device("cpu"), workers
    )
