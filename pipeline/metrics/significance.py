"""How sure a share of test examples is, and whether two models differ in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError

Z95 = NormalDist().inv_cdf(0.975)
"""The two-sided 95% quantile of the normal distribution, 1.96."""
EXACT = 500
"""Up to so many examples a binomial tail is summed in integers."""


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95% interval of a share that was observed as ``successes`` of ``n`` (Wilson 1927), lower and upper end.

    All p with ``|successes / n - p| <= z sqrt(p (1 - p) / n)``: the roots of
    ``(n + z^2) p^2 - (2 s + z^2) p + s^2 / n``. It stays inside [0, 1]; its lower end is exactly 0 where nothing
    succeeds, its upper end exactly 1 where all does; (0, 1) for n = 0. Examples should be independent: a test set that
    several seeds see is not so many times as large. Raises ValueError for counts that cannot be.

    >>> wilson(0, 50)[0], round(wilson(0, 50)[1], 4), wilson(50, 50)[1]
    (0.0, 0.0713, 1.0)
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes should be from 0 to n; found {successes} of {n}")
    # By symmetry the upper end is the lower end of the failures, which makes both exact.
    return _lower(successes, n), 1.0 - _lower(n - successes, n)


def _lower(successes: int, n: int) -> float:
    """The smaller root, from the larger one and their product: nothing cancels where it is near 0."""
    if successes == 0:
        return 0.0
    share = successes / n
    root = Z95 * math.sqrt(Z95**2 + 4 * successes * (1 - share))
    return 2 * successes * share / (2 * successes + Z95**2 + root)


@dataclass(frozen=True)
class McNemar:
    """How many examples only the first of two models recognised, how many only the second, and how rare that is.

    ``p_value``: the probability of a split as uneven or more, were each of these examples as likely to be either's.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first_correct_N: npt.NDArray[np.bool_], second_correct_N: npt.NDArray[np.bool_]) -> McNemar:
    """Whether two models differ on the same N examples: McNemar's test (1947) in its exact, two-sided form.

    Of the b + c examples that one model alone recognised, each is as likely to be the first's as the second's if the
    models are equally good; so with n = b + c and k = min(b, c), ``p = min(1, 2 sum_{i <= k} C(n, i) / 2^n)``. Examples
    that both recognise, or neither, say nothing. With few of the others p cannot be small: below 0.05 from n = 6 on.

    This is of one pair of models, two files of weights, and of what other test examples would change. What another seed
    would change it does not see: the p-values of several seeds share their examples, so they are neither averaged nor
    is the least of them taken. For methods, trained with several seeds each, ``compare`` pairs seeds by Student's t.

    Raises DataError unless both are bool and of one length.

    >>> mcnemar(np.array([True] * 9 + [False]), np.array([True] * 3 + [False] * 6 + [True]))
    McNemar(only_first=6, only_second=1, p_value=0.125)
    """
    first, second = np.asarray(first_correct_N), np.asarray(second_correct_N)
    if first.dtype != np.bool_ or second.dtype != np.bool_ or first.shape != second.shape or first.ndim != 1:
        raise DataError(
            "the models should each have right or wrong, a bool, for every example, in the same order; found "
            f"{first.dtype} {first.shape} and {second.dtype} {second.shape}"
        )
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return McNemar(only_first, only_second, _two_sided(min(only_first, only_second), only_first + only_second))


def _two_sided(k: int, n: int) -> float:
    """Twice the binomial tail ``sum_{i <= k} C(n, i) / 2^n``, at most 1, for k <= n / 2."""
    if 2 * k >= n - 1:
        return 1.0  # the two tails meet
    if n <= EXACT:
        return 2 * sum(math.comb(n, i) for i in range(k + 1)) / (1 << n)
    # Terms relative to the last, C(n, i - 1) / C(n, i) = i / (n - i + 1), so none overflows.
    i = np.arange(k, 0, -1, dtype=np.float64)
    terms = 1.0 + float(np.cumprod(i / (n - i + 1)).sum())
    last = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return min(1.0, math.exp(last + math.log(terms) - (n - 1) * math.log(2)))
