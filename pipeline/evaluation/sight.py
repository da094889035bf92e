"""What there is to look at, known before any work: the rows of each split, what lies beyond them, and the teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.datasets import Dataset
from pipeline.errors import ConfigError
from pipeline.evaluation.beyond import Beyond, look_beyond
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.measuring import rows_to_measure
from pipeline.evaluation.teachers import AnyTeacher
from pipeline.runs import Run


@dataclass(frozen=True)
class Sight:
    """``rows_of`` each split, in the order of the passes; ``teachers``: None where there is none to compare with."""

    rows_of: Mapping[str, npt.NDArray[np.int64]]
    beyond: Beyond
    teachers: AnyTeacher | None
    split: str

    @property
    def examples(self) -> int:
        """How many are read, for progress."""
        return sum(map(len, self.rows_of.values())) + self.beyond.examples(self.rows_of[self.split])


def look(config: EvaluateConfig, trained: Run | None, dataset: Dataset, teachers: AnyTeacher | None) -> Sight:
    """Everything that ``config`` asks to look at. Raises ConfigError or DataError for what is not there."""
    if dataset.discrete:
        given = ("corruptions", "outliers", "correct_class")
        named = [f"--{name.replace('_', '-')}" for name in given if getattr(config, name)]
        if named:
            raise ConfigError(f"{', '.join(named)}: of classifiers; {dataset.name} has token sequences. Leave it out")
    rows_of = rows_to_measure(config, trained, dataset, teachers)
    return Sight(rows_of, look_beyond(config, dataset, rows_of[config.split]), teachers, config.split)
