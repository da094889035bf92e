"""The arrays of a ``topk`` encoding out of log-probabilities that a served teacher gave, K of them for each position.

A server names K classes of a position with their log-probabilities at one temperature, and nothing of the rest. The
dropped mass is 1 - sum(p), taken as ``log(-expm1(log sum(p)))``, which stays exact where the sum is near 1. Servers
round: a sum may come out above 1. Then nothing is left for the rest, and the kept probabilities are divided by the
sum; how often, and by how much at most, is returned, for the lineage.

The classes need not be the K largest: vLLM adds the token that the text goes on with, whatever its rank. A cache keeps
the same K everywhere, so the largest K of each position stay (``narrowed``), K at most what the poorest position has.
What is left out joins the dropped mass, which costs detail and claims nothing false. Filling a poor position up with
classes that it does not name would: they would have probability 0, and they have a share of the dropped mass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.caches.importing.kept import ARITHMETIC, LOWEST
from pipeline.encodings import TopK
from pipeline.errors import DataError, EncodingError

Ints = npt.NDArray[np.int64]
Wide = npt.NDArray[np.float64]

MOST_EXCESS = 0.01
"""How far above 1 a server's probabilities may come to: those rounded to bfloat16 come to 1.004 at most in practice."""


@dataclass(frozen=True)
class Scored:
    """What a teacher said of one sequence of T tokens, at P of its positions.

    - ``id``: of the example; ``token_ids`` (T,);
    - ``positions`` (P,) ascending: places whose **next** token was scored, 0 to T - 2;
    - ``counts`` (P,): how many classes each names, 1 or more;
    - ``ids`` (M,) and ``logprobs`` (M,) float64: the classes of all positions one after another, M the sum of counts.
    """

    id: str
    token_ids: Ints
    positions: Ints
    counts: Ints
    ids: Ints
    logprobs: Wide

    @property
    def content(self) -> bytes:
        """The sha256 of what a token dataset keeps of the same sequence with the same positions scored: the ids as
        little-endian uint32, then a byte for each token but the first, 1 where it is scored."""
        mask = np.zeros(len(self.token_ids) - 1, np.uint8)
        mask[self.positions] = 1
        return hashlib.sha256(self.token_ids.astype("<u4").tobytes() + mask.tobytes()).digest()

    def at(self, positions: Ints) -> Scored:
        """The same at some positions (n,), ascending: those that a packing contract scores.

        Raises DataError for one that was not scored here.
        """
        rows = np.searchsorted(self.positions, positions)
        found = rows < len(self.positions)
        found[found] = self.positions[rows[found]] == positions[found]
        if not found.all():
            raise DataError(
                f"{self.id}: {int((~found).sum())} of {len(positions)} positions that count in the loss have no "
                f"log-probabilities, the first of them {int(positions[~found][0])}"
            )
        kept = np.zeros(len(self.positions), bool)
        kept[rows] = True
        classes = np.repeat(kept, self.counts)
        return replace(
            self,
            positions=self.positions[kept],
            counts=self.counts[kept],
            ids=self.ids[classes],
            logprobs=self.logprobs[classes],
        )


@dataclass(frozen=True)
class TopLogprobs:
    """K classes of each of P positions: ``ids`` (P, K), in no order, and ``logprobs`` (P, K) float64.

    ``fitted``: they are points of a curve, and may come to more than 1 by more than rounding.
    """

    ids: Ints
    logprobs: Wide
    fitted: bool = False


@dataclass(frozen=True)
class Made:
    """Stored arrays of P positions, their ``bound``, and what was above 1: in how many ``scaled`` positions, the most.

    A float32 softmax's own rounding above 1 is not counted.

    The bound is on the distance from what the source says. How far that is from its teacher, the source alone knows.
    """

    arrays: dict[str, npt.NDArray[Any]]
    bound: float
    scaled: int
    excess: float


def fewest(scored: Scored) -> int:
    """The most classes that every position of ``scored`` has."""
    return int(scored.counts.min())


