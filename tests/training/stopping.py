"""A fit that stops after a step, and leaves its state behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

from pipeline.training import TrainConfig, fit
from pipeline.training.task import Task


class _StopError(Exception):
    pass


def stopped(model: nn.Module, task: Task, options: TrainConfig, state: Path, stop: int) -> None:
    """Fit ``model`` until step ``stop`` has been taken."""

    def halt(step: int, loss: Tensor) -> None:
        if step == stop:
            raise _StopError

    with pytest.raises(_StopError):
        fit(model, task, options, seed=0, state=state, on_step=halt)
