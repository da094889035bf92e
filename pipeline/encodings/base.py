"""The contract of an encoding: how a batch of logits is kept, and how it comes back.

N rows are positions, C the classes, K the kept classes, S the declared temperatures. An encoding is a frozen
dataclass that checks its own fields and round-trips through ``describe`` and ``encodings.parse``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.errors import EncodingError
from pipeline.softlabels import SoftLabels

Arrays = Mapping[str, npt.NDArray[Any]]
"""Stored arrays by name; the first axis of each is the position, or what its ``ArraySpec`` says."""

Keys = npt.NDArray[np.uint64]
"""A number for each position: what is drawn at random for it is a function of that, and of the encoding's seed."""

LOWEST_EXPONENT = -87.0
"""Below it exp is a denormal number: ten times slower, and lost beside exp(0)."""

KEPT = "kept"
"""The array that counts the kept classes of each position, where there are arrays on that axis: unsigned, shape ()."""


@dataclass(frozen=True)
class ArraySpec:
    """One stored array.

    - ``shape``: what follows the first axis: () or (C,) or (K,) or (S,);
    - ``dtype``: numpy name; ``codec``: "none" or "zstd", whichever pays (docs/decisions/0002);
    - ``axis``: what the first axis counts, "position" or "kept": the kept classes of all positions one after another,
      where positions keep different numbers of them. The array ``KEPT`` then says how many each position has, at
      least 1; it is not compressed, so that nothing is believed to be kept that no byte speaks for;
    - ``most``: rows of that axis for each position, at most. 1 but on the axis "kept".
    """

    shape: tuple[int, ...]
    dtype: str
    codec: str
    axis: str = "position"
    most: int = 1

    @property
    def position_bytes(self) -> int:
        """Bytes of one position before compression, at most."""
        return self.row_bytes * self.most

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the first axis before compression."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class Encoding(ABC):
    """How a distribution is kept. Subclasses are frozen dataclasses."""

    name: ClassVar[str]
    draws: ClassVar[bool] = False
    """Whether anything is drawn at random: ``encode`` then needs keys."""
    least_format: ClassVar[int] = 1
    """The lowest format version of a cache that has room for it, but for what arrays on the axis "kept" take."""
    temperatures: tuple[float, ...]
    """The values of T at which the kept mass is complete; () when any temperature will do."""

    @abstractmethod
    def specs(self, classes: int) -> dict[str, ArraySpec]:
        """The stored arrays for C = ``classes``. At least one is uncompressed: one that is floating, or ``KEPT``.

        Raises EncodingError when this encoding cannot keep that many classes.
        """

    @abstractmethod
    def encode(self, logits: npt.NDArray[Any], keys: Keys | None = None) -> dict[str, npt.NDArray[Any]]:
        """Stored arrays of ``logits`` (N, C), taken as float32; ``keys`` (N,), where the encoding ``draws``.

        Raises EncodingError, with ``row`` set, on NaN, infinities and values out of range.
        """

    @abstractmethod
    def decode(self, arrays: Arrays, classes: int) -> SoftLabels:
        """Soft labels out of stored arrays of N positions. Their ``logits`` are float32, whatever was stored."""

    @abstractmethod
    def bound(self, arrays: Arrays, classes: int) -> float:
        """A bound on the error over the rows of ``arrays``, of C = ``classes``; 0 when nothing is lost.

        Dense: absolute, of a logit centred on its row's mean. Top-k: absolute, of a probability at a declared T.
        0 also where classes are drawn: their weights are right on average, and no bound holds for one row.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain JSON that ``encodings.parse`` turns back into an equal encoding."""


def row_extremes(logits: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
    """``logits`` (N, C) as float32 with the largest and smallest value of each row, (N,) each.

    Raises EncodingError when the shape is not (N, C >= 1), or, with the row, when a value is not finite.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise EncodingError(f"logits should have shape (rows, classes) with at least one class, found {logits.shape}")
    if logits.dtype.kind != "f":
        raise EncodingError(f"logits should be floating, found {logits.dtype}")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(logits, dtype=np.float32)
    if len(values) == 0:
        nothing = np.empty(0, dtype=np.float32)
        return values, nothing, nothing
    with np.errstate(invalid="ignore"):
        top, bottom = values.max(axis=1), values.min(axis=1)
    # NaN travels through max and min, so two comparisons per row see every bad value.
    bad = ~(np.isfinite(top) & np.isfinite(bottom))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        column = int(np.flatnonzero(~np.isfinite(values[row]))[0])
        raise EncodingError(
            f"logits should be finite; found {values[row, column]} in row {row}, class {column}. "
            "Look at the teacher's output for this entry: half precision overflows, and a masked class is -inf",
            row=row,
        )
    return values, top, bottom


def row_slices(rows: int, width: int, elements: int) -> list[slice]:
    """Parts of so many ``rows`` that take up to ``elements`` at ``width`` each; one part if there are none.

    >>> row_slices(5, 10, 25)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    step = max(1, elements // width)
    return [slice(first, first + step) for first in range(0, max(rows, 1), step)]


def half_precision(values: npt.NDArray[np.float32], what: str) -> npt.NDArray[np.float16]:
    """``values`` (N, ...) as float16; raises EncodingError with the row where one lies beyond 65,504."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    # An infinity has the largest bit pattern of its sign, and all values here are at most 0.
    if halves.size and halves.view(np.uint16).max() >= 0xFC00:
        row = int(np.flatnonzero(np.isinf(halves).reshape(len(halves), -1).any(axis=1))[0])
        raise EncodingError(
            f"{what} of row {row} reach {values[row].min():g}, which float16 cannot hold (65,504 at most). "
            "Encode in float32",
            row=row,
        )
    return halves


def largest_half(halves: npt.NDArray[np.float16]) -> np.float16:
    """The largest magnitude among ``halves``, all of them at most 0 (their bit patterns are in that order)."""
    if not halves.size:
        return np.float16(0)
    bits = halves.view(np.uint16).max() & np.uint16(0x7FFF)
    return np.float16(bits.astype(np.uint16).view(np.float16))
