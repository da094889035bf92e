"""Logits and soft labels as distributions over classes, and how far apart they are.

N examples, C classes, K kept classes. Logarithms are natural, so divergences are in nats. float64, whatever the dtype
of the logits.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import EncodingError
from pipeline.softlabels import Dense, Sampled, SoftLabels

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Ints: TypeAlias = npt.NDArray[np.integer[Any]]


def log_softmax(logits_NC: Floats, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """log softmax(z / T), (N, C).

    >>> np.exp(log_softmax(np.array([[0.0, np.log(3.0)]]))).round(2).tolist()
    [[0.25, 0.75]]
    """
    scaled = np.asarray(logits_NC, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))


def predicted(soft: SoftLabels) -> npt.NDArray[np.int64]:
    """The class each row of soft labels puts first, (N,). Top-k keeps the largest; draws hit it most often, as a rule.

    >>> predicted(Sampled(np.array([3, 1, 2, 5]), np.array([1.0, 0.2, 0.4, 0.4]), np.array([0, 1, 4]), 1.0, 6)).tolist()
    [3, 2]
    """
    if isinstance(soft, Sampled):
        return _heaviest(soft)
    best = np.asarray(soft.logits).argmax(axis=1)
    if isinstance(soft, Dense):
        return np.asarray(best, dtype=np.int64)
    chosen = np.take_along_axis(np.asarray(soft.ids), best[:, None], axis=1)[:, 0]
    return np.asarray(chosen, dtype=np.int64)


def _heaviest(soft: Sampled) -> npt.NDArray[np.int64]:
    """The class of the largest weight of each row (N,), of equal ones the first; no row is empty."""
    ids, weights, rows = np.asarray(soft.ids), np.asarray(soft.weights), np.asarray(soft.rows)
    if not len(soft):
        return np.zeros(0, np.int64)
    largest = np.flatnonzero(weights == np.maximum.reduceat(weights, np.asarray(soft.offsets)[:-1])[rows])
    first = np.unique(rows[largest], return_index=True)[1]
    return np.asarray(ids[largest[first]], dtype=np.int64)


class Told:
    """Soft labels of N rows at one temperature, with what is computed of them once for all models."""

    def __init__(self, soft: SoftLabels, temperature: float = 1.0) -> None:
        self.soft, self.temperature = soft, temperature

    @cached_property
    def predicted(self) -> npt.NDArray[np.int64] | None:
        """``predicted`` of the labels; None of sampled ones, where agreement with it would be biased.

        The class that was drawn most often is often not the first, the more so the flatter the row.
        """
        return None if isinstance(self.soft, Sampled) else predicted(self.soft)

    @cached_property
    def log_p(self) -> npt.NDArray[np.float64]:
        """Of dense labels, (N, C)."""
        assert isinstance(self.soft, Dense)
        return log_softmax(np.asarray(self.soft.logits), self.temperature)

    @cached_property
    def p(self) -> npt.NDArray[np.float64]:
        """Of dense labels, (N, C)."""
        return np.asarray(np.exp(self.log_p))


def divergence(logits_NC: Floats, soft: SoftLabels | Told, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """KL(teacher || student) per example, (N,): sum over c of p_c (log p_c - log q_c), both at temperature T.

    With top-k labels the dropped classes count as one outcome on both sides, which is a lower bound of the whole
    divergence. There is no factor T^2: this is a measure, not a loss. Raises TemperatureError when top-k labels do
    not hold T, and EncodingError for sampled labels, of which ``cross_entropy`` is what can be told.

    >>> divergence(np.array([[0.0, 0.0]]), Dense(np.array([[0.0, 0.0]]))).tolist()
    [0.0]
    >>> round(float(divergence(np.array([[0.0, 0.0]]), Dense(np.array([[50.0, 0.0]])))[0] / np.log(2)), 4)
    1.0
    """
    found = divergence_of(
        log_softmax(logits_NC, temperature), soft if isinstance(soft, Told) else Told(soft, temperature)
    )
    if found is None:
        raise EncodingError("sampled labels give no divergence: nothing is known of a class that was not drawn")
    return found


def divergence_of(log_q: npt.NDArray[np.float64], told: Told) -> npt.NDArray[np.float64] | None:
    """``divergence`` of the student's log-probabilities (N, C); None of sampled labels."""
    soft, temperature = told.soft, told.temperature
    if isinstance(soft, Sampled):
        return None
    if isinstance(soft, Dense):
        return np.asarray((told.p * (told.log_p - log_q)).sum(axis=1))
    kept_log_p, log_rest = (np.asarray(a, dtype=np.float64) for a in soft.at(temperature))
    ids = np.asarray(soft.ids).astype(np.int64)
    kept = (np.exp(kept_log_p) * (kept_log_p - np.take_along_axis(log_q, ids, axis=1))).sum(axis=1)
    dropped_q = np.exp(log_q)
    np.put_along_axis(dropped_q, ids, 0.0, axis=1)
    rest_p = np.exp(log_rest)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = rest_p * (log_rest - np.log(dropped_q.sum(axis=1)))
    return np.asarray(kept + np.where(rest_p > 0, rest, 0.0))


def cross_entropy(log_q: npt.NDArray[np.float64], soft: Sampled, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """``-sum over c of w_c log q_c`` per row, (N,), of the student's log-probabilities (N, C) at temperature T.

    Its expectation over the draws is H(p, q) = H(p) + KL(p || q): differences between students are those of their
    divergences, and the teacher's own entropy H(p) is not known. Raises TemperatureError for another T than the draws'.
    """
    weights = np.asarray(soft.at(temperature), dtype=np.float64)
    rows = np.asarray(soft.rows)
    terms = -weights * log_q[rows, np.asarray(soft.ids)]
    return np.asarray(np.bincount(rows, weights=terms, minlength=len(soft)), dtype=np.float64)
