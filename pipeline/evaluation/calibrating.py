"""Temperature scaling of what is measured: one temperature per model, of validation, never of the split itself.

A temperature is fitted to all logits of a model at once. They stay out of memory: each model's are written to a
temporary file of float32, 4 N C bytes, as the batches pass, and read from there in chunks. Scores of the split after
scaling are taken from the same forward pass as those before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import metrics
from pipeline.datasets import Dataset
from pipeline.errors import DataError
from pipeline.evaluation.scoring import HELD_OUT, Key, Predictor, of_one, score_rows
from pipeline.metrics import Scores

ITSELF = f"{HELD_OUT} is what was measured, and a temperature is fitted on examples that are held out of that"
UNLABELLED = f"the dataset has no labelled {HELD_OUT} examples to fit a temperature on"


@dataclass(frozen=True)
class Scaling:
    """``temperatures`` of models, by (name, seed), and of the others why they have none: ``left_out``.

    ``scores``: those of the split measured after scaling, of models that have a temperature.
    """

    temperatures: Mapping[Any, float]
    left_out: Mapping[Any, str]
    scores: Mapping[Any, Scores] = field(default_factory=dict)

    def of(self, name: str) -> Scaling:
        """That of one candidate, by seed, where the keys are (name, seed)."""
        return Scaling(of_one(self.temperatures, name), of_one(self.left_out, name), of_one(self.scores, name))

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; the temperatures are among the figures of each seed."""
        return {
            "fitted_on": HELD_OUT if self.temperatures else None,
            "left_out": {str(seed): reason for seed, reason in self.left_out.items()},
        }

    def figures(self, seed: int, bins: int) -> dict[str, float] | None:
        """The temperature of one model and its calibration after scaling; None where there is none. JSON values."""
        if seed not in self.scores:
            return None
        scores = self.scores[seed]
        return {
            "temperature": self.temperatures[seed],
            "nll": scores.nll,
            "brier": scores.brier_score,
            "ece": metrics.reliability(scores.confidence, scores.correct, bins).ece,
            "adaptive_ece": metrics.adaptive_reliability(scores.confidence, scores.correct, bins).ece,
        }


def score_and_fit(
    predictors: Mapping[Key, Predictor], dataset: Dataset, rows: npt.NDArray[np.int64], **options: Any
) -> tuple[dict[Key, Scores], Scaling]:
    """Scores over labelled held-out ``rows`` (N,), and the temperature that fits each model best there.

    A model for which there is no best temperature (``metrics.fit_temperature`` says when) is left out, with the reason.
    ``options`` are those of ``score_rows``. Raises what that raises, and OSError where a temporary file does not fit.
    """
    with ExitStack() as stack:
        files = {seed: stack.enter_context(tempfile.TemporaryFile()) for seed in predictors}

        def keep(seed: Key, logits_BC: npt.NDArray[Any], labels_B: npt.NDArray[Any]) -> None:
            files[seed].write(np.ascontiguousarray(logits_BC, dtype=np.float32).data)

        scores = score_rows(predictors, dataset, rows, observe=keep, **options)
        temperatures: dict[Key, float] = {}
        left_out: dict[Key, str] = {}
        shape = (len(rows), len(dataset.classes))
        for seed, file in files.items():
            file.flush()
            try:
                held = np.memmap(file, dtype=np.float32, mode="r", shape=shape)
                temperatures[seed] = metrics.fit_temperature(held, scores[seed].labels)
            except DataError as error:
                left_out[seed] = str(error)
    return scores, Scaling(temperatures, left_out)


def score_scaled(
    predictors: Mapping[Key, Predictor],
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    scaling: Scaling,
    **options: Any,
) -> tuple[dict[Key, Scores], Scaling]:
    """Scores over ``rows`` (N,) as the models are, and ``scaling`` with those after it, from one forward pass."""
    pieces: dict[Key, list[Scores]] = {seed: [] for seed in scaling.temperatures}

    def scale(seed: Key, logits_BC: npt.NDArray[Any], labels_B: npt.NDArray[Any]) -> None:
        if seed in pieces:
            scaled = np.asarray(logits_BC, dtype=np.float64) / scaling.temperatures[seed]
            pieces[seed].append(metrics.score(scaled, labels_B))

    scores = score_rows(predictors, dataset, rows, observe=scale, **options)
    scaled = {seed: metrics.concatenate(found) for seed, found in pieces.items()}
    return scores, Scaling(scaling.temperatures, scaling.left_out, scaled)
