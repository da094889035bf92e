"""What is looked at, and the passes over it: validation, the split measured and, where asked for, train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets import Dataset
from pipeline.errors import ConfigError
from pipeline.evaluation.batches import Predictor
from pipeline.evaluation.calibrating import ITSELF, UNLABELLED, Scaling, score_and_fit, score_scaled
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.scoring import HELD_OUT, Key, TeacherScores, labelled_rows, of_one, score_rows
from pipeline.evaluation.teachers import AnyTeacher
from pipeline.metrics import Scores
from pipeline.runs import Run
from pipeline.training.task import hard_labels

TRAIN = "train"


@dataclass(frozen=True)
class Measured:
    """``scores`` by split and (name, seed), or by split and seed of one candidate.

    ``own``: what the teacher said of the split measured, None where it said nothing; ``scaling``: None where it was not
    asked for.
    """

    scores: Mapping[str, Mapping[Any, Scores]]
    own: Scores | None = None
    scaling: Scaling | None = None

    def of(self, name: str) -> Measured:
        """What belongs to one candidate, by seed."""
        scores = {split: of_one(found, name) for split, found in self.scores.items()}
        return Measured(scores, self.own, self.scaling.of(name) if self.scaling else None)


def rows_to_measure(
    config: EvaluateConfig, trained: Run | None, dataset: Dataset, teachers: AnyTeacher | None
) -> dict[str, npt.NDArray[np.int64]]:
    """Dataset rows by split, in the order of the passes: what a temperature is fitted on comes first.

    Of train that is all that the student could have learnt from, labelled or not: without the class left out. Raises
    DataError for a split without labels, ConfigError where the teacher's labels of train are asked for and not there.
    """
    rows = labelled_rows(dataset, config.split)
    if config.fidelity_on_train and (teachers is None or TRAIN not in teachers.splits):
        held = f"the cache holds {', '.join(teachers.splits) or 'none'}" if teachers else "there is no cache"
        raise ConfigError(
            f"--fidelity-on-train compares with the teacher's labels of train; {held}. Name a cache that holds them by "
            "--cache, or leave the option out"
        )
    found: dict[str, npt.NDArray[np.int64]] = {}
    if config.split != HELD_OUT and (hard_labels(dataset)[dataset.rows(HELD_OUT)] >= 0).any():
        found[HELD_OUT] = labelled_rows(dataset, HELD_OUT)
    found[config.split] = rows
    if config.fidelity_on_train and config.split != TRAIN:
        omitted = str(trained.config.get("omit_class") or "") if trained else ""
        of_train = np.asarray(dataset.rows(TRAIN), dtype=np.int64)
        if omitted in dataset.classes:
            of_train = of_train[np.asarray(dataset.labels)[of_train] != dataset.classes.index(omitted)]
        found[TRAIN] = of_train
    return found


def measure(
    config: EvaluateConfig,
    predictors: Mapping[Key, Predictor],
    dataset: Dataset,
    rows_of: Mapping[str, npt.NDArray[np.int64]],
    teachers: AnyTeacher | None,
    advance: Callable[[int], object] = lambda n: None,
) -> Measured:
    """Run the models over what ``rows_to_measure`` found, each split once."""
    scores: dict[str, dict[Key, Scores]] = {}
    heard = TeacherScores()
    scaling = Scaling({}, dict.fromkeys(predictors, ITSELF if config.split == HELD_OUT else UNLABELLED))
    for split, rows in rows_of.items():
        known = teachers is not None and split in teachers.splits
        teacher = teachers.told(dataset, split, config.temperature) if teachers and known else None
        options: dict[str, Any] = {
            "teacher": teacher,
            "temperature": config.temperature,
            "batch_size": config.batch_size,
            "workers": config.workers,
            "advance": advance,
            **({"hear": heard.hear} if split == config.split else {}),
        }
        if config.calibrate and split == HELD_OUT != config.split:
            scores[split], scaling = score_and_fit(predictors, dataset, rows, **options)
        elif split == config.split and scaling.temperatures:
            scores[split], scaling = score_scaled(predictors, dataset, rows, scaling, **options)
        else:
            scores[split] = score_rows(predictors, dataset, rows, **options)
    return Measured(scores, heard.scores, scaling if config.calibrate else None)
