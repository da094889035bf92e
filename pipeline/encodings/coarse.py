"""The kept logits of ``TopK`` in 8 or 4 bits, and their ids as arrays of bytes: what a large vocabulary needs.

Of N rows with K kept classes each:

- ``id_deltas_0`` (K,), ``id_deltas_1`` (K,), ...: byte 0, 1, ... of the differences between ids (see ``planes``);
- ``values`` (K,) uint8, or (ceil(K / 2),) of int4, two to a byte, class i in the low bits and class i + ceil(K / 2) in
  the high ones: a logit lies ``span`` * (value / most)^2 below the largest of its row, ``most`` being 255 or 15;
- ``span`` () float16: how far below it the lowest kept logit lies, or ``REACH`` at the highest temperature, if less;
- ``log_residual`` (S,) float16.

Steps grow with the distance from the largest logit: an error there moves little mass. Even steps have twice the largest
error and the same KL, and compress less well (docs/decisions/0014).

The kept classes come to 1 less the residual at each temperature, whatever rounding did to them: their softmax is
scaled to that when it is decoded, and what is left to err is how they share it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encodings.base import LOWEST_EXPONENT, Arrays, ArraySpec
from pipeline.encodings.planes import Planes

BITS = {"int8": 8, "int4": 4}

REACH = 16.0
"""Values reach so far below the largest logit, times the highest temperature: a class there has a 10 millionth of its
probability, and one that is further down is raised to that."""

_LEAST_RESIDUAL, _MOST_RESIDUAL = -65_504.0, -(2.0**-24)
"""Of its logarithm: float16 holds no more. That of a dropped class is not -inf, and kept classes have something."""

_ELEMENTS = 2**17
"""Kept logits that are worked on at a time: what is made of them stays near the processor."""

_ALL = 300.0
"""A logit that may be off by so much says nothing; of its exponentials a sum is still finite."""

_NOTHING, _ARITHMETIC = 1e-300, 1e-7

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]


def specs(classes: int, k: int, dtype: str, temperatures: int) -> dict[str, ArraySpec]:
    """The stored arrays, of so many temperatures."""
    found = {f"id_deltas_{n}": ArraySpec((k,), "uint8", "zstd") for n in range(Planes.of(classes, 0).number)}
    return {
        **found,
        "values": ArraySpec((k if dtype == "int8" else -(-k // 2),), "uint8", "zstd"),
        "span": ArraySpec((), "float16", "none"),
        "log_residual": ArraySpec((temperatures,), "float16", "none"),
    }


def packed(
    classes: int,
    deltas: npt.NDArray[np.integer[Any]],
    logits: Floats,
    log_residual: Floats,
    dtype: str,
    temperatures: tuple[float, ...],
) -> dict[str, npt.NDArray[Any]]:
    """The stored arrays of ``deltas`` (N, K) and ``logits`` (N, K), the largest of each row 0, the others below."""
    k, most = deltas.shape[1], np.float32(2 ** BITS[dtype] - 1)
    span = _round_up(np.minimum(-logits.min(axis=1, initial=0.0), _reach(temperatures)))
    by = np.where(span > 0, span, np.float16(1)).astype(np.float32)
    levels = np.rint(np.sqrt(np.minimum(logits / -by[:, None], np.float32(1))) * most).astype(np.uint8)
    if dtype == "int4":
        half = levels.shape[1] - k // 2
        low, high = levels[:, :half].copy(), levels[:, half:]
        low[:, : k - half] |= high << np.uint8(4)
        levels = low
    residual = np.where(np.isneginf(log_residual), log_residual, np.clip(log_residual, _LEAST_RESIDUAL, _MOST_RESIDUAL))
    made = Planes.of(classes, 0).split(deltas, deltas)
    return {
        **{f"id_deltas_{n}": values for n, values in enumerate(made)},
        "values": levels,
        "span": span,
        "log_residual": residual.astype(np.float16),
    }


def unpacked(
    arrays: Arrays, classes: int, k: int, dtype: str, temperatures: tuple[float, ...]
) -> tuple[npt.NDArray[np.int64], Floats, Floats, Floats]:
    """Ids (N, K), logits (N, K), log_normaliser (N, S) and log_residual (N, S) of stored arrays."""
    layout = Planes.of(classes, 0)
    deltas, _ = layout.join([arrays[f"id_deltas_{n}"] for n in range(layout.number)])
    # Half as wide takes half as long, where no bytes whatever could come to more.
    wide = np.int32 if k << 8 * layout.number <= 2**31 else np.int64
    ids = np.cumsum(deltas, axis=1, dtype=wide).astype(np.int64, copy=False)
    residual = arrays["log_residual"].astype(np.float32)
    normaliser = np.empty_like(residual)
    with np.errstate(all="ignore"):  # of damaged caches: seen in what comes out
        logits = _logits(arrays["values"], arrays["span"], k, dtype)
        for column, temperature in enumerate(temperatures):
            normaliser[:, column] = _exp(logits, temperature).sum(axis=1)
        normaliser = np.log(normaliser / -np.expm1(residual))
    return ids, logits, normaliser, residual


def rounding(arrays: Arrays, k: int, dtype: str, temperatures: tuple[float, ...]) -> float:
    """A bound on what rounding did to a probability, of a kept class or of all dropped ones, at any temperature."""
    rows = max(1, _ELEMENTS // k)
    names = ("values", "span", "log_residual")
    parts = range(0, len(arrays["span"]), rows)
    return max((_worst([arrays[n][i : i + rows] for n in names], k, dtype, temperatures) for i in parts), default=0.0)


def _worst(stored: list[npt.NDArray[Any]], k: int, dtype: str, temperatures: tuple[float, ...]) -> float:
    """``rounding`` of some rows.

    With u = span / most^2, a logit of value v lies between u (v - 1/2)^2 and u (v + 1/2)^2 below the largest; at any
    distance where v is ``most`` and values reach no further; and of those of value 0 one is the largest. A class gains
    most when it was rounded up and all others were rounded down, and loses most the other way round.
    """
    values, spans, residuals = stored
    logits, most = _logits(values, spans, k, dtype), 2 ** BITS[dtype] - 1
    unit = spans.astype(np.float64)[:, None] / most**2
    value = np.sqrt(logits / np.minimum(-unit, -_NOTHING))
    # A little more, for arithmetic in float32.
    up, down = (1.001 * unit * (value + shift) for shift in (-0.25, 0.25))
    first = value < 0.5
    last = (value > most - 0.5) & (spans >= 0.999 * _reach(temperatures))[:, None]
    alone = (np.count_nonzero(first, axis=1) == 1)[:, None]
    worst = 0.0
    for column, temperature in enumerate(temperatures):
        found = _exp(logits, temperature).astype(np.float64)
        high = np.where(first, 1.0, found * np.exp(np.minimum(up / temperature, _ALL)))
        low = np.where(last, 0.0, found * np.exp(-np.minimum(down / temperature, _ALL)))
        low = np.where(first & alone, 1.0, low)
        share = found / found.sum(axis=1, keepdims=True)
        # One of the classes of value 0 is exact; where such a class is looked at itself, that may be the one.
        exact = 1.0 - np.exp(-np.minimum(1.001 * 0.25 * unit / temperature, _ALL))
        others = low.sum(axis=1, keepdims=True) - low + np.where(first | alone, 0.0, exact)
        gain = high / (high + others) - share
        loss = share - low / (low + high.sum(axis=1, keepdims=True) - high + _NOTHING)
        residual, off = _residual(residuals[:, column])
        worst = max(worst, float((np.maximum(gain, loss).max(axis=1) * (1.0 - residual + off) + off).max()))
    return min(worst, 1.0)


def _residual(stored: npt.NDArray[np.float16]) -> tuple[Wide, Wide]:
    """The dropped mass (N,), and how far from it rounding may have brought it."""
    residual = np.exp(stored.astype(np.float64))
    there = np.where(np.isneginf(stored), np.float16(_MOST_RESIDUAL), np.maximum(stored, np.float16(-60_000)))
    half = np.abs(np.spacing(there)).astype(np.float64) / 2
    return residual, residual * np.expm1(np.minimum(half, _ALL)) + _ARITHMETIC


def _logits(stored: npt.NDArray[np.uint8], span: npt.NDArray[np.float16], k: int, dtype: str) -> Floats:
    """The kept logits (N, K), below the largest of their row, of ``values`` and ``span``."""
    unit = span.astype(np.float32) / np.float32((2 ** BITS[dtype] - 1) ** 2)
    if dtype == "int8":
        logits = stored.astype(np.float32)
    else:
        logits, half = np.empty((len(stored), k), np.float32), stored.shape[1]
        logits[:, :half] = stored & np.uint8(15)
        logits[:, half:] = stored[:, : k - half] >> np.uint8(4)
    np.multiply(logits, logits, out=logits)
    np.multiply(logits, -unit[:, None], out=logits)
    return logits


def _exp(logits: Floats, temperature: float) -> Floats:
    """exp(``logits`` / T) of (N, K) logits of at most 0; of those so low that they count nothing, next to nothing."""
    with np.errstate(over="ignore"):
        scaled = logits / np.float32(temperature) if temperature != 1.0 else logits
        return np.asarray(np.exp(np.maximum(scaled, np.float32(LOWEST_EXPONENT))))


def _reach(temperatures: tuple[float, ...]) -> np.float32:
    """How far values go below the largest logit, at most."""
    return np.float32(min(REACH * max(temperatures), 65_504.0))


def _round_up(values: Floats) -> npt.NDArray[np.float16]:
    """The smallest float16 that is not below each of ``values``, of 0 to 65,504."""
    halves = values.astype(np.float16)
    return np.where(halves < values, np.nextafter(halves, np.float16(math.inf)), halves)
