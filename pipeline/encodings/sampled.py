"""Some classes of a row, drawn at random so that on average nothing is lost: what a large vocabulary needs.

"Sparse Logit Sampling" (Anshumann et al., ACL 2025, arXiv 2503.16870) keeps draws from the teacher's distribution as
ids and counts. Truncation to the largest classes biases every gradient; draws make it noisy instead, and noise
averages out.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.encodings import planes
from pipeline.encodings.base import KEPT, LOWEST_EXPONENT, Arrays, ArraySpec, Encoding, Keys, row_extremes, row_slices
from pipeline.encodings.drawing import BLOCK, SCHEMES, Scheme, drawn, thresholds
from pipeline.encodings.planes import Planes
from pipeline.encodings.topk import id_dtype
from pipeline.errors import EncodingError
from pipeline.softlabels import Sampled as SampledLabels

_ROWS_TIMES_CLASSES = 2**21
"""Logits that numpy works on at a time: what is made of them stays near the processor."""

MOST_DRAWS = 65_535

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sampled(Encoding):
    """``n`` draws from softmax(z / ``temperature``), kept as the classes that were hit and how often.

    - ``proposal``: draws come from q = p^``proposal``, normalised; each then stands for p / (n q);
    - ``scheme``: see ``drawing.thresholds``; ``seed``: another one draws otherwise.

    Stored, with the M classes of all positions one after another ("kept" axis), ascending within each:

    - ``kept`` (), by position: how many classes it has;
    - ``draws_0``, ``draws_1``, ... (), kept: of each class the id, less the one before it in its position, and how
      often it was drawn; see ``planes``;
    - ``weights`` (), kept, float16: instead of how often, where draws do not come from the distribution itself.

    The expectation of the weights is the distribution: up to float32 arithmetic, and where there are ``weights``, up to
    their rounding.
    """

    n: int = 50
    proposal: float = 1.0
    temperature: float = 1.0
    scheme: Scheme = "systematic"
    seed: int = 0

    name: ClassVar[str] = "sampled"
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for what, value, least, most in (("n", self.n, 1, MOST_DRAWS), ("seed", self.seed, 0, 2**63 - 1)):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise EncodingError(
                    f"{what} of sampled labels should be a whole number from {least} to {most}; found {value!r}"
                )
        for what in ("proposal", "temperature"):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise EncodingError(f"{what} of sampled labels should be a positive number; found {value!r}")
            object.__setattr__(self, what, float(value))
        if self.scheme not in SCHEMES:
            raise EncodingError(f"the scheme of sampled labels should be {' or '.join(SCHEMES)}; found {self.scheme!r}")

    @property
    def temperatures(self) -> tuple[float, ...]:  # type: ignore[override]
        """The one that was drawn at."""
        return (self.temperature,)

    @property
    def counted(self) -> bool:
        """Whether it is kept how often each class was drawn; ``weights`` otherwise."""
        return self.proposal == 1.0

    def specs(self, classes: int) -> dict[str, ArraySpec]:
        """``kept`` (), ``draws_0`` () and so on; ``weights`` () for a proposal of its own."""
        if classes < 1:
            raise EncodingError(f"there should be at least one class, found {classes}")
        most = min(self.n, classes)
        found = {KEPT: ArraySpec((), id_dtype(most + 1), "zstd")}
        for plane in range(self._planes(classes).number):
            found[f"draws_{plane}"] = ArraySpec((), "uint8", "zstd", KEPT, most)
        return found if self.counted else {**found, "weights": ArraySpec((), "float16", "none", KEPT, most)}

    def _planes(self, classes: int) -> Planes:
        return Planes.of(classes, self.n if self.counted else 0)

    def encode(self, logits: npt.NDArray[Any], keys: Keys | None = None) -> dict[str, npt.NDArray[Any]]:
        """See Encoding."""
        values, top, _ = row_extremes(logits)
        rows, classes = values.shape
        places = self.places(keys, rows)
        slices = row_slices(rows, max(classes, self.n * BLOCK), _ROWS_TIMES_CLASSES)
        parts = [self._kept(values[part], top[part], places[part]) for part in slices]
        return self.packed(classes, *(np.concatenate(each) for each in zip(*parts, strict=True)))

    def places(self, keys: Keys | None, rows: int) -> npt.NDArray[np.float64]:
        """``drawing.thresholds`` (N, n) of so many rows. Raises EncodingError when there is not a key for each."""
        if keys is None or np.shape(keys) != (rows,):
            raise EncodingError(
                f"sampled labels of {rows} rows need a key for each, found {None if keys is None else np.shape(keys)}. "
                "Make them with encodings.position_keys from the entry's seed"
            )
        return thresholds(keys, self.n, self.scheme, self.seed)

    def _kept(self, values: Floats, top: Floats, places: npt.NDArray[np.float64]) -> tuple[npt.NDArray[Any], ...]:
        """What ``packed`` wants of some rows, but for the number of classes."""
        with np.errstate(over="ignore"):
            scaled = np.maximum((values - top[:, None]) / np.float32(self.temperature), np.finfo(np.float32).min)
            masses = _exp(scaled if self.counted else scaled * np.float32(self.proposal))
        ids = drawn(masses, places)
        if self.counted:
            return self.counted_up(ids)
        share = masses.sum(axis=1, dtype=np.float64) / _exp(scaled).sum(axis=1, dtype=np.float64) / self.n
        each = np.take_along_axis(scaled, ids, axis=1).astype(np.float64) * (1.0 - self.proposal)
        return self.counted_up(ids, np.exp(each) * share[:, None])

    def counted_up(
        self, ids: npt.NDArray[np.integer[Any]], each: npt.NDArray[np.floating[Any]] | None = None
    ) -> tuple[npt.NDArray[Any], ...]:
        """What ``packed`` wants of the classes ``ids`` (N, n) of all draws, ascending in each row.

        ``each`` (N, n): what a draw stands for, where that is kept rather than how often a class was drawn.
        """
        first = np.ones(ids.shape, bool)
        np.not_equal(ids[:, 1:], ids[:, :-1], out=first[:, 1:])
        places = np.flatnonzero(first)
        counts = np.diff(places, append=ids.size)
        weights = np.zeros(0) if each is None else each.reshape(-1)[places] * counts
        return first.sum(axis=1), ids.reshape(-1)[places].astype(np.int64, copy=False), counts, weights

    def packed(
        self,
        classes: int,
        kept: npt.NDArray[np.integer[Any]],
        ids: npt.NDArray[np.integer[Any]],
        counts: npt.NDArray[np.integer[Any]],
        weights: npt.NDArray[np.floating[Any]],
    ) -> dict[str, npt.NDArray[Any]]:
        """The stored arrays of C = ``classes``, from what was drawn.

        ``kept`` (N,) of the classes ``ids`` (M,) are in each row, ascending; they were drawn ``counts`` (M,) times, or
        stand for ``weights`` (M,): whichever this encoding stores.
        """
        heads = np.cumsum(kept, dtype=np.int64) - kept
        deltas = np.diff(ids, prepend=0)
        deltas[heads] = ids[heads]
        if self.counted:
            counts = planes.without_largest(counts, kept)
        made = self._planes(classes).split(deltas, counts)
        found = {KEPT: kept, "weights": weights, **{f"draws_{plane}": values for plane, values in enumerate(made)}}
        return {name: found[name].astype(spec.dtype, copy=False) for name, spec in self.specs(classes).items()}

    def decode(self, arrays: Arrays, classes: int) -> SampledLabels:
        """See Encoding. Ids come back as int64, weights as float32.

        Raises EncodingError when the arrays do not belong together.
        """
        kept, layout = arrays[KEPT], self._planes(classes)
        offsets = np.zeros(len(kept) + 1, np.int64)
        np.cumsum(kept, out=offsets[1:])
        stored = [arrays[f"draws_{plane}"] for plane in range(layout.number)]
        if offsets[-1] != len(stored[0]) or not kept.all():
            raise EncodingError(
                f"{len(kept):,} positions keep {offsets[-1]:,} classes in all, at least one each; "
                f"found {len(stored[0]):,} classes, and {int((kept == 0).sum()):,} positions without"
            )
        deltas, counts = layout.join(stored)
        starts = offsets[:-1]
        if self.counted:
            planes.fill_largest(counts, starts, self.n)
            weights = np.multiply(counts, np.float32(1.0 / self.n), dtype=np.float32)
        else:
            weights = np.asarray(arrays["weights"], dtype=np.float32)
        # Each position starts at 0 again: one sum over everything, that first takes off what the one before came to.
        if len(starts) > 1:
            deltas[starts[1:]] -= np.add.reduceat(deltas, starts)[:-1]
        return SampledLabels(
            ids=np.cumsum(deltas, dtype=np.int64),
            weights=weights,
            offsets=offsets,
            temperature=self.temperature,
            num_classes=classes,
        )

    def bound(self, arrays: Arrays, classes: int) -> float:
        """0.0: what was drawn has no error that could be bounded, only a spread about the teacher's distribution."""
        return 0.0

    def describe(self) -> dict[str, Any]:
        """See Encoding."""
        return {"name": self.name, **asdict(self)}


def _exp(scaled: Floats) -> Floats:
    """exp of (N, C) values of at most 0; of those so low that they count nothing, something that counts nothing."""
    return np.asarray(np.exp(np.maximum(scaled, np.float32(LOWEST_EXPONENT))))
