"""Parquet files of logits: a column of ids, a list column of logits, and perhaps label, split, view and seed.

The ids stand in ``id``, ``ids`` or ``example_id``, the values in ``logits``, ``logprobs`` or ``probs``. One row group
is in memory at a time, so that rows of a view that stand together are read once.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.caches.importing.plain import Columns, Table, kind_of
from pipeline.caches.importing.source import Ints
from pipeline.errors import DataError

_NAMES = {
    "ids": ("id", "ids", "example_id"),
    "labels": ("label", "labels"),
    "splits": ("split",),
    "views": ("view",),
    "seeds": ("seed",),
}


class ParquetTable(Table):
    """The values of one file."""

    def __init__(self, path: Path, *, kind: str | None) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read as Parquet: {error}") from error
        schema = self._file.schema_arrow
        self.kind = kind_of(path, schema.names, kind)
        field = schema.field(self.kind).type
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if not any(is_list(field) for is_list in lists) or not pa.types.is_floating(field.value_type):
            raise DataError(f"{path}: {self.kind} should be a column of lists of floating numbers; found {field}")
        self.dtype = np.dtype(field.value_type.to_pandas_dtype())
        metadata = self._file.metadata
        self.rows = metadata.num_rows
        self._starts = np.cumsum([0, *(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))])
        self._group = lru_cache(maxsize=1)(self._read_group)
        self.classes = field.list_size if pa.types.is_fixed_size_list(field) else 0
        if not self.classes:
            filled = np.flatnonzero(np.diff(self._starts))
            self.classes = self._group(int(filled[0])).shape[1] if len(filled) else 0
        if not self.classes:
            raise DataError(f"{path} holds no rows of {self.kind}")
        self.columns = self._columns()

    def _columns(self) -> Columns:
        names = self._file.schema_arrow.names
        found: dict[str, Any] = {}
        for key, choices in _NAMES.items():
            there = [name for name in choices if name in names]
            if len(there) > 1:
                raise DataError(f"{self.path} should have one column of {key}; found {', '.join(there)}")
            if there:
                found[key] = self._column(there[0], text=key in ("ids", "splits"))
        return Columns(**found)

    def _column(self, name: str, *, text: bool) -> Any:
        try:
            column = self._file.read(columns=[name], use_threads=False)[name]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: column {name} cannot be read: {error}") from error
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        whole = pa.types.is_integer(kind)
        if column.null_count or not (whole or (text and (pa.types.is_string(kind) or pa.types.is_large_string(kind)))):
            wanted = "texts or whole numbers" if text else "whole numbers"
            found = f"{column.type}, {column.null_count} missing"
            raise DataError(f"{self.path}: {name} should hold {wanted}, in every row; found {found}")
        return [str(item) for item in column.to_pylist()] if text else column.to_numpy().astype(np.int64)

    def _read_group(self, group: int) -> npt.NDArray[Any]:
        """The values of a row group (n, C). Raises DataError when its lists are not equally long."""
        try:
            table = self._file.read_row_group(group, columns=[self.kind], use_threads=False).combine_chunks()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: row group {group} cannot be read: {error}") from error
        lists = table[self.kind].chunk(0)
        rows = len(lists)
        values = lists.flatten()
        if lists.null_count or values.null_count:
            raise DataError(f"{self.path}: {self.kind} holds missing values in row group {group}")
        if not pa.types.is_fixed_size_list(lists.type):
            lengths = np.diff(lists.offsets.to_numpy())
            wanted = self.classes or int(lengths[0])
            if (lengths != wanted).any():
                row = int(np.flatnonzero(lengths != wanted)[0])
                raise DataError(
                    f"{self.path}: {self.kind} should have {wanted} numbers in every row; found {lengths[row]} in row "
                    f"{self._starts[group] + row:,}"
                )
        return np.asarray(values.to_numpy(zero_copy_only=False), self.dtype).reshape(rows, -1)

    def take(self, rows: Ints) -> npt.NDArray[Any]:
        """See Table."""
        found = np.empty((len(rows), self.classes), self.dtype)
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for group in np.unique(groups).tolist():
            here = groups == group
            found[here] = self._group(group)[rows[here] - self._starts[group]]
        return found
