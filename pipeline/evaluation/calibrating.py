"""Temperature scaling of what is measured: one temperature per model, of validation, never of the split itself.

A temperature is fitted to all logits of a model at once. They stay out of memory: each model's are written to a
temporary file of float32, 4 N C bytes, as the batches pass, and read from there in chunks. Of token sequences those of
evenly spread positions, as many as ``KEPT_ELEMENTS`` allow: one number needs no more. Scores of the split after scaling
are taken from the same forward pass as those before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline import metrics
from pipeline.datasets import Dataset
from pipeline.errors import DataError
from pipeline.evaluation.batches import Logits, Predictor
from pipeline.evaluation.scoring import HELD_OUT, Key, of_one, score_rows, scores_of
from pipeline.metrics import Gathered, Scores

ITSELF = f"{HELD_OUT} is what was measured, and a temperature is fitted on examples that are held out of that"
UNLABELLED = f"the dataset has no labelled {HELD_OUT} examples to fit a temperature on"
KEPT_ELEMENTS = 1 << 26
"""Logits of one language model that a temperature is fitted to: 256 MiB of float32, 16,384 tokens of 4,096."""


@dataclass(frozen=True)
class Scaling:
    """``temperatures`` of models, by (name, seed), and of the others why they have none: ``left_out``.

    ``scores``: those of the split measured after scaling, of models that have a temperature. ``tokens``: of token
    sequences, to how many positions it was fitted, and how many there are.
    """

    temperatures: Mapping[Any, float]
    left_out: Mapping[Any, str]
    scores: Mapping[Any, Scores] = field(default_factory=dict)
    tokens: tuple[int, int] | None = None

    def of(self, name: str) -> Scaling:
        """That of one candidate, by seed, where the keys are (name, seed)."""
        temperatures, left_out = of_one(self.temperatures, name), of_one(self.left_out, name)
        return Scaling(temperatures, left_out, of_one(self.scores, name), self.tokens)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; the temperatures are among the figures of each seed."""
        return {
            "fitted_on": HELD_OUT if self.temperatures else None,
            "left_out": {str(seed): reason for seed, reason in self.left_out.items()},
            **({} if self.tokens is None else {"tokens": self.tokens[0], "of_tokens": self.tokens[1]}),
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
    classes, total = len(dataset.classes), int(np.asarray(dataset.lengths)[rows].sum())
    every = max(1, -(-total * classes // KEPT_ELEMENTS)) if dataset.discrete else 1
    seen = dict.fromkeys(predictors, 0)
    with ExitStack() as stack:
        files = {seed: stack.enter_context(tempfile.TemporaryFile()) for seed in predictors}

        def keep(seed: Key, logits_BC: Logits, labels_B: npt.NDArray[Any]) -> None:
            kept_BC = logits_BC[-seen[seed] % every :: every]
            kept_BC = kept_BC.cpu().numpy() if isinstance(kept_BC, Tensor) else kept_BC
            files[seed].write(np.ascontiguousarray(kept_BC, dtype=np.float32).data)
            seen[seed] += len(logits_BC)

        scores = score_rows(predictors, dataset, rows, observe=keep, **options)
        temperatures: dict[Key, float] = {}
        left_out: dict[Key, str] = {}
        shape = (-(-total // every), classes)
        for seed, file in files.items():
            file.flush()
            try:
                held = np.memmap(file, dtype=np.float32, mode="r", shape=shape)
                temperatures[seed] = metrics.fit_temperature(held, scores[seed].labels[::every])
            except DataError as error:
                left_out[seed] = str(error)
    return scores, Scaling(temperatures, left_out, tokens=(shape[0], total) if dataset.discrete else None)


def score_scaled(
    predictors: Mapping[Key, Predictor],
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    scaling: Scaling,
    **options: Any,
) -> tuple[dict[Key, Scores], Scaling]:
    """Scores over ``rows`` (N,) as the models are, and ``scaling`` with those after it, from one forward pass."""
    gathered = {seed: Gathered() for seed in scaling.temperatures}

    def scale(seed: Key, logits_BC: Logits, labels_B: npt.NDArray[Any]) -> None:
        if seed in gathered:
            wide = logits_BC if isinstance(logits_BC, Tensor) else np.asarray(logits_BC, dtype=np.float64)
            gathered[seed].add(scores_of(wide / scaling.temperatures[seed], labels_B))

    scores = score_rows(predictors, dataset, rows, observe=scale, **options)
    scaled = {seed: found.scores for seed, found in gathered.items()}
    return scores, replace(scaling, scores=scaled)
