"""Plain files of logits with ids: any number of tables, one after the other, as one source.

A table is a file of rows. Each has an id; it may have a hard label, a split, a view and a seed. The order of the
examples of a split is that of the rows of its view 0. Ids are held in memory, the logits stay where they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.caches.importing.full import KINDS, from_values
from pipeline.caches.importing.source import Batch, Facts, Ints, Source, hashed, summed
from pipeline.errors import DataError, EncodingError, some
from pipeline.identity import SPLITS
from pipeline.progress import Progress

ROW = "row"
"""What ``--ids`` says when the number of a row is its id."""


@dataclass(frozen=True)
class Columns:
    """What a table says of its N rows beside the logits; None where it does not."""

    ids: Sequence[str] | None = None
    labels: Ints | None = None
    splits: Sequence[str] | None = None
    views: Ints | None = None
    seeds: Ints | None = None
    class_names: tuple[str, ...] = ()


class Table(ABC):
    """One file. ``kind`` is logits, logprobs or probs; ``rows``, ``classes`` and ``dtype`` are of the values."""

    path: Path
    kind: str
    rows: int
    classes: int
    dtype: np.dtype[Any]
    columns: Columns

    @abstractmethod
    def take(self, rows: Ints) -> npt.NDArray[Any]:
        """(n, C) values of ``rows`` (n,), ascending."""


def kind_of(path: Path, names: Sequence[str], asked: str | None) -> str:
    """Which of ``names`` to read, all of them kinds that a file has. Raises DataError when that is not clear."""
    there = [kind for kind in KINDS if kind in names and asked in (None, kind)]
    if len(there) == 1:
        return there[0]
    wanted = f"{asked} (--kind)" if asked else f"one of {', '.join(KINDS)}, or --kind says which"
    raise DataError(f"{path} should hold {wanted}; found {some(sorted(names), 8) or 'nothing'}")


class Plain(Source):
    """Tables of one format, joined. ``ids``: of all rows in order, where the tables have none."""

    format: ClassVar[str] = "plain"

    def __init__(
        self,
        folder: Path,
        tables: Sequence[Table],
        *,
        ids: Sequence[str] | None,
        split: str = "train",
        views: int = 0,
        temperature: float = 1.0,
    ) -> None:
        self.folder, self.tables, self.temperature = folder, tables, temperature
        self.files = [table.path for table in tables]
        self.starts = np.cumsum([0, *(table.rows for table in tables)])
        first = tables[0]
        for table in tables:
            mine, theirs = ((t.kind, t.classes, t.dtype) for t in (table, first))
            if mine != theirs:
                raise DataError(
                    f"{table.path} should be like {first.path.name}, {theirs[0]} of {theirs[1]} classes in "
                    f"{theirs[2]}; found {mine[0]} of {mine[1]} classes in {mine[2]}"
                )
            if table.columns.class_names not in ((), first.columns.class_names):
                raise DataError(f"{table.path} names other classes than {first.path.name}")
        self._ids = self._all_ids(ids)
        self._labels = self._column("labels", np.int64)
        self._seeds = self._column("seeds", np.int64)
        self.entries = self._entries(split, views)

    def _all_ids(self, given: Sequence[str] | None) -> Sequence[str]:
        rows, without = int(self.starts[-1]), [t for t in self.tables if t.columns.ids is None]
        if given is not None:
            if len(without) < len(self.tables):
                raise DataError(f"{self.tables[0].path} holds ids of its own: leave --ids out")
            if len(given) != rows:
                raise DataError(f"--ids should name {rows:,} rows, one each; found {len(given):,}")
            return given
        if without:
            raise DataError(
                f"{without[0].path} does not say which example a row belongs to. Name a file with --ids (an id a "
                "line, or .npy); or, where a row's number is its id, say --ids row"
            )
        return [i for table in self.tables for i in table.columns.ids or ()]

    def _column(self, name: str, dtype: Any) -> Ints | None:
        """A column of all tables, -1 in those without it; None when none has it."""
        pieces = [getattr(table.columns, name) for table in self.tables]
        if all(piece is None for piece in pieces):
            return None
        sizes = [table.rows for table in self.tables]
        filled = [np.full(n, -1, dtype) if p is None else p for n, p in zip(sizes, pieces, strict=True)]
        return np.concatenate(filled)

    def _entries(self, split: str, most: int) -> dict[str, list[Ints]]:
        """Split -> for each view the row of every example, in the order of view 0."""
        views = self._column("views", np.int64)
        views = np.zeros(int(self.starts[-1]), np.int64) if views is None else views
        splits = np.concatenate([_split_numbers(table, split) for table in self.tables])
        found: dict[str, list[Ints]] = {}
        for number, name in enumerate(SPLITS):
            here = np.flatnonzero(splits == number)
            if not len(here):
                continue
            numbers = np.unique(views[here])
            if numbers.tolist() != list(range(len(numbers))):
                raise DataError(f"the views of {name} should be numbered 0, 1, ...; found {numbers.tolist()[:8]}")
            by_view = [here[views[here] == view] for view in numbers[: most or None]]
            place = self._places(by_view[0], name, 0)
            found[name] = [by_view[0], *(self._ordered(rows, place, name, v) for v, rows in enumerate(by_view) if v)]
        if not found:
            raise DataError(f"{self.tables[0].path} holds no rows")
        return found

    def _places(self, rows: Ints, split: str, view: int) -> dict[str, int]:
        """Where each id stands among ``rows``. Raises DataError when one stands there twice."""
        place = {self._ids[row]: number for number, row in enumerate(rows.tolist())}
        if len(place) < len(rows):
            # An id that stands again was placed by its last row.
            names = [self._ids[row] for n, row in enumerate(rows.tolist()) if place[self._ids[row]] != n]
            raise DataError(
                f"an id should stand once in view {view} of {split}; {len(names):,} stand there again, among them "
                f"{some(names)}. Where each row is a view of its example, a column view says which"
            )
        return place

    def _ordered(self, rows: Ints, place: dict[str, int], split: str, view: int) -> Ints:
        mine = self._places(rows, split, view)
        if mine.keys() != place.keys():
            lacking, more = sorted(place.keys() - mine.keys()), sorted(mine.keys() - place.keys())
            raise DataError(
                f"view {view} of {split} should have the examples of view 0: it lacks {len(lacking):,} "
                f"({some(lacking) or 'none'}) and has {len(more):,} others ({some(more) or 'none'})"
            )
        ordered = np.empty(len(rows), np.int64)
        ordered[[place[self._ids[row]] for row in rows.tolist()]] = rows
        return ordered

    def scan(self, progress: Progress) -> dict[str, Any]:
        """See Source."""
        return summed(list(hashed(self, progress)))

    def facts(self) -> Facts:
        """See Source."""
        first = self.tables[0]
        return Facts(
            splits={name: (len(views[0]), len(views)) for name, views in self.entries.items()},
            classes=first.classes,
            precision=first.dtype,
            probabilities=first.kind != "logits",
            class_names=first.columns.class_names,
            seeded=self._seeds is not None,
            notes={"values": f"{first.kind} in {first.dtype}"},
        )

    def read(self, split: str, view: int, first: int, count: int, classes: int) -> Batch:
        """See Source."""
        rows = self.entries[split][view][first : first + count]
        values = np.empty((count, self.tables[0].classes), self.tables[0].dtype)
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        for owner in np.unique(owners).tolist():
            here = np.flatnonzero(owners == owner)
            here = here[np.argsort(rows[here])]
            values[here] = self.tables[owner].take(rows[here] - self.starts[owner])
        try:
            said = from_values(values, self.tables[0].kind, self.temperature)
        except EncodingError as error:
            row, owner = (int(numbers[error.row or 0]) for numbers in (rows, owners))
            where = f"{self.tables[owner].path}, row {row - self.starts[owner]:,}, example {self._ids[row]}"
            raise EncodingError(f"{where}: {error}") from None
        nothing = np.full(count, -1, np.int64)
        return Batch(
            ids=[self._ids[row] for row in rows.tolist()],
            said=said,
            seeds=nothing if self._seeds is None else self._seeds[rows],
            labels=nothing if self._labels is None else self._labels[rows],
        )


def _split_numbers(table: Table, default: str) -> npt.NDArray[np.int8]:
    names = table.columns.splits
    if names is None:
        return np.full(table.rows, SPLITS.index(default), np.int8)
    known = {name: number for number, name in enumerate(SPLITS)} | {"val": SPLITS.index("validation")}
    unknown = sorted({name for name in names if name not in known})
    if unknown:
        raise DataError(f"{table.path}: a split is one of {', '.join(SPLITS)}; found {some(unknown)}")
    return np.array([known[name] for name in names], np.int8)
