"""Fits that stop after a step, leave their state behind, and go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from pipeline.training import TrainConfig, fit, prepare
from pipeline.training.stage import initial_student
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


Trained = tuple[list[float], dict[str, Tensor], Any]


def stopped_and_resumed(
    config: TrainConfig, state: Path | None = None, stops: tuple[int, ...] = (), *, seed: int
) -> Trained:
    """Losses of all steps, final weights and history; stopped and resumed after each of ``stops``."""
    losses: list[float] = []
    for stop in (*stops, None):

        def on_step(step: int, loss: Tensor, stop: int | None = stop) -> None:
            losses.append(float(loss))
            if step == stop:
                os.kill(os.getpid(), signal.SIGINT)

        prepared = prepare(config)
        model = initial_student(config, prepared.dataset, seed)
        if stop is None:
            fitted = fit(model, prepared.task, config, seed=seed, state=state, on_step=on_step)
        else:
            with pytest.raises(KeyboardInterrupt):
                fit(model, prepared.task, config, seed=seed, state=state, on_step=on_step)
    return losses, dict(model.state_dict()), fitted.history
