"""What is kept of each example, whatever the number of classes, and what is counted from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.metrics.distributions import Floats, Ints, Told, cross_entropy, divergence_of, log_softmax
from pipeline.metrics.speculation import acceptance_of
from pipeline.softlabels import Sampled, SoftLabels


@dataclass(frozen=True)
class Scores:
    """What is kept of each example's logits, (N,) each, so that memory does not grow with the number of classes.

    ``log_likelihood`` of the true label, its ``rank`` (1 = first, see ``true_rank``) and the ``brier`` score: NaN, -1
    and NaN without a label, or where only the prediction is known. ``agree`` and ``kl`` against the teacher, None when
    there is no teacher to compare with, or where what is known of it does not tell. Of the next tokens of sequences
    also ``accepted_least`` and ``accepted_most`` (``speculation.acceptance``), ``cross_entropy`` with draws of the
    teacher, and ``groups``: a number for the sequence that each is of. Those of one sequence are not independent.
    """

    labels: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    log_likelihood: npt.NDArray[np.float64]
    rank: npt.NDArray[np.int32]
    brier: npt.NDArray[np.float64]
    agree: npt.NDArray[np.bool_] | None = None
    kl: npt.NDArray[np.float64] | None = None
    accepted_least: npt.NDArray[np.float64] | None = None
    accepted_most: npt.NDArray[np.float64] | None = None
    cross_entropy: npt.NDArray[np.float64] | None = None
    groups: npt.NDArray[np.int64] | None = None

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each example was recognised; False without a label."""
        return np.asarray((self.predictions == self.labels) & (self.labels >= 0))

    @property
    def accuracy(self) -> float:
        """The share of labelled examples that was recognised."""
        return float(self.correct[self.labels >= 0].mean()) if (self.labels >= 0).any() else float("nan")

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of the true label, in nats."""
        known = self.labels >= 0
        return float(-self.log_likelihood[known].mean()) if known.any() else float("nan")

    @property
    def brier_score(self) -> float:
        """Mean over labelled examples of sum over c of (p_c - y_c)^2, from 0 to 2 (Brier 1950, eq. 2)."""
        known = self.labels >= 0
        return float(self.brier[known].mean()) if known.any() else float("nan")

    def top_k_accuracy(self, k: int) -> float:
        """The share of ranked examples whose true label is among the first k; see ``top_k_correct``."""
        known = self.rank > 0
        return float(top_k_correct(self.rank[known], k).mean()) if known.any() else float("nan")


def score(
    logits_NC: Floats,
    labels_N: Ints,
    soft: SoftLabels | Told | None = None,
    temperature: float = 1.0,
    groups_N: Ints | None = None,
) -> Scores:
    """Reduce logits to what the metrics need. Raises DataError when the logits are not finite.

    ``groups_N``: of next tokens, the sequence that each is of; what a teacher accepts is of these alone.
    """
    if not np.isfinite(logits_NC).all():
        bad = int((~np.isfinite(logits_NC)).any(axis=1).sum())
        raise DataError(f"logits should be finite; {bad} of {len(logits_NC)} rows hold NaN or infinities")
    labels = np.asarray(labels_N, dtype=np.int64)
    rank = true_rank(logits_NC, labels)
    logprobs = log_softmax(logits_NC)
    # Of the logits as they are: rounding of log-softmax can make a tie, and rank 1 is always what is predicted.
    predictions = np.asarray(logits_NC).argmax(axis=1)
    at_label = np.maximum(labels, 0)[:, None]
    likelihood = np.take_along_axis(logprobs, at_label, axis=1)[:, 0]
    gaps = np.exp(logprobs)
    told = soft if soft is None or isinstance(soft, Told) else Told(soft, temperature)
    compared = {} if told is None else _against(logits_NC, logprobs, gaps, predictions, told, groups_N is not None)
    np.put_along_axis(gaps, at_label, np.take_along_axis(gaps, at_label, axis=1) - 1, axis=1)
    return Scores(
        labels=labels,
        predictions=predictions,
        confidence=np.exp(logprobs.max(axis=1)),
        log_likelihood=np.where(labels >= 0, likelihood, np.nan),
        rank=rank,
        brier=np.where(labels >= 0, np.square(gaps).sum(axis=1), np.nan),
        groups=None if groups_N is None else np.asarray(groups_N, dtype=np.int64),
        **compared,
    )


def _against(
    logits: Floats,
    logprobs: npt.NDArray[np.float64],
    masses: npt.NDArray[np.float64],
    predictions: Ints,
    told: Told,
    tokens: bool,
) -> dict[str, Any]:
    """What there is to say of a student beside its teacher; ``masses``: its probabilities at T = 1."""
    log_q = logprobs if told.temperature == 1 else log_softmax(logits, told.temperature)
    found: dict[str, Any] = {"agree": None if told.predicted is None else predictions == told.predicted}
    found["kl"] = divergence_of(log_q, told)
    if tokens and isinstance(told.soft, Sampled):
        found["cross_entropy"] = cross_entropy(log_q, told.soft, told.temperature)
    elif tokens:
        q = masses if told.temperature == 1 else np.exp(log_q)
        found["accepted_least"], found["accepted_most"] = acceptance_of(q, told) or (None, None)
    return found


def true_rank(logits_NC: Floats, labels_N: Ints) -> npt.NDArray[np.int32]:
    """The place of the true label among the classes by their logits, (N,): 1 is the largest; -1 without a label.

    A class with the same logit counts as before it: ``#{c: z_c >= z_label}``. So no class gains by its number, and a
    model that cannot tell classes apart has recognised none of them. ``predictions`` has to name one class, the lowest
    of those that tie, so top-1 by rank falls below accuracy by the ties that this wins.

    >>> true_rank(np.array([[3.0, 1.0, 2.0], [3.0, 3.0, 1.0], [0.0, 0.0, 0.0]]), np.array([2, 0, -1])).tolist()
    [2, 2, -1]
    """
    logits, labels = np.asarray(logits_NC), np.asarray(labels_N, dtype=np.int64)
    own = np.take_along_axis(logits, np.maximum(labels, 0)[:, None], axis=1)
    return np.where(labels >= 0, (logits >= own).sum(axis=1), -1).astype(np.int32)


def top_k_correct(rank_N: Ints, k: int) -> npt.NDArray[np.bool_]:
    """Whether the true label is among the k classes of the largest logits, (N,); False without a label.

    Of classes that tie around place k, one is among them only where all that tie with it are.

    >>> top_k_correct(np.array([1, 2, 6, -1]), 5).tolist()
    [True, True, False, False]
    """
    if k < 1:
        raise ValueError(f"k should be 1 or more; found {k}")
    rank = np.asarray(rank_N)
    return np.asarray((rank > 0) & (rank <= k))


class Gathered:
    """The scores of one batch after another, as those of one. What one of them does not tell is not told.

    Each is copied into arrays that double when they are full. Thousands of small arrays, kept as they come, would lie
    between the large ones that come and go meanwhile, and keep their memory from being used again: gigabytes of it.
    """

    def __init__(self) -> None:
        self._held: dict[str, npt.NDArray[Any]] = {}
        self._filled = 0

    def add(self, scores: Scores) -> None:
        """Those of the next batch."""
        end = self._filled + len(scores.labels)
        given = {name: value for name in Scores.__dataclass_fields__ if (value := getattr(scores, name)) is not None}
        known = [name for name in given if not self._filled or name in self._held]
        self._held = {name: self._room(name, given[name], end) for name in known}
        for name, array in self._held.items():
            array[self._filled : end] = given[name]
        self._filled = end

    def _room(self, name: str, values: npt.NDArray[Any], end: int) -> npt.NDArray[Any]:
        held = self._held.get(name)
        if held is not None and len(held) >= end:
            return held
        larger = np.empty(max(end, 2 * self._filled), values.dtype)
        if held is not None:
            larger[: self._filled] = held[: self._filled]
        return larger

    def __len__(self) -> int:
        return self._filled

    @property
    def scores(self) -> Scores:
        """All of them, of one batch or more."""
        return Scores(**{name: array[: self._filled] for name, array in self._held.items()})


def confusion_matrix(predictions_N: Ints, labels_N: Ints, classes: int) -> npt.NDArray[np.int64]:
    """Counts (C, C): row = true class, column = predicted class. Rows without a label (-1) are left out.

    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 0]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    known = labels_N >= 0
    flat = labels_N[known].astype(np.int64) * classes + predictions_N[known].astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def per_class_accuracy(confusion_CC: Ints) -> list[float | None]:
    """The share of each class that was recognised (its recall), None where the class has no example.

    >>> per_class_accuracy(np.array([[1, 1], [0, 0]]))
    [0.5, None]
    """
    totals = confusion_CC.sum(axis=1)
    return [float(confusion_CC[c, c] / t) if t else None for c, t in enumerate(totals)]
