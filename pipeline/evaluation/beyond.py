"""Beyond the split as it is: the same examples corrupted, and inputs of no class, as ``evaluate`` is asked for them.

What there is to run is found before any work. All of it is a function of predictors, a dataset and its rows: the
predictors may be models or what was exported of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.datasets import Dataset
from pipeline.evaluation.batches import Predictor
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.outliers import open_outliers, out_of_distribution
from pipeline.evaluation.robustness import conditions, corrupted
from pipeline.metrics import Scores

Key = TypeVar("Key", bound=Hashable)
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Beyond:
    """What else is looked at.

    ``conditions``: how many corruptions times severities; ``outside``: what is of no class, None where not asked.
    """

    conditions: int = 0
    outside: tuple[Dataset, Rows] | None = None

    def examples(self, rows: Rows) -> int:
        """How many examples are read, for progress."""
        return self.conditions * len(rows) + (len(rows) + len(self.outside[1]) if self.outside else 0)


def look_beyond(config: EvaluateConfig, dataset: Dataset, rows: Rows) -> Beyond:
    """What is asked for. Raises ConfigError or DataError where these examples, or the outliers, are not of the kind."""
    wanted = conditions(dataset, int(rows[0]), config.corruptions, config.severities)[0] if config.corruptions else ()
    outside = None
    if config.outliers is not None:
        outside = open_outliers(config.outliers, config.outlier_args, (dataset, rows), config.split)
    return Beyond(len(wanted), outside)


def measure_beyond(
    config: EvaluateConfig,
    beyond: Beyond,
    predictors: Mapping[Key, Predictor],
    dataset: Dataset,
    rows: Rows,
    clean: Mapping[Key, Scores],
    *,
    baseline: Key | None = None,
    advance: Callable[[int], object] = lambda n: None,
) -> dict[str, Any]:
    """``robustness`` and ``outliers`` of labelled ``rows``, what was asked for of them, as JSON values.

    ``clean``: scores of the rows as they are; ``baseline``: the model whose errors under corruption count as 1.
    """
    found: dict[str, Any] = {}
    options: dict[str, Any] = {"batch_size": config.batch_size, "workers": config.workers, "advance": advance}
    if beyond.conditions:
        found["robustness"] = corrupted(
            predictors, dataset, rows, config.corruptions, config.severities,
            clean=clean, baseline=baseline, bins=config.bins, **options,
        ).as_dict()  # fmt: skip
    if beyond.outside is not None:
        found["outliers"] = out_of_distribution(predictors, (dataset, rows), beyond.outside, **options).as_dict()
    return found


def averaged(details: Mapping[str, Any]) -> dict[str, float]:
    """The flat figures: means over the models, of those that all of them have."""
    found: dict[str, float] = {}
    for part in ("robustness", "outliers"):
        summaries = [model["summary"] for model in details[part]["models"].values()] if part in details else []
        for name in summaries[0] if summaries else ():
            if all(name in summary for summary in summaries):
                found[name] = round(float(np.mean([summary[name] for summary in summaries])), 4)
    return found
