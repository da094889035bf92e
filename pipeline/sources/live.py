"""Soft labels from a teacher that runs beside the student: what a cache stands in for and is tested against."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.devices import autocast
from pipeline.models import frozen, logits_of
from pipeline.sampler import Order, Rows
from pipeline.softlabels import Dense


class LiveTeacher:
    """A teacher in evaluation mode, without gradients, run on the very inputs that the student gets.

    ``classes``: C; ``precision`` of its forward pass: float32, bfloat16 or float16, whatever the student's is.
    """

    def __init__(
        self, model: nn.Module, classes: int, *, device: str | torch.device = "cpu", precision: str = "float32"
    ) -> None:
        self.device = torch.device(device)
        self.model = frozen(model).to(self.device)
        self.precision = precision
        self._classes = classes

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self._classes

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """All of them, (B,)."""
        return np.ones(len(rows), dtype=np.bool_)

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> LiveTeacher:
        """This teacher: it looks at inputs, not at the order."""
        return self

    def next(self, inputs: Tensor, rows: Rows) -> Dense:
        """Logits (B, C) float32 for ``inputs`` (B, ...)."""
        # Somebody's student may share modules with the teacher: `student.train()` must not reach it.
        self.model.eval()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), autocast(self.device, self.precision):
            return Dense(logits_of(self.model(inputs)).float())

    def close(self) -> None:
        """Nothing to let go of."""
