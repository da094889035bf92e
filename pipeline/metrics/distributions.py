"""Logits and soft labels as distributions over classes, and how far apart they are.

N examples, C classes, K kept classes. Logarithms are natural, so divergences are in nats. float64, whatever the dtype
of the logits.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.softlabels import Dense, SoftLabels

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
    """The class each row of soft labels puts first, (N,). The largest class is always among the kept ones."""
    best = np.asarray(soft.logits).argmax(axis=1)
    if isinstance(soft, Dense):
        return np.asarray(best, dtype=np.int64)
    chosen = np.take_along_axis(np.asarray(soft.ids), best[:, None], axis=1)[:, 0]
    return np.asarray(chosen, dtype=np.int64)


def divergence(logits_NC: Floats, soft: SoftLabels, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """KL(teacher || student) per example, (N,): sum over c of p_c (log p_c - log q_c), both at temperature T.

    With top-k labels the dropped classes count as one outcome on both sides, which is a lower bound of the whole
    divergence. There is no factor T^2: this is a measure, not a loss. Raises TemperatureError when top-k labels do
    not hold T.

    >>> divergence(np.array([[0.0, 0.0]]), Dense(np.array([[0.0, 0.0]]))).tolist()
    [0.0]
    >>> round(float(divergence(np.array([[0.0, 0.0]]), Dense(np.array([[50.0, 0.0]])))[0] / np.log(2)), 4)
    1.0
    """
    log_q = log_softmax(logits_NC, temperature)
    if isinstance(soft, Dense):
        log_p = log_softmax(np.asarray(soft.logits), temperature)
        return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    kept_log_p, log_rest = (np.asarray(a, dtype=np.float64) for a in soft.at(temperature))
    ids = np.asarray(soft.ids).astype(np.int64)
    kept = (np.exp(kept_log_p) * (kept_log_p - np.take_along_axis(log_q, ids, axis=1))).sum(axis=1)
    dropped_q = np.exp(log_q)
    np.put_along_axis(dropped_q, ids, 0.0, axis=1)
    rest_p = np.exp(log_rest)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = rest_p * (log_rest - np.log(dropped_q.sum(axis=1)))
    return np.asarray(kept + np.where(rest_p > 0, rest, 0.0))
