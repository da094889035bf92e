"""How sure a mean over tokens is, and whether two models differ in it, where tokens of one sequence go together.

A text that is hard for a model is hard for it from end to end: to take its tokens for independent examples makes
intervals too narrow. The sequence is the unit here, whatever its length.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.metrics.comparison import half_width_of_ratio
from pipeline.metrics.distributions import Floats, Ints

FLIPS = 9999
_AT_ONCE = 1 << 22


def by_group(values_N: npt.NDArray[np.generic], groups_N: Ints) -> npt.NDArray[np.float64]:
    """Sums of ``values_N`` over each group, (G,) in order of the group's first place.

    >>> by_group(np.array([1.0, 2.0, 5.0]), np.array([7, 7, 3])).tolist()
    [3.0, 5.0]
    """
    _, first, inverse = np.unique(groups_N, return_index=True, return_inverse=True)
    sums = np.bincount(inverse.ravel(), weights=np.asarray(values_N, dtype=np.float64), minlength=len(first))
    return np.asarray(sums[np.argsort(first)])


def clustered(values_N: Floats, groups_N: Ints) -> tuple[float, float]:
    """The mean over N tokens and half its 95% interval, by the variance between G sequences; NaN of a single one.

    ``half_width_of_ratio`` says how.

    >>> [round(x, 3) for x in clustered(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 1, 2, 3]))]
    [0.5, 0.919]
    """
    values = np.asarray(values_N, dtype=np.float64)
    sums, sizes = by_group(values, groups_N), by_group(np.ones(len(values)), groups_N)
    return float(values.mean()), half_width_of_ratio(sums, sizes)


def sign_flips(gaps_G: Floats, flips: int = FLIPS, seed: int = 0) -> float:
    """How rare a sum of differences as large as that of G sequences is, were each as likely to have the other sign.

    Two-sided, by ``flips`` random choices of signs from ``seed``, the observed one among them (Fisher 1935; Phipson and
    Smyth 2010): never 0. Few sequences cannot give a small value: with G of them none below about 2 / 2^G.

    >>> sign_flips(np.array([0.0, 0.0]))
    1.0
    """
    gaps = np.asarray(gaps_G, dtype=np.float64)
    observed = abs(float(gaps.sum())) * (1 - 1e-12)
    generator = np.random.default_rng(seed)
    extreme, done, step = 0, 0, max(1, _AT_ONCE // max(len(gaps), 1))
    while done < flips:
        some = min(step, flips - done)
        signs = generator.integers(0, 2, size=(some, len(gaps)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ gaps) >= observed).sum())
        done += some
    return (extreme + 1) / (flips + 1)
