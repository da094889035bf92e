"""The one temperature that makes a model's confidence fit its accuracy best (Guo et al. 2017, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.metrics.distributions import Floats, Ints

Gaps: TypeAlias = npt.NDArray[np.float64]

MOST_STEPS = 200
PRECISION = 1e-13
"""How far, relative to it, the temperature may be off."""
CHUNK = 1 << 20
"""Logits that are worked on at a time."""


def fit_temperature(logits_NC: Floats, labels_N: Ints) -> float:
    """The T > 0 that minimises the mean negative log-likelihood of softmax(z / T) on **held-out** examples.

    Fitted on what the model was trained on, T comes out too small, and calibration is worse than without: give it
    validation examples. Dividing by T changes no prediction.

    With b = 1 / T the NLL of an example is ``log sum_c exp(b z_c) - b z_label``, convex in b. Its slope is
    ``E_p[z] - z_label`` and its curvature ``Var_p[z]``, with p = softmax(b z); the root of the mean slope is found by
    Newton steps inside a bracket, which is halved where they do not help; some fifteen in all. float64. Each step reads
    the logits once, in chunks of rows, so they may be float16, float32 or a memory map, and are never copied whole.
    Rows without a label (-1) are left out.

    Raises DataError for input that is not logits and labels of the same examples, for logits that are not finite,
    without any label, and where there is no best T: every label has the largest logit, so that the NLL falls for ever
    as T falls to 0; or labels have no larger logits than other classes on average, so that it falls as T rises.

    >>> logits = np.log([[3.0, 1.0]] * 4)  # 75% sure of the first class, which is right 3 times in 4
    >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 9)
    1.0
    >>> round(fit_temperature(2 * logits, np.array([0, 0, 0, 1])), 9)
    2.0
    """
    logits, labels = np.asanyarray(logits_NC), np.asarray(labels_N)
    _check(logits, labels)
    scale = max(float(-gaps.min()) for gaps, _ in _chunks(logits, labels))
    if not scale or _slope(logits, labels, 0.0)[0] > -PRECISION * scale:
        raise DataError(
            "the true labels should have larger logits than other classes on average; found none larger, so that the "
            "higher the temperature the better, without end. Check that logits and labels are of the same examples"
        )
    if not any((own < 0).any() for _, own in _chunks(logits, labels)):
        raise DataError(
            "some of the examples should be told wrong; found every label to have the largest logit, so that the lower "
            "the temperature the better, without end. Fit on more held-out examples, or leave the temperature at 1"
        )
    return 1.0 / _root(logits, labels, 1.0 / scale)


def _check(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
    """Raise DataError unless these are finite logits (N, C) and labels (N,) of which some are known."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            "a temperature is fitted to logits (N, C) and whole numbers as labels (N,); found logits "
            f"{logits.shape} and labels {labels.shape} of {labels.dtype}"
        )
    if not (labels >= 0).any():
        raise DataError(f"a temperature is fitted to labels; none of the {len(labels)} examples has one")
    if labels.max() >= logits.shape[1]:
        raise DataError(f"labels should be below {logits.shape[1]}, the number of classes; found {labels.max()}")
    rows = _rows(logits)
    bad = sum(int((~np.isfinite(logits[i : i + rows])).any(axis=1).sum()) for i in range(0, len(logits), rows))
    if bad:
        raise DataError(f"logits should be finite; {bad} of {len(logits)} rows hold NaN or infinities")


def _rows(logits: npt.NDArray[Any]) -> int:
    """How many rows are worked on at a time."""
    return max(1, CHUNK // int(logits.shape[1]))


def _chunks(logits: Floats, labels: Ints) -> Iterator[tuple[Gaps, Gaps]]:
    """Logits of labelled rows less the largest of each, (n, C), and those of the labels (n,); n rows at a time."""
    rows = _rows(logits)
    for first in range(0, len(logits), rows):
        some = labels[first : first + rows]
        known = some >= 0
        if known.any():
            gaps = np.asarray(logits[first : first + rows][known], dtype=np.float64)
            gaps -= gaps.max(axis=1, keepdims=True)
            yield gaps, gaps[np.arange(len(gaps)), some[known]]


def _slope(logits: Floats, labels: Ints, b: float) -> tuple[float, float]:
    """First and second derivative by b of the mean NLL of softmax(b z)."""
    slopes = curvatures = 0.0
    for gaps, own in _chunks(logits, labels):
        p = np.exp(b * gaps)
        p /= p.sum(axis=1, keepdims=True)
        means = (p * gaps).sum(axis=1)
        slopes += float((means - own).sum())
        curvatures += float((p * np.square(gaps - means[:, None])).sum())
    known = int((labels >= 0).sum())
    return slopes / known, curvatures / known


def _root(logits: Floats, labels: Ints, b: float) -> float:
    """Where the slope is 0: below 0 at 0, it rises with b and ends above 0; ``b`` is a first guess at a bound."""
    low, high = 0.0, b
    while _slope(logits, labels, high)[0] < 0:
        low, high = high, 2 * high
    b, before = (1.0 if low < 1.0 < high else (low + high) / 2), np.inf
    for _ in range(MOST_STEPS):
        slope, curvature = _slope(logits, labels, b)
        step = -slope / curvature if curvature else np.inf
        if abs(step) <= PRECISION * b:
            break
        low, high = (b, high) if slope < 0 else (low, b)
        helps = low < b + step < high and abs(slope) <= before / 2
        there, before = (b + step if helps else (low + high) / 2), abs(slope)
        if abs(there - b) <= PRECISION * b:
            break
        b = there
    return b
