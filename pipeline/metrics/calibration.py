"""How far confidence is from accuracy, in bins of equal width or of equal mass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.metrics.distributions import Floats, Ints


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in B bins; which they are, say the functions that make it.

    ``counts`` (B,), ``confidence`` (B,) the mean confidence and ``accuracy`` (B,) the share that was right; both are
    NaN in an empty bin.
    """

    counts: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error: sum over bins of n_b / N |accuracy_b - confidence_b| (Guo et al. 2017, eq. 3).

        NaN without examples.
        """
        if not self.counts.sum():
            return float("nan")
        full = self.counts > 0
        gaps = np.abs(self.accuracy[full] - self.confidence[full])
        return float((self.counts[full] * gaps).sum() / self.counts.sum())


def reliability(confidence_N: Floats, correct_N: npt.NDArray[np.bool_], bins: int = 15) -> Reliability:
    """Bin examples (N,) by the probability of their predicted class, in B equal-width bins of [0, 1].

    Each bin is [lower, upper), the last is closed: a confidence of 1 is in it, and in no bin of its own.

    >>> r = reliability(np.array([0.1, 0.5, 1.0]), np.array([False, True, True]), bins=2)
    >>> r.counts.tolist(), round(r.ece, 3)
    ([1, 2], 0.2)
    """
    confidence = np.asarray(confidence_N, dtype=np.float64)
    return _binned(confidence, correct_N, np.clip((confidence * bins).astype(np.int64), 0, bins - 1), bins)


def adaptive_reliability(confidence_N: Floats, correct_N: npt.NDArray[np.bool_], bins: int = 15) -> Reliability:
    """Bin examples (N,) by the probability of their predicted class, in B bins of equal mass.

    With F the share of confidences that are no larger than an example's, it is in bin ``ceil(F B) - 1``: bins are cut
    by place in order (Nguyen and O'Connor 2015, algorithm 1; Nixon et al. 2019) and hold N / B examples, rounded up or
    down. Equal confidences share a bin, that of the last of them, so the order of examples decides nothing; the largest
    is always in the last bin. ``ece`` is then the adaptive one, of the predicted class alone; Nixon et al. average it
    over the probabilities of all classes.

    >>> confidence, correct = np.array([0.6, 0.9, 0.9, 1.0]), np.array([False, True, False, True])
    >>> r = adaptive_reliability(confidence, correct, bins=2)
    >>> r.counts.tolist(), round(r.ece, 3)
    ([1, 3], 0.35)
    """
    confidence = np.asarray(confidence_N, dtype=np.float64)
    up_to = np.searchsorted(np.sort(confidence), confidence, side="right")
    return _binned(confidence, correct_N, (up_to * bins - 1) // max(len(confidence), 1), bins)


def _binned(confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_], which: Ints, bins: int) -> Reliability:
    """Counts and means of the bins, of examples (N,) of which each is in bin ``which`` (N,)."""
    counts = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(which, weights=confidence, minlength=bins) / counts
        accuracy = np.bincount(which, weights=correct.astype(np.float64), minlength=bins) / counts
    return Reliability(counts, mean_confidence, accuracy)
