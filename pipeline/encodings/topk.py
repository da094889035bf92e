"""The K largest logits of a row, and the mass of all the others at each declared temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.encodings import coarse
from pipeline.encodings.base import (
    LOWEST_EXPONENT,
    Arrays,
    ArraySpec,
    Encoding,
    Keys,
    half_precision,
    row_extremes,
)
from pipeline.errors import EncodingError
from pipeline.softlabels import TopK as TopKLabels


@dataclass(frozen=True)
class TopK(Encoding):
    """The ``k`` largest logits; of equal ones, those of the smaller ids.

    Stored arrays, by position: ``id_deltas`` (K,), the ids ascending, the first as it is and then differences;
    ``logits`` (K,) relative to the largest of the row; ``log_normaliser`` (S,), logsumexp over all classes of
    (logit - largest) / T; ``log_residual`` (S,), log of the probability of all dropped classes together at T.

    In ``int8`` and ``int4`` (see ``coarse``): ``id_deltas_0`` (K,), ``id_deltas_1`` (K,), ..., the bytes of those
    differences; ``values`` (K,), or (ceil(K / 2),) of int4, the kept logits in so many bits; ``span`` (), how far these
    reach; ``log_residual`` (S,) in half precision, of which follows what the kept classes come to: there is no
    ``log_normaliser``.

    The dropped mass is summed over the dropped classes: one minus the kept mass is negative in half of the rows
    of a confident teacher.
    """

    k: int
    dtype: str = "float32"
    temperatures: tuple[float, ...] = (1.0,)

    name: ClassVar[str] = "topk"
    choices: ClassVar[tuple[str, ...]] = ("float32", "float16", "int8", "int4")

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise EncodingError(f"k should be a whole number of at least 1, found {self.k!r}")
        if self.dtype not in self.choices:
            raise EncodingError(f"a top-k encoding should be {', '.join(self.choices)}; found {self.dtype!r}")
        try:
            values = tuple(sorted(float(t) for t in self.temperatures))
        except (TypeError, ValueError, OverflowError):
            values = ()
        if not values or len(set(values)) < len(values) or not all(0 < t < math.inf for t in values):
            raise EncodingError(
                f"top-k needs at least one temperature, each positive and given once; found {self.temperatures!r}"
            )
        object.__setattr__(self, "temperatures", values)

    @property
    def least_format(self) -> int:  # type: ignore[override]
        """3 where logits are kept in a few bits; 1 otherwise."""
        return 3 if self.dtype in coarse.BITS else 1

    def specs(self, classes: int) -> dict[str, ArraySpec]:
        """Those of the class, of which the residual is never compressed."""
        self._check(classes)
        if self.dtype in coarse.BITS:
            return coarse.specs(classes, self.k, self.dtype, len(self.temperatures))
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

    def encode(self, logits: npt.NDArray[Any], keys: Keys | None = None) -> dict[str, npt.NDArray[Any]]:
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
        return self.packed(classes, ids, chosen, normaliser, residual)

    def packed(
        self,
        classes: int,
        ids: npt.NDArray[np.integer[Any]],
        logits: npt.NDArray[np.float32],
        log_normaliser: npt.NDArray[np.float32],
        log_residual: npt.NDArray[np.float32],
    ) -> dict[str, npt.NDArray[Any]]:
        """The stored arrays of C = ``classes``, from what ``softlabels.TopK`` has: ids (N, K) ascending, and so on.

        Raises EncodingError, with the row, for a logit that float16 cannot hold.
        """
        deltas = np.diff(ids, axis=1, prepend=0)
        if self.dtype in coarse.BITS:
            return coarse.packed(classes, deltas, logits, log_residual, self.dtype, self.temperatures)
        half = self.dtype == "float16"
        return {
            "id_deltas": deltas.astype(id_dtype(classes)),
            "logits": half_precision(logits, "kept logits below their largest") if half else logits,
            "log_normaliser": log_normaliser,
            "log_residual": log_residual,
        }

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
        if self.dtype in coarse.BITS:
            found = coarse.unpacked(arrays, classes, self.k, self.dtype, self.temperatures)
            return TopKLabels(*found, self.temperatures, classes)
        return TopKLabels(
            ids=np.cumsum(arrays["id_deltas"], axis=1, dtype=np.int64),
            logits=arrays["logits"].astype(np.float32, copy=False),
            log_normaliser=arrays["log_normaliser"],
            log_residual=arrays["log_residual"],
            temperatures=self.temperatures,
            num_classes=classes,
        )

    def bound(self, arrays: Arrays, classes: int) -> float:
        """See Encoding. float32 arithmetic on both sides, and the rounding of each kept logit and of the residual."""
        arithmetic = 8.0 * float(np.finfo(np.float32).eps) * (2.0 + math.log(classes))
        if self.dtype in coarse.BITS:
            return arithmetic + coarse.rounding(arrays, self.k, self.dtype, self.temperatures)
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
