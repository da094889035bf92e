"""How much a step and an epoch weigh: an example counts 1, a token sequence as often as it has scored positions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.sampler import Order
from pipeline.training.recipe import Recipe


class Counts:
    """Rows, or scored positions, of the optimiser steps of ``order``, over all ranks.

    ``lengths`` (N,): positions of each row of the dataset, None where every row is one.
    """

    def __init__(self, order: Order, recipe: Recipe, lengths: npt.NDArray[np.int64] | None) -> None:
        self._order = replace(order, rank=0, world=1)
        self._accumulate, self._lengths = recipe.accumulate, lengths
        whole = self._order.all_batches * recipe.batch_size
        self._examples = whole if recipe.drop_last else order.examples
        self._batch_size = recipe.batch_size
        self._held: tuple[int, npt.NDArray[np.int64]] | None = None

    def step(self, epoch: int, batch: int) -> int:
        """Of the optimiser step that batch number ``batch`` is part of."""
        first = batch // self._accumulate * self._accumulate
        if self._lengths is not None:
            return int(self._batches(epoch)[first : first + self._accumulate].sum())
        return min(self._accumulate * self._batch_size, self._examples - first * self._batch_size)

    def epoch(self, epoch: int) -> int:
        """Of all steps of an epoch."""
        return self._examples if self._lengths is None else int(self._batches(epoch).sum())

    def _batches(self, epoch: int) -> npt.NDArray[np.int64]:
        """Positions (n,) of each batch of an epoch."""
        if self._held is None or self._held[0] != epoch:
            lengths = self._lengths
            found = [0 if lengths is None else int(lengths[rows].sum()) for rows in self._order.epoch(epoch)]
            self._held = epoch, np.array(found, dtype=np.int64)
        return self._held[1]
