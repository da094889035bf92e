"""The arrays of a ``topk`` encoding out of probabilities that somebody else kept, and what their rounding leaves open.

A source of top-k probabilities says K of the C, rounded, and nothing of the rest. Let p be a kept probability as it
stands and u half the step of its precision there: the teacher's own lies in [p - u, p + u] (u is widened by a few
float32 steps, the arithmetic of a softmax). What was dropped then lies between

    max(0, 1 - sum(p + u))    and    min(1 - sum(p - u), (C - K) * min(p + u)),

the latter because no dropped class is larger than a kept one. The residual is taken as 1 - sum(p), clipped to that
range: float16 sums beyond 1 are common (in 7 to 29 of 100 rows of synthetic teachers, and then it is 0). Clipping came
closer to the teacher's residual than the middle of the range. The declared bound covers the whole range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encodings import TopK
from pipeline.errors import EncodingError

Floats = npt.NDArray[np.floating[Any]]

ARITHMETIC = 8.0 * float(np.finfo(np.float32).eps)
"""Relative error of a float32 softmax: exp, the sum over the classes, the division."""

SMALLEST = float(np.finfo(np.float32).tiny)
"""A kept probability of 0 is stored as this: less than half a step of float16, and its logarithm is finite."""

LOWEST = float(np.finfo(np.float32).min)
"""The log of a residual of 0: -inf is for labels that dropped no class."""


@dataclass(frozen=True)
class Kept:
    """Top-k probabilities of N rows as a source has them: ``ids`` (N, K) integer, ``probs`` (N, K) in its precision."""

    ids: npt.NDArray[Any]
    probs: npt.NDArray[Any]


def rounding(probs: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """How far the teacher's probability may be from each of ``probs``, floating, any shape."""
    return half_step(probs) + ARITHMETIC * probs.astype(np.float64)


def half_step(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Half the distance from each of ``values`` to the next number of their own precision, as float64."""
    steps: npt.NDArray[np.float64] = np.spacing(np.abs(values)).astype(np.float64)
    return steps / 2


def residual_known_to(precision: np.dtype[Any], k: int) -> float:
    """No residual is known better than this for every row: the rounding of K probabilities that come to 1 at most.

    >>> round(residual_known_to(np.dtype("float16"), 100), 6), residual_known_to(np.dtype("float32"), 5) < 1.1e-6
    (0.000492, True)
    """
    info = np.finfo(precision)
    return float(info.eps) / 2 + k * float(info.smallest_subnormal) / 2 + ARITHMETIC


def encode(kept: Kept, classes: int, encoding: TopK) -> tuple[dict[str, npt.NDArray[Any]], float]:
    """Stored arrays and their bound, for probabilities at the one temperature of ``encoding``.

    Kept probabilities come back as they were, to float32's rounding of their logarithm; with the residual they come to
    1 within the bound, and in few bits to 1, whatever the source's rounding left. Raises EncodingError, with the row,
    for what no softmax over C = ``classes`` classes gives.
    """
    _check_ids(kept.ids, classes)
    (temperature,) = encoding.temperatures
    order = np.argsort(kept.ids, axis=1)
    ids = np.take_along_axis(kept.ids, order, axis=1).astype(np.int64)
    probs = np.take_along_axis(kept.probs, order, axis=1)
    residual, open_by = _residual(probs, classes)
    logs = np.log(np.maximum(probs.astype(np.float64), SMALLEST))
    largest = logs.max(axis=1, keepdims=True)
    logits = (temperature * (logs - largest)).astype(np.float32)
    with np.errstate(divide="ignore"):
        log_residual = np.maximum(np.log(residual), LOWEST)
    stored_residual = np.where(ids.shape[1] == classes, -np.inf, log_residual[:, None]).astype(np.float32)
    arrays = encoding.packed(classes, ids, logits, (-largest).astype(np.float32), stored_residual)
    each = float(rounding(probs).max(initial=0.0))
    scaled = 0.0
    if "log_normaliser" not in arrays:  # in few bits the kept classes are made to come to 1 less the residual
        scaled = float(np.abs(1.0 - residual - probs.sum(axis=1, dtype=np.float64)).max(initial=0.0))
    return arrays, max(each, float(open_by.max(initial=0.0))) + scaled + encoding.bound(arrays, classes)


def _check_ids(ids: npt.NDArray[Any], classes: int) -> None:
    ordered = np.sort(ids, axis=1)
    outside = (ordered[:, 0] < 0) | (ordered[:, -1] >= classes)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise EncodingError(
            f"the ids of the kept classes should lie below {classes:,}, the number of classes; found "
            f"{ordered[row, 0]} to {ordered[row, -1]}. Is --classes right?",
            row=row,
        )
    twice = (np.diff(ordered, axis=1) == 0).any(axis=1)
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise EncodingError(f"the same class is kept twice: {ordered[row].tolist()[:12]}", row=row)


def _residual(probs: npt.NDArray[Any], classes: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The dropped mass (N,) that (N, K) probabilities leave, and how far the teacher's may be from it."""
    values, by = probs.astype(np.float64), rounding(probs)
    bad = ~(np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise EncodingError(f"probabilities should be 0 or more; found {values[row].tolist()[:12]}", row=row)
    dropped = classes - values.shape[1]
    left, total = 1.0 - values.sum(axis=1), by.sum(axis=1)
    low = np.maximum(left - total, 0.0)
    high = np.minimum(left + total, dropped * (values + by).min(axis=1)) if dropped else np.zeros_like(left)
    wrong = (left + total < 0) | (low > high)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise EncodingError(
            f"the kept probabilities come to {1.0 - left[row]:.6g}, the smallest is {values[row].min():.3g}, and "
            f"{dropped:,} classes are not among them: no softmax over {classes:,} classes gives that. Is --classes "
            "right, and are these probabilities?",
            row=row,
        )
    residual = np.clip(left, low, high)
    return residual, np.maximum(high - residual, residual - low)
