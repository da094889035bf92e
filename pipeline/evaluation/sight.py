"""What there is to look at, known before any work: the rows of each split, what lies beyond them, and the teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.datasets import Dataset
from pipeline.evaluation.beyond import Beyond, look_beyond
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.measuring import rows_to_measure
from pipeline.evaluation.teachers import Teachers
from pipeline.runs import Run


@dataclass(frozen=True)
class Sight:
    """``rows_of`` each split, in the order of the passes; ``teachers``: None where there is none to compare with."""

    rows_of: Mapping[str, npt.NDArray[np.int64]]
    beyond: Beyond
    teachers: Teachers | None
    split: str

    @property
    def examples(self) -> int:
        """How many are read, for progress."""
        return sum(map(len, self.rows_of.values())) + self.beyond.examples(self.rows_of[self.split])


def look(config: EvaluateConfig, trained: Run | None, dataset: Dataset, teachers: Teachers | None) -> Sight:
    """Everything that ``config`` asks to look at. Raises ConfigError or DataError for what is not there."""
    rows_of = rows_to_measure(config, trained, dataset, teachers)
    return Sight(rows_of, look_beyond(config, dataset, rows_of[config.split]), teachers, config.split)
