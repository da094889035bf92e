"""Drawing classes at random, the same ones whenever and wherever it is done again.

Nothing is drawn out of a stream: every number is a hash of (seed, key of the position, number of the draw), so that
one position's draws depend neither on its neighbours nor on the batch, the process or the device. The hash is the
finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.encodings.base import Keys
from pipeline.identity import view_seed

Scheme = Literal["systematic", "independent"]

SCHEMES: tuple[Scheme, ...] = ("systematic", "independent")

BLOCK = 128
"""Classes that are summed together: a draw first finds its block, and then its class in that one alone."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def position_keys(entry_seed: int, positions: int) -> Keys:
    """The keys (n,) of the first ``positions`` positions of an entry: a pure function of (entry, position).

    ``entry_seed`` is any whole number that is the entry's own, such as ``identity.view_seed``; its low 64 bits count.

    >>> bool((position_keys(7, 3)[:2] == position_keys(7, 2)).all()), len(set(position_keys(7, 1000).tolist()))
    (True, 1000)
    """
    start = _mixed(np.array([entry_seed % 2**64], np.uint64))
    return _mixed(start + _GOLDEN * np.arange(1, positions + 1, dtype=np.uint64))


def keys_of(example_ids: Iterable[str], view: int, lengths: Iterable[int]) -> Keys:
    """The keys (N,) of all positions of some entries, one after another: of each as many as ``lengths`` say.

    A function of (example, view, position), whatever the cache, the split or the dump that they stand in.
    """
    each = zip(example_ids, lengths, strict=True)
    found = [position_keys(view_seed(0, example_id, view), int(length)) for example_id, length in each]
    return np.concatenate([np.zeros(0, np.uint64), *found])


def thresholds(keys: Keys, n: int, scheme: Scheme, seed: int) -> npt.NDArray[np.float64]:
    """Where the draws of each position fall in (0, 1], ascending: (N, n).

    A class is drawn as often as a threshold lies in its stretch (F_(j-1), F_j] of the cumulative distribution F.

    - ``independent``: n uniform numbers, each on its own: a draw with replacement.
    - ``systematic``: (i - u) / n for i = 1 to n and one uniform u: class j is drawn floor(n F_j + u) -
      floor(n F_(j-1) + u) times, so n p_j times up to less than one, and n p_j times on average.
    """
    start = _mixed(np.asarray(keys, np.uint64) ^ _mixed(np.array([seed % 2**64], np.uint64)))
    count = 1 if scheme == "systematic" else n
    bits = _mixed(start[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53  # in [0, 1)
    if scheme == "systematic":
        return np.asarray((np.arange(1, n + 1) - uniform) / n)
    return np.sort(1.0 - uniform, axis=1)


def drawn(masses: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The class (N, n) in whose stretch of the cumulated ``masses`` (N, C) each of ``thresholds`` (N, n) lies.

    ``masses`` are not negative, with any sum above 0 in each row. Sums are float64. A class of mass 0 has no stretch,
    and the last one of some mass ends at the whole sum, so that every threshold has its class.
    """
    rows, classes = masses.shape
    blocks = -(-classes // BLOCK)
    whole = masses
    if classes % BLOCK:
        whole = np.zeros((rows, blocks * BLOCK), np.float32)
        whole[:, :classes] = masses
    blocked = whole.reshape(rows, blocks, BLOCK)
    ends = np.cumsum(blocked.sum(axis=2, dtype=np.float64), axis=1)
    wanted = thresholds * ends[:, -1:]
    block = np.zeros(thresholds.shape, np.int64)
    for row in range(rows):
        block[row] = np.searchsorted(ends[row], wanted[row])
    before = np.take_along_axis(ends, np.maximum(block - 1, 0), axis=1)
    begin = np.where(block > 0, before, 0.0)[:, :, None]
    end = np.take_along_axis(ends, block, axis=1)[:, :, None]
    inside = np.cumsum(blocked[np.arange(rows)[:, None], block], axis=2, dtype=np.float64)
    # Sums of a block in another order differ in the last bit: where nothing is left of it, it has reached its end.
    reached = np.where(inside == inside[:, :, -1:], end, np.minimum(begin + inside, end))
    return np.asarray(block * BLOCK + (reached < wanted[:, :, None]).sum(axis=2), dtype=np.int64)


def _mixed(state: npt.NDArray[Any]) -> Keys:
    """The finaliser of SplitMix64, of uint64; arrays wrap around."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))
