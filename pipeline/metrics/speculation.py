"""Speculative decoding: how often a teacher would accept the token that its student drafts (Leviathan et al. 2023)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.metrics.distributions import Floats, Told, log_softmax
from pipeline.softlabels import Dense, Sampled, SoftLabels, TopK

Bounds = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
DRAFTED = 4
"""Tokens that a draft model writes ahead, where it is not said: gamma."""


def acceptance(logits_NC: Floats, soft: SoftLabels, temperature: float = 1.0) -> Bounds | None:
    """The probability that a token drawn from the student is accepted by the teacher: at least and at most, (N,) each.

    ``sum over c of min(p_c, q_c)``, both at temperature T (Leviathan et al. 2023, theorem 3.5: 1 less the total
    variation). Dense labels give it exactly, both ends alike. Top-k labels leave open how the dropped mass lies among
    the dropped classes, of which none has more than the least of the kept. The ends are what the least and the most
    favourable split give. None of sampled labels: the probability of a drawn class is not known.

    >>> lowest, highest = acceptance(np.log([[0.5, 0.5]]), Dense(np.log([[0.9, 0.1]])))
    >>> lowest.round(6).tolist(), highest.round(6).tolist()
    ([0.6], [0.6])
    """
    return acceptance_of(np.exp(log_softmax(logits_NC, temperature)), Told(soft, temperature))


def acceptance_of(q: npt.NDArray[np.float64], told: Told) -> Bounds | None:
    """``acceptance`` of the student's probabilities (N, C)."""
    soft = told.soft
    if isinstance(soft, Sampled):
        return None
    if isinstance(soft, Dense):
        exact = np.minimum(told.p, q).sum(axis=1)
        return exact, exact
    return _bounds(q, soft, told.temperature)


def _bounds(q: npt.NDArray[np.float64], soft: TopK, temperature: float) -> Bounds:
    kept_log_p, log_rest = (np.asarray(a, dtype=np.float64) for a in soft.at(temperature))
    ids, kept, rest = np.asarray(soft.ids).astype(np.int64), np.exp(kept_log_p), np.exp(log_rest)
    known = np.minimum(kept, np.take_along_axis(q, ids, axis=1)).sum(axis=1)
    # No dropped class has more than the least of the kept: over that, its share of the student is of no use.
    ceiling = kept.min(axis=1)
    useful = np.minimum(q, ceiling[:, None])
    np.put_along_axis(useful, ids, np.inf, axis=1)
    useful.sort(axis=1)  # the kept ones last
    dropped = useful[:, : q.shape[1] - ids.shape[1]]
    sums = np.concatenate([np.zeros((len(q), 1)), np.cumsum(dropped, axis=1)], axis=1)
    # The sum of minima is concave: it is least where as many classes as the mass fills have the ceiling each, those
    # that the student gives least, the next has what is left over, and all others nothing.
    with np.errstate(divide="ignore", invalid="ignore"):
        filled = np.where(ceiling > 0, rest / ceiling, 0.0)
    whole = np.minimum(np.floor(filled), dropped.shape[1]).astype(np.int64)
    lowest = np.take_along_axis(sums, whole[:, None], axis=1)[:, 0]
    if dropped.shape[1]:
        following = np.take_along_axis(dropped, np.minimum(whole, dropped.shape[1] - 1)[:, None], axis=1)[:, 0]
        lowest = lowest + np.where(whole < dropped.shape[1], np.minimum(following, (filled - whole) * ceiling), 0.0)
    highest = np.minimum(rest, sums[:, -1])
    return known + np.minimum(lowest, highest), known + highest


def tokens_per_call(rate: float, drafted: int = DRAFTED) -> float:
    """Tokens that one call of the teacher yields on average, of ``drafted`` ones and its own next:
    ``(1 - a^(gamma + 1)) / (1 - a)`` (Leviathan et al. 2023, equation 1).

    It takes each token to be accepted with probability ``rate``, whatever became of those before it.

    >>> tokens_per_call(0.5, 2), tokens_per_call(1.0)
    (1.75, 5.0)
    """
    return float(sum(rate**n for n in range(drafted + 1)))
