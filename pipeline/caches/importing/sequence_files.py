"""The two formats of token sequences: where a sequence stands in a file, and how it is read again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pipeline.caches.importing.distillkit import read_distillkit
from pipeline.caches.importing.distillkit_config import Compression
from pipeline.caches.importing.logprobs import Scored
from pipeline.caches.importing.sequences import Place, Sequences
from pipeline.caches.importing.served import read_toplogprobs
from pipeline.caches.importing.source import Facts
from pipeline.caches.importing.vocabulary import Vocabulary
from pipeline.errors import DataError


class TopLogprobsFiles(Sequences):
    """JSON lines; a place is where a line begins, and which of its choices it is."""

    format: ClassVar[str] = "top-logprobs"

    def __init__(
        self, folder: Path, files: Sequence[Path], *, vocabulary: Vocabulary | None = None, **options: Any
    ) -> None:
        super().__init__(folder, files, **options)
        self._vocabulary = vocabulary

    def sequences(self, path: Path) -> Iterator[tuple[Place, Scored]]:
        """See Sequences."""
        last, choice = -1, 0
        for begin, scored in read_toplogprobs(path, self._vocabulary):
            choice = choice + 1 if begin == last else 0
            last = begin
            yield (begin, choice), scored

    def sequence(self, path: Path, place: Place) -> Scored:
        """See Sequences."""
        found = read_toplogprobs(path, self._vocabulary, begin=place[0])
        for number, (begin, scored) in enumerate(found):
            if begin == place[0] and number == place[1]:
                return scored
        raise DataError(f"{path} changed while it was read: nothing stands at byte {place[0]:,} now")


class DistillKitFiles(Sequences):
    """Parquet; a place is a row group, and which of its rows it is."""

    format: ClassVar[str] = "distillkit"
    fitted: ClassVar[bool] = True
    has_ids: ClassVar[bool] = False

    def __init__(self, folder: Path, files: Sequence[Path], *, compression: Compression, **options: Any) -> None:
        super().__init__(folder, files, **options)
        self._compression = compression
        self._firsts: dict[Path, int] = {}
        self._counts: dict[Path, int] = {}
        self._open: tuple[Path, int, Iterator[tuple[Place, Scored]]] | None = None
        self._next = 0

    def notes(self) -> dict[str, Any]:
        """See Sequences."""
        return {"compression": self._compression.as_dict()}

    def unknown(self) -> tuple[str, ...]:
        """See Sequences."""
        return ("fit of the compressed values",)

    def facts(self) -> Facts:
        """See Source."""
        return replace(super().facts(), classes=self._compression.d)

    def sequences(self, path: Path) -> Iterator[tuple[Place, Scored]]:
        """See Sequences. Rows are numbered through all files."""
        first = self._firsts.setdefault(path, sum(self._counts.values()))
        count = 0
        for place, scored in read_distillkit(path, self._compression, first):
            count += 1
            yield place, scored
        self._counts[path] = count

    def sequence(self, path: Path, place: Place) -> Scored:
        """See Sequences. Rows of a group that are read in their order are decoded once."""
        group, row = place
        if self._open is None or self._open[:2] != (path, group) or self._next > row:
            rows = read_distillkit(path, self._compression, self._firsts[path], group=group)
            self._open, self._next = (path, group, rows), 0
        for (_, found), scored in self._open[2]:
            self._next = found + 1
            if found == row:
                return scored
        raise DataError(f"{path} changed while it was read: row group {group} has {self._next} rows now")
