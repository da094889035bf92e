"""What a source says of all C classes, as logits, and how far its own rounding leaves them open.

Logits and log-probabilities are taken as they stand. Probabilities are taken as rounded to their precision: their
logarithms blow that up, without end at 0. So for each value there is a range [low, high] that the teacher's logit lies
in, and the bound of the encoded labels covers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.caches.importing.kept import SMALLEST, rounding
from pipeline.encodings import Arrays, Encoding
from pipeline.errors import EncodingError
from pipeline.softlabels import TopK

Wide = npt.NDArray[np.float64]
KINDS = ("logits", "logprobs", "probs")


@dataclass(frozen=True)
class Full:
    """Logits (N, C) float32 of N rows; ``low`` and ``high`` (N, C) float64 around them, None where they are exact."""

    logits: npt.NDArray[np.float32]
    low: Wide | None = None
    high: Wide | None = None


def from_values(values: npt.NDArray[Any], kind: str, temperature: float = 1.0) -> Full:
    """What ``values`` (N, C) say, which are logits, or log-probabilities or probabilities made at ``temperature``.

    Raises EncodingError, with the row, for values that are not what ``kind`` says.
    """
    if values.dtype.kind != "f":
        raise EncodingError(f"{kind} should be floating, found {values.dtype}")
    if kind == "logits":
        return _exactly(values)
    wide = values.astype(np.float64)
    _check_sums(values, kind)
    if kind == "logprobs":
        scaled = temperature * np.where(np.isneginf(wide), np.log(SMALLEST), wide)
        if not np.isneginf(wide).any():
            return _exactly(scaled if temperature != 1.0 else values)
        return Full(scaled.astype(np.float32), np.where(np.isneginf(wide), -np.inf, scaled), scaled)
    by = rounding(values)
    with np.errstate(divide="ignore"):
        low, high = (temperature * np.log(np.maximum(edge, 0.0)) for edge in (wide - by, wide + by))
    return Full((temperature * np.log(np.maximum(wide, SMALLEST))).astype(np.float32), low, high)


def _exactly(values: npt.NDArray[Any]) -> Full:
    with np.errstate(over="ignore"):
        logits = np.ascontiguousarray(values, dtype=np.float32)
    if values.dtype.itemsize <= 4:
        return Full(logits)
    wide = values.astype(np.float64)
    return Full(logits, wide, wide)


def _check_sums(values: npt.NDArray[Any], kind: str) -> None:
    wide = values.astype(np.float64)
    probs = np.exp(wide) if kind == "logprobs" else wide
    # A log-probability is off by half a step of its own, a probability by that of its value.
    steps = np.spacing(np.where(np.isneginf(values), 0, np.abs(values))).astype(np.float64)
    by = probs * steps if kind == "logprobs" else 0.0
    slack = (rounding(np.abs(probs).astype(values.dtype)) + by).sum(axis=1) + 1e-6
    sums = probs.sum(axis=1)
    with np.errstate(invalid="ignore"):
        wrong = ~((np.abs(sums - 1.0) <= slack) & (probs >= 0).all(axis=1))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise EncodingError(
            f"{kind} should {'be 0 or more and ' if kind == 'probs' else ''}come to 1 over the classes; found "
            f"{sums[row]:.6g}. Are they {' or '.join(other for other in KINDS if other != kind)} (--kind), or are "
            "classes missing?",
            row=row,
        )


def encode(said: Full, encoding: Encoding) -> tuple[dict[str, npt.NDArray[Any]], float]:
    """Stored arrays and their bound. Raises EncodingError, with the row, for what cannot be kept."""
    arrays = encoding.encode(said.logits)
    classes = said.logits.shape[1]
    return arrays, encoding.bound(arrays, classes) + _left_open(said, arrays, encoding)


def _left_open(said: Full, arrays: Arrays, encoding: Encoding) -> float:
    """How much further off a stored value may be for what the source itself leaves open."""
    if said.low is None or said.high is None or not len(said.logits):
        return 0.0
    if not encoding.temperatures:
        bottomless = np.isneginf(said.low).any(axis=1)
        if bottomless.any():
            row = int(np.flatnonzero(bottomless)[0])
            count = int(np.isneginf(said.low[row]).sum())
            raise EncodingError(
                f"{count} classes have a probability that was rounded to 0 or next to it: their logits can be anything "
                "below, and dense labels would claim one. Keep them with --encoding topk, which claims probabilities",
                row=row,
            )
        # Centring shifts a row by at most what its values are off.
        return 2.0 * float(np.maximum(said.high - said.logits, said.logits - said.low).max())
    soft = encoding.decode(arrays, said.logits.shape[1])
    kept = np.zeros(said.logits.shape, bool)
    if isinstance(soft, TopK):
        np.put_along_axis(kept, soft.ids, True, axis=1)
    edges = (said.low, said.logits.astype(np.float64), said.high)
    return max(_range_at(edges, kept, temperature) for temperature in encoding.temperatures)


def _range_at(edges: tuple[Wide, Wide, Wide], kept: npt.NDArray[np.bool_], temperature: float) -> float:
    """The largest distance from a kept probability at T, or the residual, to the ends of its range.

    ``edges``: the smallest logit (N, C) that may be meant, the one that is stored, the largest.
    """
    top = edges[2].max(axis=1, keepdims=True)
    weights = [np.exp((edge - top) / temperature) for edge in edges]
    groups = [np.concatenate([w * kept, (w * ~kept).sum(axis=1, keepdims=True)], axis=1) for w in weights]
    least, middle, most = groups
    stored = middle / middle.sum(axis=1, keepdims=True)
    # A share is largest where it is as large, and all others are as small, as they can be.
    above = most / (least.sum(axis=1, keepdims=True) - least + most)
    below = least / (most.sum(axis=1, keepdims=True) - most + least)
    return float(np.maximum(above - stored, stored - below).max())


def predicted(said: Full) -> npt.NDArray[np.int64]:
    """The largest class of each row (N,)."""
    return np.asarray(said.logits.argmax(axis=1), np.int64)
