"""What a step needs, batch after batch in the sampler's order: inputs, labels, and what the teacher said of them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, closing

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.devices import on_device
from pipeline.losses.response import NO_LABEL
from pipeline.sampler import Order, Rows
from pipeline.softlabels import Opinions, SoftLabels
from pipeline.sources import FeatureSource, LabelSource
from pipeline.sources.positions import Positions, positions_of
from pipeline.training.objective import Batch, Goal
from pipeline.training.task import Task


class Supply:
    """The batches of a task in the order of ``order``, epoch by epoch, on the task's device."""

    def __init__(self, task: Task, order: Order) -> None:
        self._task, self._order = task, order
        self._labels = torch.from_numpy(task.labels).to(task.device)
        self._has_soft = self._has(task.source)
        self._has_hints = self._has(task.hints)
        self._drawn: dict[int, tuple[Rows, npt.NDArray[np.float32]]] = {}

    def _has(self, source: LabelSource | FeatureSource | None) -> Tensor | None:
        """(N,) which rows have soft labels or hints; None when all that are visited do."""
        if source is None:
            return None
        has = source.has(np.arange(len(self._task.labels), dtype=np.int64))
        if all(has[block].all() for block in self._task.blocks):
            return None
        return torch.from_numpy(has).to(self._task.device)

    def _mixed(self, rows: Rows, view: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Labels (B,) of the partners of mixed rows, and the rows' own share (B,)."""
        if self._task.mixing is None or view == 0:
            return None, None
        if view not in self._drawn:
            count = len(self._task.labels)
            self._drawn[view] = np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=np.float32)
        partners, share = self._drawn[view]
        new = np.unique(rows[partners[rows] < 0])
        if len(new):
            partners[new], share[new] = self._task.mixing(new, view)
        found = (on_device(array[rows], self._task.device) for array in (partners, share))
        whose, own = found
        return self._labels[whose], own

    @staticmethod
    def _of_positions(
        positions: Positions, labels: Tensor, soft: SoftLabels | Opinions | None, has_soft: Tensor | None
    ) -> Batch:
        """What is known of the positions of sequences; ``labels`` (B,) are -1 for those whose tokens do not count."""
        counting = positions.spread(labels) >= 0
        return Batch(
            labels=positions.targets.masked_fill(~counting, NO_LABEL),
            soft=soft,
            has_soft=None if has_soft is None else positions.spread(has_soft),
            index=positions.index,
        )

    def epoch(self, objective: Goal, epoch: int, start: int, view: int) -> Generator[tuple[Tensor, Batch], None, None]:
        """Inputs (B, ...) and what is known of their rows, from batch ``start`` of ``epoch`` on; close it.

        Soft labels and hints are read where ``objective`` uses them.
        """
        task, order = self._task, self._order
        # Inputs first: their workers fork before the threads of labels and hints start.
        inputs = task.inputs.stream(order, epoch, start, view)
        with ExitStack() as opened:
            labels = hints = None
            if task.source is not None and objective.alpha:
                labels = opened.enter_context(closing(task.source.stream(order, epoch, start, view)))
            if task.hints is not None and objective.hints is not None:
                hints = opened.enter_context(closing(task.hints.stream(order, epoch, start, view)))
            wanted = {name for name, _ in objective.hints.pairs} if objective.hints is not None else set()
            for rows in order.epoch(epoch, start):
                x, positions = next(inputs), None
                if task.sequences is not None:
                    positions = positions_of(task.sequences, rows, task.device)
                    x = x[:, : positions.longest].contiguous()
                soft = labels.next(x, rows) if labels is not None else None
                found = hints.next(x, rows) if hints is not None else None
                index = on_device(rows, task.device)
                has_soft = None if self._has_soft is None else self._has_soft[index]
                if positions is not None:
                    yield x, self._of_positions(positions, self._labels[index], soft, has_soft)
                    continue
                partners, share = self._mixed(rows, view) if objective.beta else (None, None)
                batch = Batch(
                    labels=self._labels[index],
                    soft=soft,
                    has_soft=has_soft,
                    hints=found and {name: value for name, value in found.items() if name in wanted},
                    has_hints=None if self._has_hints is None else self._has_hints[index],
                    partners=partners,
                    share=share,
                )
                yield x, batch
            next(inputs, None)  # tells the workers of a DataLoader that the epoch has ended
