"""Whether one result is higher than another, or chance alone tells them apart: over seeds and over test examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.metrics.distributions import Floats


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


def half_width_of_ratio(sums_G: Floats, sizes_G: Floats) -> float:
    """Half the 95% interval of ``sum(sums) / sum(sizes)`` over G independent sequences; NaN of a single one.

    With ``r_g = sums_g - ratio sizes_g`` and N the sum of sizes: ``t(G - 1) sqrt(G / (G - 1) sum r_g^2) / N``, the
    variance of a ratio (Cochran 1977, section 2.11), which is the cluster-robust one of a mean (Liang and Zeger 1986).
    """
    count = len(sums_G)
    if count < 2:
        return float("nan")
    total = float(np.sum(sizes_G))
    residuals = np.asarray(sums_G, dtype=np.float64) - float(np.sum(sums_G)) / total * np.asarray(sizes_G)
    spread = math.sqrt(count / (count - 1) * float(np.square(residuals).sum())) / total
    return student_t95(count - 1) * spread


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
    sizes_N: Floats | None = None,
) -> Comparison:
    """Compare two results that share seeds and test examples.

    ``first`` and ``second`` map a seed to its accuracy; seeds that both have are paired. ``*_hits_N`` are the shares
    of seeds that recognised each test example, in the same order of examples. Where examples are sequences of
    ``sizes_N`` tokens, they are sums over the tokens, and the sequences are what is drawn at random.

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
        if sizes_N is not None:
            return Comparison(difference, by_seeds, half_width_of_ratio(gaps, sizes_N), len(shared))
        # Half a count in each cell of the paired table (Agresti and Min 2005): no disagreement is not no doubt.
        n = len(gaps) + 2
        by_examples = 1.96 * math.sqrt(max(0.0, (float((gaps**2).sum()) + 1) / n - float(gaps.sum() / n) ** 2) / n)
    return Comparison(difference, by_seeds, by_examples, len(shared))