def narrowed(scored: Scored, k: int) -> TopLogprobs:
    """The ``k`` largest of each position; of equal ones those of the smaller ids.

    Raises EncodingError, with the row, for a position that has fewer.
    """
    short = np.flatnonzero(scored.counts < k)
    if len(short):
        row = int(short[0])
        raise EncodingError(
            f"position {scored.positions[row]} of {scored.id} has {scored.counts[row]} classes; {k} are to be kept. "
            "Ask for fewer (--k)",
            row=row,
        )
    rows = np.repeat(np.arange(len(scored.counts)), scored.counts)
    order = np.lexsort((scored.ids, -scored.logprobs, rows))
    starts = np.cumsum(scored.counts) - scored.counts
    chosen = order[starts[:, None] + np.arange(k)]
    return TopLogprobs(scored.ids[chosen], scored.logprobs[chosen])


def encode(said: TopLogprobs, classes: int, encoding: TopK) -> Made:
    """Stored arrays for log-probabilities at the one temperature of ``encoding``, over C = ``classes`` classes.

    Raises EncodingError, with the row: ids outside the vocabulary or twice, log-probabilities that are NaN or above 0,
    sums that are more than MOST_EXCESS above 1, unless they are ``fitted``.
    """
    (temperature,) = encoding.temperatures
    _check(said, classes)
    order = np.argsort(said.ids, axis=1)
    ids = np.take_along_axis(said.ids, order, axis=1)
    logprobs = np.take_along_axis(said.logprobs, order, axis=1)
    total = _log_sum_exp(logprobs)
    excess = np.expm1(np.maximum(total, 0.0))
    if len(excess) and excess.max() > MOST_EXCESS and not said.fitted:
        row = int(excess.argmax())
        raise EncodingError(
            f"the probabilities of a position come to {1 + excess[row]:.6g}, and should come to 1 at most. Are these "
            "log-probabilities of the whole vocabulary, in nats, before any top-p or top-k of the sampler?",
            row=row,
        )
    logprobs = logprobs - np.maximum(total, 0.0)[:, None]
    largest = logprobs.max(axis=1, keepdims=True, initial=LOWEST)
    with np.errstate(over="ignore"):
        # A class of probability 0 (the server said -inf, or -9999) stays finite; its exponential is 0 all the same.
        logits = np.maximum(temperature * (logprobs - largest), -60_000.0).astype(np.float32)
    with np.errstate(divide="ignore"):
        dropped = np.log(-np.expm1(np.minimum(total, 0.0)))
    residual = np.where(ids.shape[1] == classes, -np.inf, np.maximum(dropped, LOWEST))
    normaliser = (-largest).astype(np.float32)
    arrays = encoding.packed(classes, ids, logits, normaliser, residual[:, None].astype(np.float32))
    most = float(excess.max(initial=0.0))
    bound = encoding.bound(arrays, classes) + ARITHMETIC + most
    return Made(arrays, bound, int(np.count_nonzero(excess > ARITHMETIC)), most)


def _check(said: TopLogprobs, classes: int) -> None:
    if not said.ids.size:
        return
    ordered = np.sort(said.ids, axis=1)
    outside = (ordered[:, 0] < 0) | (ordered[:, -1] >= classes)
    twice = (np.diff(ordered, axis=1) == 0).any(axis=1)
    impossible = ~(said.logprobs <= 1e-6).all(axis=1) | np.isneginf(said.logprobs).all(axis=1)
    problems: Sequence[tuple[Any, str]] = (
        (outside, f"token ids should lie below {classes:,}, the vocabulary. Is it this teacher's tokenizer?"),
        (twice, "a class should be named once in a position"),
        (impossible, "log-probabilities should be 0 or less, and some of them finite"),
    )
    for wrong, what in problems:
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            found = dict(zip(said.ids[row].tolist()[:8], said.logprobs[row].tolist(), strict=False))
            raise EncodingError(f"{what}; found {found}", row=row)


def _log_sum_exp(logprobs: Wide) -> Wide:
    """(P,): log of the sum of exp over each row of (P, K)."""
    largest = logprobs.max(axis=1, initial=LOWEST)
    total: Wide = np.log(np.exp(logprobs - largest[:, None]).sum(axis=1)) + largest
    return total
