"""Reading the arrays of a cache, labels and features: a part at a time, or some rows.

A cache may be read from several threads at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encodings import Arrays
from pipeline.errors import CacheCorruptError, ConfigError, EncodingError
from pipeline.softlabels import Sampled, SoftLabels, TopK
from pipeline.store.arrays import Rows, StoredArrays
from pipeline.store.backend import Backend
from pipeline.store.committed import Committed
from pipeline.store.layout import Part


class Cache(Committed):
    """One committed cache. Made by ``open_cache``.

    - ``address``, ``manifest``, ``encoding``, ``classes``, ``class_names``;
    - ``parts``: a record of each part: where its entries lie, its files, its statistics.
    """

    def allocate(self, positions: int, kept: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Empty arrays that can take ``positions`` positions, which keep ``kept`` classes in all where that varies.

        ``read_parts`` fills them again and again. Raises CacheCorruptError when the files could not fill a part of
        what that takes.
        """
        return self.stored_labels().allocate(positions, kept)

    def read_part(self, part: Part | int, out: Arrays | None = None) -> dict[str, npt.NDArray[Any]]:
        """The stored arrays of a part, ``part.positions`` rows each, into ``out`` when given.

        Arrays of kept classes have ``PartRecord.kept`` rows. Raises CacheIncompleteError when a file is missing,
        CacheCorruptError when one is not what was committed.
        """
        return self.stored_labels().read_part(self._record(part), out)

    def read_parts(self, parts: Sequence[Part | int], out: Arrays | None = None) -> dict[str, npt.NDArray[Any]]:
        """The stored arrays of several parts, one after the other, read straight into their places.

        ``out`` may have more rows than needed; views of its first rows come back. Raises as ``read_part`` does.
        """
        return self.stored_labels().read_parts([self._record(part) for part in parts], out)

    def read_rows(self, split: str, view: int, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """The stored arrays of some entries, ``rows`` (n,) within their split and view, in any order.

        For spot checks and evaluation: only the chunks that hold them are read. Entries of several positions come
        one after the other. Raises IndexError for a row out of range, and as ``read_part`` does.
        """
        return self.stored_labels().read_rows(self.parts_of(split, view), rows)

    def decode(self, arrays: Arrays) -> SoftLabels:
        """The soft labels that stored arrays hold, as numpy; their ``logits`` are float32.

        Raises CacheCorruptError for ids that are none of the classes: whoever gathers by them would leave the row.
        """
        again = "Fetch the cache again, or dump again"
        try:
            soft = self.encoding.decode(arrays, self.classes)
        except EncodingError as error:
            raise CacheCorruptError(f"{self.address}: {error}. {again}") from error
        if isinstance(soft, TopK):  # ids ascend, being sums of unsigned numbers: the last of each row is the largest
            ids = soft.ids[:, -1]
        else:
            ids = soft.ids if isinstance(soft, Sampled) else np.empty(0, np.int64)
        for extreme in (int(ids.min()), int(ids.max())) if len(ids) else ():
            if not 0 <= extreme < self.classes:
                what = f"{self.address} holds an id {extreme}; its ids should lie below {self.classes}"
                raise CacheCorruptError(f"{what}. {again}")
        return soft

    def stored_features(self, names: Sequence[str]) -> StoredArrays:
        """The features ``names`` as they are stored, (positions, ...) float16 each: parts of them, or some rows.

        Raises ConfigError for names that are not there.
        """
        unknown = [name for name in names if name not in self.manifest.features]
        if unknown:
            there = ", ".join(self.feature_names) or "none"
            raise ConfigError(f"{self.address} has no feature {', '.join(map(repr, unknown))}; it has {there}")
        return self._stored(self._features, names)

    def read_feature(self, name: str, part: Part | int) -> npt.NDArray[np.float16]:
        """A feature (positions, ...) of one part. Raises ConfigError for a name that is not there."""
        return self.stored_features([name]).read_part(self._record(part))[name]

    def read_feature_rows(self, name: str, split: str, view: int, rows: Rows) -> npt.NDArray[np.float16]:
        """A feature of some entries, as ``read_rows`` reads labels."""
        return self.stored_features([name]).read_rows(self.parts_of(split, view), rows)[name]

    def stored_labels(self) -> StoredArrays:
        """The labels as they are stored."""
        return self._stored(self._labels, self._labels.shapes())

    def _stored(self, backend: Backend, names: Iterable[str]) -> StoredArrays:
        return StoredArrays(self.files, backend, self.manifest.layout, self.parts, tuple(names), self.spans)
