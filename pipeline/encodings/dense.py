"""All the logits of a row: exactly, in half precision, or in eight bits with a scale per position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.encodings.base import Arrays, ArraySpec, Encoding, Keys, half_precision, largest_half, row_extremes
from pipeline.errors import EncodingError
from pipeline.softlabels import Dense as DenseLabels

LEVELS = 254
"""Steps between the smallest and the largest logit of an int8 row: -127 to 127."""

FLAT = np.float32(1e-30)
"""A row whose logits differ by less than this is kept as equal; smaller scales would be denormal numbers."""


@dataclass(frozen=True)
class Dense(Encoding):
    """Every logit, so that any temperature will do.

    - ``float32``: the logits as they are; nothing is lost.
    - ``float16``: logits minus the largest of their row, so that the precision is spent where the mass is.
    - ``int8``: ``values`` (C,) times ``scale`` () is the logit minus the middle of its row's range.
    """

    dtype: str = "float32"

    name: ClassVar[str] = "dense"
    choices: ClassVar[tuple[str, ...]] = ("float32", "float16", "int8")

    def __post_init__(self) -> None:
        if self.dtype not in self.choices:
            raise EncodingError(f"a dense encoding should be {', '.join(self.choices)}; found {self.dtype!r}")

    @property
    def temperatures(self) -> tuple[float, ...]:  # type: ignore[override]
        """(): all logits are kept, so any temperature will do."""
        return ()

    def specs(self, classes: int) -> dict[str, ArraySpec]:
        """``logits`` (C,), or ``values`` (C,) with ``scale`` () for int8."""
        if classes < 1:
            raise EncodingError(f"there should be at least one class, found {classes}")
        if self.dtype == "int8":
            return {"scale": ArraySpec((), "float32", "none"), "values": ArraySpec((classes,), "int8", "zstd")}
        return {"logits": ArraySpec((classes,), self.dtype, "none")}

    def encode(self, logits: npt.NDArray[Any], keys: Keys | None = None) -> dict[str, npt.NDArray[Any]]:
        """See Encoding."""
        values, top, bottom = row_extremes(logits)
        if self.dtype == "float32":
            return {"logits": values}
        with np.errstate(over="ignore"):
            relative = values - top[:, None]
            span = top - bottom
        if self.dtype == "float16":
            return {"logits": half_precision(relative, "logits below their largest")}
        if len(span) and not np.isfinite(span).all():
            row = int(np.flatnonzero(~np.isfinite(span))[0])
            raise EncodingError(f"the logits of row {row} span more than float32 holds. Encode in float32", row=row)
        scale = np.where(span < FLAT, np.float32(0), span / np.float32(LEVELS))
        # Working from the largest logit keeps the precision of small differences between large logits.
        relative /= np.where(scale > 0, scale, np.float32(1))[:, None]
        relative += np.where(scale > 0, np.float32(LEVELS // 2), np.float32(0))[:, None]
        np.rint(relative, out=relative)
        np.clip(relative, -(LEVELS // 2), LEVELS // 2, out=relative)
        return {"scale": scale, "values": relative.astype(np.int8)}

    def decode(self, arrays: Arrays, classes: int) -> DenseLabels:
        """See Encoding. float16 rows have their largest logit at 0, int8 rows are centred on their range."""
        if self.dtype == "int8":
            return DenseLabels(np.multiply(arrays["values"], arrays["scale"][:, None], dtype=np.float32))
        return DenseLabels(arrays["logits"])

    def bound(self, arrays: Arrays, classes: int) -> float:
        """See Encoding. Rounding errs by half a step; centring can add the mean of a row's errors: a step in all."""
        if self.dtype == "float32":
            return 0.0
        if self.dtype == "int8":
            # float32 arithmetic on quotients of up to 254 adds less than 2e-4 of a step to each half.
            return 1.001 * float(arrays["scale"].max(initial=0.0)) + 2.0 * float(FLAT)
        largest = largest_half(arrays["logits"])
        return float(np.spacing(largest)) + 2.0 * float(np.spacing(np.float32(largest)))

    def describe(self) -> dict[str, Any]:
        """See Encoding."""
        return {"name": self.name, "dtype": self.dtype}
