"""The arithmetic of noisy labels: normal numbers out of random bytes, back onto the simplex, into logits. Numpy alone.

What follows the noise never sees the labels again, so it costs no privacy, whatever it does (post-processing).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bytes = Callable[[int], bytes]
"""So many random bytes."""

FLOOR = 1e-8
"""The smallest probability that is kept: a logarithm needs one. Sums exceed 1 by at most that for each class."""

_GRID = 2.0**-20
"""Of sigma: noisy values are rounded to about this, a power of two."""


def bytes_for(part: int, seed: int | None) -> Bytes:
    """Where the bytes of a part's noise come from: the operating system or, of one installation the same again, a seed.

    The system's generator is a cryptographic one. Those of numpy are not: whoever knew all but one record could
    subtract what should be the mean and see whether the rest is a stream of that generator.
    """
    return secrets.token_bytes if seed is None else np.random.default_rng([seed, part]).bytes


def normals(draw: Bytes, count: int) -> Floats:
    """``count`` standard normal numbers: Box and Muller (1958) of 53 bits each. None lies beyond 8.6."""
    pairs = -(-count // 2)
    bits = np.frombuffer(draw(16 * pairs), dtype="<u8").reshape(2, pairs) >> np.uint64(11)
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(uniform[0])), 2.0 * np.pi * uniform[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def with_noise(probs_NC: Floats, sigma: float, draw: Bytes) -> Floats:
    """``probs_NC`` with noise N(0, sigma^2) in each coordinate, rounded to a grid that depends on sigma alone.

    Sums of floating-point numbers have gaps that show what was added to what (Mironov, CCS 2012). A step of the grid
    holds about 2^30 of them, which hides where they lie.
    """
    step = 2.0 ** math.floor(math.log2(sigma)) * _GRID
    noisy = probs_NC + sigma * normals(draw, probs_NC.size).reshape(probs_NC.shape)
    return np.asarray(np.rint(noisy / step) * step)


def onto_simplex(values_NC: Floats) -> Floats:
    """The distribution nearest to each row in L2 (Held, Wolfe and Crowder 1974): each less one number, cut at 0.

    >>> onto_simplex(np.array([[0.5, 0.7, -0.4]])).round(2).tolist()
    [[0.4, 0.6, 0.0]]
    """
    descending = -np.sort(-values_NC, axis=1)
    surplus = np.cumsum(descending, axis=1) - 1.0
    ranks = np.arange(1, values_NC.shape[1] + 1)
    kept = (descending * ranks > surplus).sum(axis=1, keepdims=True)
    threshold = np.take_along_axis(surplus, kept - 1, axis=1) / kept
    return np.asarray(np.maximum(values_NC - threshold, 0.0))


def logits_of(probs_NC: Floats, temperature: float) -> npt.NDArray[np.float32]:
    """Logits (N, C) whose softmax at ``temperature`` is ``probs_NC``, raised to FLOOR where they are below it."""
    return np.asarray(temperature * np.log(np.maximum(probs_NC, FLOOR)), dtype=np.float32)
