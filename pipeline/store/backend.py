"""The contract of a backend: how the arrays of a part become files, and come back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encodings import Arrays
from pipeline.store.files import Files
from pipeline.store.layout import Part
from pipeline.store.parts import PartRecord


class Backend(ABC):
    """Some named arrays over the positions of a cache, cut into parts.

    Those named in ``kept`` have a row for each kept class instead, the classes of a position one after another; the
    array ``encodings.KEPT`` counts them.
    """

    kept: frozenset[str] = frozenset()

    @abstractmethod
    def static(self) -> dict[str, bytes]:
        """The files that belong to no part, by path."""

    @abstractmethod
    def paths(self, number: int) -> dict[str, str]:
        """Array name -> path of the file that holds part ``number`` of it. Several arrays may share a file."""

    @abstractmethod
    def encode(self, part: Part, arrays: Arrays) -> dict[str, bytes]:
        """The files of one part by path; the same bytes for the same arrays."""

    @abstractmethod
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Array name -> (shape after the first axis, dtype)."""

    def seals(self, files: Files, part: Part, sizes: Mapping[str, int], kept: int = 0) -> dict[str, int]:
        """What tells a part's files from sound files of another part, by path; none where they say it themselves.

        ``kept``: classes that the part keeps in all.
        """
        return {}

    @abstractmethod
    def read(
        self, files: Files, part: PartRecord, out: Arrays | None = None, names: tuple[str, ...] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """All positions of a part, of all arrays or of ``names``, into the arrays of ``out`` if given.

        Raises CacheIncompleteError for a missing file, CacheCorruptError for one that is not what was committed.
        """

    @abstractmethod
    def read_rows(
        self,
        files: Files,
        part: PartRecord,
        rows: npt.NDArray[np.int64],
        names: tuple[str, ...] | None = None,
        bounds: npt.NDArray[np.int64] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Some positions of a part, counted from its first, in any order.

        ``bounds`` (positions + 1,), which arrays of kept classes take: where those of each position begin in the part,
        and where the last ones end. Those of all ``rows`` come back one after another.
        """
