"""The sequences of a packing contract, which records of a teacher's answers are held against."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline.caches.importing.logprobs import Ints, Scored
from pipeline.errors import DataError


@dataclass(frozen=True)
class Expected:
    """N sequences over V classes, as ``pipeline.datasets.tokens.Tokens`` has them.

    - ``name``: for messages; ``digest``: of the dataset; ``preprocessing``: its words; ``class_names``: V of them;
    - ``ids`` (N,); ``splits`` (N,): name of the split of each;
    - ``read``: row -> its T tokens as little-endian uint32, then T - 1 bytes: 1 where the next token is scored.
    """

    name: str
    digest: str
    preprocessing: str
    class_names: tuple[str, ...]
    ids: Sequence[str]
    splits: Sequence[str]
    read: Callable[[int], bytes]

    def has(self, example_id: str) -> bool:
        """Whether a sequence has this id."""
        return example_id in self._by_id

    def rows_of(self, scored: Scored, *, by_id: bool) -> Sequence[int]:
        """The row that has a record's id, or the rows that have its tokens; () for none."""
        if by_id:
            return (self._by_id[scored.id],) if scored.id in self._by_id else ()
        return self._by_tokens.get(_digest(scored.token_ids.astype("<u4").tobytes()), ())

    def matched(self, scored: Scored, row: int) -> Scored:
        """What a record says at the positions that ``row`` scores, under its id.

        Tokens that the record has beyond the row's (a server that went on) are left out. Raises DataError for other
        tokens, naming the first, and for positions that it says nothing of.
        """
        tokens, mask = self.sequence(row)
        found = scored.token_ids[: len(tokens)]
        if len(found) < len(tokens) or (found != tokens).any():
            differing = np.flatnonzero(found != tokens[: len(found)])
            at = int(differing[0]) if len(differing) else len(found)
            theirs, ours = (str(one[at]) if at < len(one) else "none" for one in (found, tokens))
            raise DataError(
                f"{scored.id} has other tokens than {self.ids[row]} of {self.name}: token {at} is {theirs} there, "
                f"{ours} here. Was the server given the tokens of this contract, as ids?"
            )
        return replace(scored.at(np.flatnonzero(mask)), id=self.ids[row], token_ids=found)

    def sequence(self, row: int) -> tuple[Ints, Ints]:
        """Tokens (T,) of a row, and whether each of the T - 1 next ones is scored."""
        held = self.read(row)
        count = (len(held) + 1) // 5
        tokens = np.frombuffer(held, "<u4", count).astype(np.int64)
        return tokens, np.frombuffer(held, np.uint8, offset=4 * count).astype(np.int64)

    @cached_property
    def _by_id(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    @cached_property
    def _by_tokens(self) -> dict[bytes, list[int]]:
        """Read once, and only where ids do not say it."""
        found: dict[bytes, list[int]] = {}
        for row in range(len(self.ids)):
            held = self.read(row)
            found.setdefault(_digest(held[: 4 * ((len(held) + 1) // 5)]), []).append(row)
        return found


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
