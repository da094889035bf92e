"""Which student is compressed: the best on validation of the runs named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.datasets import Dataset
from pipeline.errors import ConfigError
from pipeline.evaluation import labelled_rows, score_rows, torch_predictor
from pipeline.metrics import spread
from pipeline.runs import Run, parameter_count


@dataclass(frozen=True)
class Chosen:
    """The run that is best on validation on average, and the seed of it that is best there.

    ``considered``: all runs with the mean accuracy of their seeds; of language models less the mean loss.
    """

    run: Run
    seed: int
    accuracy: float
    considered: tuple[tuple[Run, float], ...]
    nll: float = math.nan


def choose(
    runs: Sequence[Run], dataset: Dataset, *, batch_size: int, workers: int = 0, seed: int | None = None
) -> Chosen:
    """Choose by validation accuracy: the run by its mean over seeds, then the seed. The test split is not touched.

    Ties go to the smaller model, then to the lower loss; language models are chosen by that first. ``seed``: take that
    one of the best run. Raises DataError without a validation split, ConfigError for a seed that the run does not have.
    """
    rows = labelled_rows(dataset, "validation")
    models = {(r, s): run.build(dataset, s) for r, run in enumerate(runs) for s in run.weights}
    cpu = torch.device("cpu")
    scores = score_rows(
        {key: torch_predictor(model, cpu) for key, model in models.items()},
        dataset, rows, batch_size=batch_size, workers=workers,
    )  # fmt: skip

    def rank(key: tuple[int, int]) -> tuple[float, int, float]:
        if dataset.discrete:
            return -scores[key].nll, -parameter_count(models[key]), scores[key].accuracy
        return scores[key].accuracy, -parameter_count(models[key]), -scores[key].nll

    def rank_run(r: int) -> tuple[float, int, float]:
        ranks = [rank((r, s)) for s in runs[r].weights]
        return spread([a for a, _, _ in ranks])[0], ranks[0][1], spread([loss for _, _, loss in ranks])[0]

    best = max(range(len(runs)), key=rank_run)
    if seed is not None and seed not in runs[best].weights:
        known = ", ".join(map(str, runs[best].weights))
        raise ConfigError(f"--student-seed should be one of those of {runs[best].path} ({known}); found {seed}")
    chosen = max(runs[best].weights, key=lambda s: rank((best, s))) if seed is None else seed
    considered = tuple((run, rank_run(r)[0]) for r, run in enumerate(runs))
    return Chosen(runs[best], chosen, scores[best, chosen].accuracy, considered, scores[best, chosen].nll)
