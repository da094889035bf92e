"""The K largest logits of a row, and the mass of all the others at each declared temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.encodings.base import Arrays, ArraySpec, Encoding, half_precision, row_extremes
from pipeline.errors import EncodingError
from pipeline.softlabels import TopK as TopKLabels

LOWEST_EXPONENT = -87.0
"""Below it exp is a denormal number: ten times slower, and lost beside exp(0)."""


@dataclass(frozen=True)
class TopK(Encoding):
    """The ``k`` largest logits; of equal ones, those of the smaller ids.

    Stored arrays, by position: ``id_deltas`` (K,), the ids ascending, the first as it is and then differences;
    ``logits`` (K,) relative to the largest of the row; ``log_normaliser`` (S,), logsumexp over all classes of
    (logit - largest) / T; ``log_residual`` (S,), log of the probability of all dropped classes together at T.

    The dropped mass is summed over the dropped classes: one minus the kept mass is negative in half of the rows
    of a confident teacher.
    """

    k: int
    dtype: str = "float32"
    temperatures: tuple[float, ...] = (1.0,)

    name: ClassVar[str] = "topk"
    choices: ClassVar[tuple[str, ...]] = ("float32", "float16")

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise EncodingError(f"k should be a whole number of at least 1, found {self.k!r}")
        if self.dtype not in self.choices:
            raise EncodingError(f"a top-k encoding should be {' or '.join(self.choices)}; found {self.dtype!r}")
        try:
            values = tuple(sorted(float(t) for t in self.temperatures))
        except (TypeError, ValueError, OverflowError):
            values = ()
        if not values or len(set(values)) < len(values) or not all(0 < t < math.inf for t in values):
            raise EncodingError(
                f"top-k needs at least one temperature, each positive and given once; found {self.temperatures!r}"
            )
        object.__setattr__(self, "temperatures", values)

    def specs(self, classes: int) -> dict[str, ArraySpec]:
        """``id_deltas`` (K,), ``logits`` (K,), ``log_normaliser`` (S,), ``log_residual`` (S,)."""
        self._check(classes)
        each = (len(self.temperatures),)
        return {
            "id_deltas": ArraySpec((self.k,), id_dtype(classes), "zstd"),
            "logits": ArraySpec((self.k,), self.dtype, "none"),
            "log_normaliser": ArraySpec(each, "float32", "none"),
            "log_residual": ArraySpec(each, "float32", "none"),
        }

    def _check(self, classes: int) -> None:
        if not 1 <= self.k <= classes:
            raise EncodingError(f"k should be at most the number of classes, {classes}; found {self.k}")

    def encode(self, logits: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """See Encoding."""
        values, top, _ = row_extremes(logits)
        rows, classes = values.shape
        self._check(classes)
        with np.errstate(over="ignore"):
            relative = np.maximum(values - top[:, None], np.finfo(np.float32).min)
        flat = np.flatnonzero(_largest(values, self.k))
        ids = (flat % classes).reshape(rows, self.k)
        chosen = relative.reshape(-1)[flat].reshape(rows, self.k)
        normaliser, residual = self._masses(relative, flat)
        deltas = np.diff(ids, axis=1, prepend=0).astype(id_dtype(classes))
        if self.dtype == "float16":
            return {
                "id_deltas": deltas,
                "logits": half_precision(chosen, "kept logits below their largest"),
                "log_normaliser": normaliser,
                "log_residual": residual,
            }
        return {"id_deltas": deltas, "logits": chosen, "log_normaliser": normaliser, "log_residual": residual}

    def _masses(
        self, relative: npt.NDArray[np.float32], flat: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """log_normaliser and log_residual (N, S) of ``relative`` (N, C), whose elements ``flat`` (N * K,) are kept."""
        rows, classes = relative.shape
        normaliser = np.zeros((rows, len(self.temperatures)), dtype=np.float64)
        residual = np.full_like(normaliser, -np.inf)
        if classes > self.k:
            dropped = relative.copy()
            dropped.reshape(-1)[flat] = -np.inf
            # Taken from their own largest, so that a mass below float32's smallest still has its logarithm.
            largest = dropped.max(axis=1, keepdims=True)
            dropped -= largest
        for column, temperature in enumerate(self.temperatures):
            normaliser[:, column] = np.log(_sum_of_exp(relative, temperature))
            if classes > self.k:
                tail = np.log(_sum_of_exp(dropped, temperature))
                residual[:, column] = largest[:, 0].astype(np.float64) / temperature + tail - normaliser[:, column]
        lowest = float(np.finfo(np.float32).min)  # -inf is kept for "nothing was dropped"
        residual = np.where(np.isneginf(residual), residual, np.maximum(residual, lowest))
        return normaliser.astype(np.float32), residual.astype(np.float32)

    def decode(self, arrays: Arrays, classes: int) -> TopKLabels:
        """See Encoding. Ids come back as int64, ascending."""
        return TopKLabels(
            ids=np.cumsum(arrays["id_deltas"], axis=1, dtype=np.int64),
            logits=arrays["logits"].astype(np.float32, copy=False),
            log_normaliser=arrays["log_normaliser"],
            log_residual=arrays["log_residual"],
            temperatures=self.temperatures,
            num_classes=classes,
        )

    def bound(self, arrays: Arrays, classes: int) -> float:
        """See Encoding. float32 arithmetic on both sides, and for float16 the rounding of each kept logit."""
        arithmetic = 8.0 * float(np.finfo(np.float32).eps) * (2.0 + math.log(classes))
        kept = arrays["logits"]
        if self.dtype == "float32" or not kept.size:
            return arithmetic
        rounding = np.spacing(np.abs(kept)).astype(np.float64) / 2 + np.spacing(np.abs(kept).astype(np.float32))
        worst = 0.0
        for column, temperature in enumerate(self.temperatures):
            logprobs = kept.astype(np.float64) / temperature - arrays["log_normaliser"][:, column, None]
            # |exp(a + e) - exp(a)| is at most exp(a) * expm1(|e|), where a may be as far as e above what is stored.
            error = np.exp(logprobs + rounding / temperature) * np.expm1(rounding / temperature)
            worst = max(worst, float(error.max()))
        return worst + arithmetic

    def describe(self) -> dict[str, Any]:
        """See Encoding."""
        return {"name": self.name, "k": self.k, "dtype": self.dtype, "temperatures": list(self.temperatures)}


def id_dtype(classes: int) -> str:
    """The smallest unsigned dtype that holds the ids 0 to ``classes`` - 1.

    >>> id_dtype(256), id_dtype(257), id_dtype(65_537)
    ('uint8', 'uint16', 'uint32')
    """
    for name in ("uint8", "uint16", "uint32"):
        if classes - 1 <= np.iinfo(name).max:
            return name
    raise EncodingError(f"at most 2**32 classes can be told apart, found {classes:,}")


def _sum_of_exp(values: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float64]:
    """Sum over each row of exp(``values`` / T), of (N, C) values the largest of which is 0."""
    with np.errstate(over="ignore"):
        floored = np.maximum(values / np.float32(temperature), np.float32(LOWEST_EXPONENT))
    terms: npt.NDArray[np.float64] = np.exp(floored).sum(axis=1, dtype=np.float64)
    return terms


def _largest(values: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.bool_]:
    """(N, C) mask of the ``k`` largest of each row of ``values`` (N, C); of equal ones the first."""
    rows, classes = values.shape
    if k == classes or not rows:
        return np.ones(values.shape, dtype=bool)
    threshold = np.partition(values, classes - k, axis=1)[:, classes - k, None]
    mask = values >= threshold
    surplus = np.flatnonzero(np.count_nonzero(mask, axis=1) > k)
    if len(surplus):
        tied = values[surplus] == threshold[surplus]
        above = mask[surplus] & ~tied
        room = k - np.count_nonzero(above, axis=1)[:, None]
        mask[surplus] = above | (tied & (np.cumsum(tied, axis=1) <= room))
    return mask
