"""The contract of a label source."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.sampler import Order, Rows
from pipeline.softlabels import Opinions, SoftLabels


class LabelStream(Protocol):
    """The soft labels of one epoch, batch by batch, in the order of the ``Order`` it was opened with."""

    def next(self, inputs: Tensor, rows: Rows) -> SoftLabels | Opinions:
        """Labels of the next batch: ``inputs`` (B, ...) on the source's device, ``rows`` (B,) of the dataset.

        Rows for which the source ``has`` nothing get finite placeholders, to be weighed by 0.
        """

    def close(self) -> None:
        """Let go of threads and buffers. May be called twice."""


class LabelSource(Protocol):
    """Anything that yields soft labels for a batch of entries."""

    @property
    def classes(self) -> int:
        """C, the number of classes."""

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of these dataset rows have soft labels, (B,)."""

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> LabelStream:
        """Labels of one view for the batches of one epoch, from batch number ``start`` on."""
