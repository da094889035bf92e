"""What a student is judged by: pure numpy functions of logits, labels and soft labels.

N examples, C classes, K kept classes, B bins, S seeds. Logarithms are natural, so likelihoods and divergences are
in nats. Accumulation is in float64 whatever the dtype of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
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
    >>> round(float(divergence(np.array([[0.0, 0.0]]), Dense(np.array([[50.0, 0.0]])))[0]), 4) == round(math.log(2), 4)
    True
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


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in B equal-width bins of [0, 1]; each bin is [lower, upper), the last is closed.

    ``counts`` (B,), ``confidence`` (B,) the mean confidence and ``accuracy`` (B,) the share that was right; both are
    NaN in an empty bin.
    """

    counts: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error: sum over bins of n_b / N |accuracy_b - confidence_b| (Guo et al. 2017, eq. 3)."""
        full = self.counts > 0
        gaps = np.abs(self.accuracy[full] - self.confidence[full])
        return float((self.counts[full] * gaps).sum() / self.counts.sum())


def reliability(confidence_N: Floats, correct_N: npt.NDArray[np.bool_], bins: int = 15) -> Reliability:
    """Bin examples by the probability of their predicted class.

    >>> r = reliability(np.array([0.1, 0.5, 1.0]), np.array([False, True, True]), bins=2)
    >>> r.counts.tolist(), round(r.ece, 3)
    ([1, 2], 0.2)
    """
    confidence = np.asarray(confidence_N, dtype=np.float64)
    which = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(which, weights=confidence, minlength=bins) / counts
        accuracy = np.bincount(which, weights=correct_N.astype(np.float64), minlength=bins) / counts
    return Reliability(counts, mean_confidence, accuracy)


@dataclass(frozen=True)
class Scores:
    """What is kept of each example's logits, (N,) each, so that memory does not grow with the number of classes.

    ``log_likelihood`` of the true label (NaN without one); ``agree`` and ``kl`` against the teacher, None when there
    is no teacher to compare with (NaN and False for single examples without soft labels; ``compared`` tells them).
    """

    labels: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    log_likelihood: npt.NDArray[np.float64]
    agree: npt.NDArray[np.bool_] | None = None
    kl: npt.NDArray[np.float64] | None = None

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


def score(logits_NC: Floats, labels_N: Ints, soft: SoftLabels | None = None, temperature: float = 1.0) -> Scores:
    """Reduce logits to what the metrics need. Raises DataError when the logits are not finite."""
    if not np.isfinite(logits_NC).all():
        bad = int((~np.isfinite(logits_NC)).any(axis=1).sum())
        raise DataError(f"logits should be finite; {bad} of {len(logits_NC)} rows hold NaN or infinities")
    labels = np.asarray(labels_N, dtype=np.int64)
    logprobs = log_softmax(logits_NC)
    predictions = logprobs.argmax(axis=1)
    likelihood = np.take_along_axis(logprobs, np.maximum(labels, 0)[:, None], axis=1)[:, 0]
    return Scores(
        labels=labels,
        predictions=predictions,
        confidence=np.exp(logprobs.max(axis=1)),
        log_likelihood=np.where(labels >= 0, likelihood, np.nan),
        agree=None if soft is None else predictions == predicted(soft),
        kl=None if soft is None else divergence(logits_NC, soft, temperature),
    )


def concatenate(pieces: Sequence[Scores]) -> Scores:
    """The scores of several batches as one. All of them, or none, carry a comparison with the teacher."""

    def joined(name: str) -> Any:
        values = [getattr(p, name) for p in pieces]
        return None if any(v is None for v in values) else np.concatenate(values)

    return Scores(**{name: joined(name) for name in Scores.__dataclass_fields__})


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof 1; 0 for a single value).

    >>> spread([1.0, 3.0])
    (2.0, 1.4142135623730951)
    """
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0


_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def student_t95(degrees: int) -> float:
    """The two-sided 95% quantile of Student's t. Tabulated to 30 degrees of freedom, within 0.002 above.

    >>> student_t95(2), round(student_t95(60), 3)
    (4.303, 2.002)
    """
    return _T95[degrees - 1] if degrees <= len(_T95) else 1.96 + 2.5 / degrees


def half_width(values: Sequence[float]) -> float:
    """Half the 95% confidence interval of the mean over seeds: t(S - 1) s / sqrt(S). NaN for a single value.

    >>> round(half_width([0.0, 1.0, 2.0]), 3)
    2.484
    """
    if len(values) < 2:
        return float("nan")
    return student_t95(len(values) - 1) * spread(values)[1] / math.sqrt(len(values))


@dataclass(frozen=True)
class Comparison:
    """How much higher the first of two results is, and how far chance alone reaches (95%).

    ``by_seeds`` is the half width from the differences of paired seeds (Student's t), ``by_examples`` the one from the
    finite test set (paired proportions, Agresti and Min 2005); NaN when it cannot be had. They are independent
    causes, so ``half_width`` adds them in quadrature.
    """

    difference: float
    by_seeds: float
    by_examples: float
    seeds: int

    @property
    def half_width(self) -> float:
        """Half the 95% interval of the difference; infinite when neither part is known."""
        known = [w for w in (self.by_seeds, self.by_examples) if not math.isnan(w)]
        return math.hypot(*known) if known else math.inf

    @property
    def verdict(self) -> str:
        """``higher``, ``lower``, or ``within noise`` when the interval covers zero."""
        if abs(self.difference) <= self.half_width:
            return "within noise"
        return "higher" if self.difference > 0 else "lower"


def compare(
    first: dict[int, float],
    second: dict[int, float],
    first_hits_N: Floats | None = None,
    second_hits_N: Floats | None = None,
) -> Comparison:
    """Compare two results that share seeds and test examples.

    ``first`` and ``second`` map a seed to its accuracy; seeds that both have are paired. ``*_hits_N`` are the shares
    of seeds that recognised each test example, in the same order of examples.

    >>> c = compare({0: 0.90, 1: 0.92, 2: 0.91}, {0: 0.80, 1: 0.82, 2: 0.80})
    >>> round(c.difference, 3), round(c.half_width, 3), c.verdict
    (0.103, 0.014, 'higher')
    """
    shared = sorted(first.keys() & second.keys())
    if shared:
        differences = [first[s] - second[s] for s in shared]
        difference = float(np.mean(differences))
        by_seeds = half_width(differences)
    else:
        difference = spread(list(first.values()))[0] - spread(list(second.values()))[0]
        by_seeds = float("nan")
    by_examples = float("nan")
    if first_hits_N is not None and second_hits_N is not None and len(first_hits_N) == len(second_hits_N) > 1:
        gaps = np.asarray(first_hits_N, dtype=np.float64) - np.asarray(second_hits_N, dtype=np.float64)
        # Half a count in each cell of the paired table (Agresti and Min 2005): no disagreement is not no doubt.
        n = len(gaps) + 2
        by_examples = 1.96 * math.sqrt(max(0.0, (float((gaps**2).sum()) + 1) / n - float(gaps.sum() / n) ** 2) / n)
    return Comparison(difference, by_seeds, by_examples, len(shared))
