"""Soft labels out of a cache: streamed beside the inputs, or held in memory when they fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from pipeline.datasets import Dataset
from pipeline.errors import CacheMismatchError, ConfigError
from pipeline.sampler import Order, Rows, blocks_of
from pipeline.softlabels import SoftLabels
from pipeline.sources.matching import Matching, match
from pipeline.sources.stored import LabelContent
from pipeline.sources.streams import CachedStream, Streams
from pipeline.sources.windows import PartTable
from pipeline.store import Cache

RESIDENT = ("auto", "none", "ram", "device")
LABELS = ("own", "plain")


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
        check_choice("resident", resident, RESIDENT)
        check_choice("labels_view", labels_view, LABELS)
        self.cache = cache
        self.matching = data if isinstance(data, Matching) else match(cache, data, split, missing)
        self.device = torch.device(device)
        self.labels_view = labels_view
        self._streams = Streams(
            cache,
            self.matching,
            LabelContent(cache),
            device=self.device,
            resident=resident,
            views=len(self.views_read),
        )
        self.resident = self._streams.resident

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

    @property
    def views_read(self) -> tuple[int, ...]:
        """The views whose labels are read: all, or the plain one whatever the view."""
        return (0,) if self.labels_view == "plain" else self.views

    def view_read(self, view: int) -> int:
        """The view whose label ``view`` takes. Raises CacheMismatchError when the cache does not hold it."""
        view = 0 if self.labels_view == "plain" else view
        if view not in self.views:
            raise CacheMismatchError(
                f"{self.cache.address} holds no view {view} of its {self.matching.split} split; it holds "
                f"{', '.join(map(str, self.views))}"
            )
        return view

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

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> CachedStream[SoftLabels]:
        """Labels of ``view`` for the batches of one epoch, from batch ``start`` on.

        Raises CacheMismatchError when the cache does not hold that view.
        """
        return self._streams.stream(order, epoch, start, self.view_read(view))


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ConfigError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(f"{name} should be one of {', '.join(choices)}; found {value!r}")
