"""Train students from a cache, from a live teacher, or from hard labels alone.

``run`` is the stage. ``prepare`` and ``fit`` are its two halves, for those who train a model of their own making: the
fit-teacher and compress stages do.
"""

from pipeline.training.config import TrainConfig
from pipeline.training.fitted import Fitted
from pipeline.training.loop import fit
from pipeline.training.objective import Objective
from pipeline.training.preparation import Prepared, make_task, prepare
from pipeline.training.recipe import Recipe
from pipeline.training.stage import TrainReport, run
from pipeline.training.task import Task

__all__ = [
    "Fitted",
    "Objective",
    "Prepared",
    "Recipe",
    "Task",
    "TrainConfig",
    "TrainReport",
    "fit",
    "make_task",
    "prepare",
    "run",
]
