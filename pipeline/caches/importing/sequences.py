"""Sources of token sequences: every entry has as many distributions as positions that count, so entries are uneven.

Two formats, ``top-logprobs`` (``served``) and ``distillkit``. Files are read twice: once to learn ids, lengths and the
fewest classes that a position has, once for their labels, run by run. In memory are about 300 bytes an entry.

Entries are in the order of the contract that they are held against (``Expected``); without one, in that of the files.
They are joined by id if the first record has one of the contract's, and by their tokens if it does not.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.caches.importing.config import ID
from pipeline.caches.importing.expected import Expected
from pipeline.caches.importing.kept import ARITHMETIC
from pipeline.caches.importing.logprobs import Ints, Scored, TopLogprobs, fewest, narrowed
from pipeline.caches.importing.source import Batch, Facts, Source, hashed, summed
from pipeline.errors import DataError, EncodingError, some
from pipeline.identity import SPLITS, digest_dataset
from pipeline.progress import Progress

Place = tuple[int, int]
"""Where in its file a sequence stands, as its format says it, and which of those there it is."""


class Sequences(Source):
    """Files of sequences, one after another. Once it is scanned, of its N entries split by split:

    - ``ids`` (N,), ``lengths`` (N,): positions of each; ``contents`` (N,): see ``Scored.content``;
    - ``kept``: K, what ``k`` asked for, or the fewest classes that any position has;
    - ``longest``: tokens of the longest; ``splits``: name -> the entries of each split.
    """

    fitted: ClassVar[bool] = False
    """See TopLogprobs."""

    has_ids: ClassVar[bool] = True
    """Whether a record's id is more than its place."""

    def __init__(
        self,
        folder: Path,
        files: Sequence[Path],
        *,
        k: int = 0,
        split: str = "train",
        template: str = ID,
        expected: Expected | None = None,
    ) -> None:
        """``expected``: the sequences that are wanted, others are left out; ``split``: of all, without it. ``k`` = 0:
        as many classes as every position has. ``template``: of an id, with that of a record in it."""
        self.folder, self.files, self.split, self.template = folder, files, split, template
        self.kept, self.expected = k, expected
        self._places: list[tuple[int, Place]] = []
        self._rows: list[int] = []
        self._taken: set[int] = set()
        self._by_id: bool | None = None
        self.splits: dict[str, range] = {}
        self.ids: list[str] = []
        self.contents: list[bytes] = []
        self.lengths: Ints = np.empty(0, np.int64)
        self.longest = self.left_out = self.above = 0
        self.most_above = 0.0

    @abstractmethod
    def sequences(self, path: Path) -> Iterator[tuple[Place, Scored]]:
        """All sequences of a file and where they stand."""

    @abstractmethod
    def sequence(self, path: Path, place: Place) -> Scored:
        """The one that stands there."""

    def scan(self, progress: Progress) -> dict[str, Any]:
        """See Source. Raises DataError where two sequences have one id, or nothing is wanted."""
        files = summed(list(hashed(self, progress)))
        lengths: list[int] = []
        least = 0
        with progress.bar("match", len(self.files), "file", 1) as bar:
            for number, path in enumerate(self.files):
                for place, scored in self.sequences(path):
                    scored = self._named(scored)
                    row = self._row_of(scored)
                    if row is None:
                        self.left_out += 1
                        continue
                    chosen = self._chosen(scored, row)
                    self._places.append((number, place))
                    self._rows.append(row)
                    self.ids.append(chosen.id)
                    self.contents.append(chosen.content)
                    lengths.append(len(chosen.positions))
                    least = min(fewest(chosen), least or fewest(chosen))
                    self._count(chosen)
                bar.update()
        if not lengths:
            raise DataError(f"{self.folder} holds no sequence that is wanted; {self.left_out:,} were left out")
        if len({*self.ids}) < len(self.ids):
            seen: set[str] = set()
            again = [name for name in self.ids if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
            raise DataError(f"an id should stand once; {len(again):,} stand there again, among them {some(again)}")
        self._sort(lengths)
        self.kept = self.kept or least
        return files

    def _sort(self, lengths: list[int]) -> None:
        """Bring entries into the order of their splits and, within each, of what they are held against."""
        place_of = np.array([SPLITS.index(self._split_of(row)) for row in self._rows])
        order = np.lexsort((np.array(self._rows), place_of))
        self._places = [self._places[n] for n in order]
        self._rows = [self._rows[n] for n in order]
        self.ids = [self.ids[n] for n in order]
        self.contents = [self.contents[n] for n in order]
        self.lengths = np.array(lengths, np.int64)[order]
        ends = np.searchsorted(place_of[order], np.arange(len(SPLITS)), side="right").tolist()
        cuts = zip(SPLITS, [0, *ends], ends, strict=False)
        self.splits = {split: range(first, end) for split, first, end in cuts if end > first}

    def _count(self, scored: Scored) -> None:
        if self.kept:
            self._narrowed(scored)  # what lacks classes is named before anything is written
        starts = np.cumsum(scored.counts) - scored.counts
        excess = np.add.reduceat(np.exp(scored.logprobs), starts) - 1
        self.above += int(np.count_nonzero(excess > ARITHMETIC))
        self.most_above = max(self.most_above, float(excess.max()))
        self.longest = max(self.longest, len(scored.token_ids))

    def _split_of(self, row: int) -> str:
        return self.split if self.expected is None else self.expected.splits[row]

    def facts(self) -> Facts:
        """See Source."""
        above = {"positions above 1": self.above, "most above 1": self.most_above} if self.above else {}
        notes = {"positions": int(self.lengths.sum()), "left out": self.left_out, **above, **self.notes()}
        entries = ((self.ids[n], split, self.contents[n].hex()) for split, at in self.splits.items() for n in at)
        return Facts(
            splits={split: (len(at), 1) for split, at in self.splits.items()},
            classes=None,
            precision=np.dtype(np.float32),
            probabilities=True,
            kept=self.kept,
            class_names=() if self.expected is None else self.expected.class_names,
            unknown=(*self._missing(), *self.unknown()),
            notes=notes,
            lengths={split: self.lengths[at.start : at.stop] for split, at in self.splits.items()},
            preprocessing=None if self.expected is None else self.expected.preprocessing,
            content=digest_dataset(entries),
        )

    def _missing(self) -> Iterator[str]:
        """Whose labels are not there, of what a contract has."""
        all_of = [] if self.expected is None else list(self.expected.splits)
        for split in SPLITS:
            wanted, there = all_of.count(split), len(self.splits.get(split, ()))
            if there < wanted:
                yield f"labels of {wanted - there:,} of {wanted:,} {split} sequences"

    def notes(self) -> dict[str, Any]:
        """Facts for the lineage that are the format's own."""
        return {}

    def unknown(self) -> tuple[str, ...]:
        """What the format cannot say."""
        return ()

    def read(self, split: str, view: int, first: int, count: int, classes: int) -> Batch:
        """See Source: ``said`` has the positions of all ``count`` entries one after another."""
        first += self.splits[split].start
        numbers = range(first, first + count)
        # In the order of the files, which is cheap to read.
        held = {number: self._read(number) for number in sorted(numbers, key=lambda n: self._places[n])}
        found = [held[number] for number in numbers]
        nothing = np.full(count, -1, np.int64)
        said = [self._narrowed(scored) for scored in found]
        return Batch(
            ids=[scored.id for scored in found],
            said=TopLogprobs(
                np.concatenate([labels.ids for labels in said]),
                np.concatenate([labels.logprobs for labels in said]),
                self.fitted,
            ),
            seeds=nothing,
            labels=nothing,
            targets=np.concatenate([scored.token_ids[scored.positions + 1] for scored in found]),
            digests=[self.contents[number].hex() for number in numbers],
        )

    def everything(self) -> Iterator[Scored]:
        """What was scanned, entry by entry."""
        return map(self._read, range(len(self.ids)))

    def _read(self, number: int) -> Scored:
        file, place = self._places[number]
        try:
            scored = self._named(self.sequence(self.files[file], place))
            chosen = self._chosen(scored, self._rows[number])
            same = (chosen.id, chosen.content) == (self.ids[number], self.contents[number])
        except DataError:
            if self.expected is None:
                raise
            same = False
        if not same:
            raise DataError(f"{self.files[file]} changed while it was read: example {self.ids[number]} is another now")
        return chosen

    def _named(self, scored: Scored) -> Scored:
        return replace(scored, id=self.template.replace(ID, scored.id))

    def _row_of(self, scored: Scored) -> int | None:
        if self.expected is None:
            return len(self._rows)
        if self._by_id is None:  # a server's own ids ("cmpl-...") are none of the contract's
            self._by_id = self.has_ids and self.expected.has(scored.id)
        rows = self.expected.rows_of(scored, by_id=self._by_id)
        # Sequences may be equal; an answer that comes once too often is noticed by its id.
        row = next((row for row in rows if row not in self._taken), rows[0] if rows else None)
        if row is not None:
            self._taken.add(row)
        return row

    def _chosen(self, scored: Scored, row: int) -> Scored:
        return scored if self.expected is None else self.expected.matched(scored, row)

    def _narrowed(self, scored: Scored) -> TopLogprobs:
        try:
            return narrowed(scored, self.kept)
        except EncodingError as error:
            raise DataError(str(error)) from None
