"""How well a score tells two kinds of examples apart: areas, and the false alarms at a share found; the energy score.

``positive`` (N,) says which examples are of the kind whose scores should be high. Examples of equal scores are never
told apart: no threshold lies between them. Each figure is None where there are no examples of a kind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.distributions import Floats

Positive = npt.NDArray[np.bool_]


def auroc(scores_N: npt.NDArray[Any], positive_N: Positive) -> float | None:
    """The probability that a positive example has a higher score than a negative one, equal scores as a half.

    >>> auroc(np.array([0.1, 0.2, 0.2, 0.9]), np.array([False, False, True, True]))
    0.875
    """
    values, inverse, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()] if len(values) else np.zeros(0)
    positives = int(positive_N.sum())
    pairs = positives * (len(positive_N) - positives)
    if not pairs:
        return None
    return float((ranks[positive_N].sum() - positives * (positives + 1) / 2) / pairs)


def aupr(scores_N: npt.NDArray[Any], positive_N: Positive) -> float | None:
    """The area under precision and recall as average precision: sum over thresholds of (recall_i - recall_i-1)
    precision_i, without interpolation.

    It depends on the share of positives; a score that tells nothing has about that share.

    >>> aupr(np.array([0.1, 0.2, 0.3, 0.9]), np.array([False, True, False, True]))
    0.8333333333333333
    """
    right, wrong = _counts(scores_N, positive_N)
    if not len(right) or not right[-1] or not wrong[-1]:
        return None
    return float((np.diff(right, prepend=0) / right[-1] * (right / (right + wrong))).sum())


def fpr_at_tpr(scores_N: npt.NDArray[Any], positive_N: Positive, tpr: float = 0.95) -> float | None:
    """The share of negatives at or above the highest threshold that at least ``tpr`` of the positives reach.

    FPR95 of Liang et al. (2018) and Liu et al. (2020) by default. Raises ValueError unless 0 < tpr <= 1.

    >>> fpr_at_tpr(np.array([0.9, 0.8, 0.3, 0.5, 0.1]), np.array([True, True, True, False, False]))
    0.5
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr should be above 0, and 1 at most; found {tpr}")
    right, wrong = _counts(scores_N, positive_N)
    if not len(right) or not right[-1] or not wrong[-1]:
        return None
    return float(wrong[np.argmax(right / right[-1] >= tpr)] / wrong[-1])


def energy(logits_NC: Floats, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """``-T logsumexp(z / T)`` over the classes, (N,) float64: low where a model knows the input.

    The free energy of Liu et al. (2020, eq. 4). At T = 1 its negative is, up to a constant, the logarithm of the
    density of inputs that a classifier's logits define (Grathwohl et al. 2020, section 3). Raises ValueError unless the
    temperature is above 0.

    >>> energy(np.array([[0.0, 0.0], [9.0, 0.0]])).round(3).tolist()
    [-0.693, -9.0]
    """
    if not temperature > 0:
        raise ValueError(f"temperature should be above 0; found {temperature}")
    scaled = np.asarray(logits_NC, dtype=np.float64) / temperature
    highest = scaled.max(axis=1)
    return np.asarray(-temperature * (highest + np.log(np.exp(scaled - highest[:, None]).sum(axis=1))))


def _counts(scores_N: npt.NDArray[Any], positive_N: Positive) -> tuple[Floats, Floats]:
    """Positives and negatives at or above each distinct score, from the highest down."""
    values, inverse = np.unique(scores_N, return_inverse=True)
    right = np.bincount(inverse.ravel(), weights=positive_N, minlength=len(values))[::-1].cumsum()
    both = np.bincount(inverse.ravel(), minlength=len(values))[::-1].cumsum()
    return right, both - right
