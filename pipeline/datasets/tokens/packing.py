"""Packing: how joined documents are cut into sequences, and which of their tokens are predicted.

A split's tokens stand one after another, each document followed by the end token. A sequence is a range [start, stop)
of them: its inputs are all but the last, its targets all but the first. Neighbours overlap by one token, so that each
token is a target once. Pure functions on arrays; n, N: sequences, D: documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError

PACKED, DOCUMENTS = "packed", "documents"
KINDS = (PACKED, DOCUMENTS)
MAX_LENGTH = 1 << 20

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """How sequences are made.

    - ``kind``: ``packed`` cuts a split's joined documents every ``length`` tokens; ``documents`` starts a sequence at
      every document, and at every ``length`` tokens of a longer one;
    - ``score_boundaries``: of ``packed``, whether the first token of a document is predicted from the one before it;
    - ``truncate``: of ``documents``, whether only the first sequence of each stays.
    """

    kind: str = PACKED
    length: int = 256
    score_boundaries: bool = False
    truncate: bool = False

    @property
    def words(self) -> str:
        """For people, and for a cache: it says of its data how they were packed."""
        if self.kind == PACKED:
            return f"packed to {self.length}, boundaries {'' if self.score_boundaries else 'not '}scored"
        return f"a sequence per document, {'cut off' if self.truncate else 'continued in pieces'} at {self.length}"

    def as_dict(self) -> dict[str, Any]:
        """The packing as JSON values."""
        return dict(vars(self))


def ranges(starts_D: Ints, stop: int, packing: Packing) -> Ints:
    """Sequences (N, 2) [start, stop) of one split, whose documents begin at ``starts_D`` and end at ``stop``.

    Windows without a token to predict (a document of one token) are left out.
    """
    if not len(starts_D):
        return np.zeros((0, 2), np.int64)
    if packing.kind == PACKED:
        begins, ends = starts_D[:1], np.array([stop], np.int64)
    else:
        begins, ends = starts_D, np.append(starts_D[1:], stop)
    # A run of n tokens has n - 1 targets, in windows of `length`.
    pieces = np.maximum(ends - begins - 1 + packing.length - 1, 0) // packing.length
    if packing.truncate:
        pieces = np.minimum(pieces, 1)
    of = np.repeat(np.arange(len(begins)), pieces)
    number = np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = begins[of] + number * packing.length
    return np.stack([start, np.minimum(start + packing.length + 1, ends[of])], axis=1)


def scored_tokens(prompt: int, size: int, *, packing: Packing) -> npt.NDArray[np.bool_]:
    """Which of a document's ``size`` tokens, end token included, are predicted: all after the first ``prompt``.

    The first is predicted only where the packing scores boundaries, and is no part of a prompt.
    """
    scored = np.arange(size) >= prompt
    if packing.kind == DOCUMENTS or not packing.score_boundaries:
        scored[0] = False
    return scored


def sums_over(ranges_N2: Ints, values: Any, chunk: int = 1 << 22) -> Ints:
    """Sum (N,) of ``values`` over each sequence's targets. ``values(start, stop)`` reads tokens [start, stop).

    Sequences are in ascending order; about ``chunk`` tokens are in memory at a time.
    """
    found = np.zeros(len(ranges_N2), np.int64)
    for first, end in _chunks(ranges_N2, chunk):
        begin, stop = ranges_N2[first:end, 0] + 1, ranges_N2[first:end, 1]
        low = int(begin[0])
        sums = np.concatenate([[0], np.cumsum(values(low, int(stop[-1])), dtype=np.int64)])
        found[first:end] = sums[stop - low] - sums[begin - low]
    return found


def _chunks(ranges_N2: Ints, chunk: int) -> Iterator[tuple[int, int]]:
    first = 0
    while first < len(ranges_N2):
        end = int(np.searchsorted(ranges_N2[:, 1], ranges_N2[first, 0] + chunk, side="right"))
        end = max(end, first + 1)
        yield first, end
        first = end


def sequence_ids(kind: str, split: str, starts_N: Ints, starts_D: Ints, names_D: list[str], length: int) -> list[str]:
    """The id of each sequence of one split: ``train/00000007``, or the document's with ``#1`` for its second piece.

    Numbers count every window, those without anything to predict as well. Raises DataError for an odd start.
    """
    if not len(starts_N):
        return []
    if not len(starts_D) or int(starts_N[0]) < int(starts_D[0]):
        raise DataError(f"a {split} sequence begins before its first document")
    if kind == PACKED:
        numbers = (starts_N - starts_D[0]) // length
        return [f"{split}/{number:08d}" for number in numbers.tolist()]
    of = np.searchsorted(starts_D, starts_N, side="right") - 1
    pieces = (starts_N - starts_D[of]) // length
    return [
        names_D[document] + (f"#{piece}" if piece else "")
        for document, piece in zip(of.tolist(), pieces.tolist(), strict=True)
    ]
