"""Run a finished file before it is believed: is it its source, is it stable, does the batch matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import ModelError

Floats: TypeAlias = npt.NDArray[np.float32]
Inputs: TypeAlias = npt.NDArray[Any]
"""(B, ...) float32 values, or (B, T) int64 tokens."""
Predictor: TypeAlias = Callable[[Inputs], Floats]
"""(B, ...) float32 values to (B, C) float32 logits; (B, T) int64 tokens to (B, T, V)."""

FLOAT_TOLERANCE = 1e-4
"""Largest difference of an exported float model from its source, relative to the largest logit."""
BATCH_TOLERANCE = 0.02
"""Largest difference between batch 1 and batch N, relative to the largest logit: one step of an 8-bit activation
may round the other way; float models stay far below it."""


@dataclass(frozen=True)
class Check:
    """How one file behaves on the inputs it was tried with.

    ``max_difference``: largest absolute difference of a logit from the source model; ``repeat_identical``: the same
    call gives the same bits again; ``batch_difference``: the largest difference between one batch and one by one;
    ``scale``: the largest logit of the source.
    """

    max_difference: float
    repeat_identical: bool
    batch_difference: float
    scale: float

    @property
    def faithful(self) -> bool:
        """Within the tolerance of a float export."""
        return self.max_difference <= FLOAT_TOLERANCE * max(self.scale, 1.0)

    def problems(self) -> list[str]:
        """What makes the file unusable, whatever its precision."""
        found = []
        if not self.repeat_identical:
            found.append("repeated calls on the same input differ")
        if self.batch_difference > BATCH_TOLERANCE * max(self.scale, 1.0):
            found.append(f"batch 1 and batch N differ by {self.batch_difference:.3g}")
        return found


def check(predict: Predictor, inputs: Inputs, source: Floats, *, calls: int = 3) -> Check:
    """Try a file on ``inputs`` (B, ...) whose logits by the source model are ``source`` (B, C); of tokens (B, T, V).

    Raises ModelError on logits of another shape or that are not finite.
    """
    first = predict(inputs)
    if first.shape != source.shape or not np.isfinite(first).all():
        raise ModelError(f"the file should give finite {source.shape} logits; found {first.shape}, some not finite")
    repeated = all(np.array_equal(first, predict(inputs)) for _ in range(calls - 1))
    singly = np.concatenate([predict(inputs[i : i + 1]) for i in range(len(inputs))])
    again = np.array_equal(first, predict(inputs))  # after other batch sizes: a plan cached for one may harm another
    return Check(
        max_difference=float(np.abs(first - source).max()),
        repeat_identical=repeated and again,
        batch_difference=float(np.abs(first - singly).max()),
        scale=float(np.abs(source).max()),
    )
