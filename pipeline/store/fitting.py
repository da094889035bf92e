"""What a writer is given, held to the layout: the backend that takes it, the rows of each array, what is missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.encodings import KEPT, Arrays, Encoding
from pipeline.store.backend import Backend
from pipeline.store.index import IndexRows
from pipeline.store.layout import Layout, Part
from pipeline.store.manifest import STORES
from pipeline.store.parquet_backend import ParquetBackend
from pipeline.store.zarr_backend import ZarrBackend


def label_backend(store: str, encoding: Encoding, classes: int, layout: Layout) -> Backend:
    """The backend that ``store`` names, for the arrays of ``encoding``."""
    specs = encoding.specs(classes)
    if store == "zarr":
        return ZarrBackend.create("labels.zarr", specs, len(layout.parts), layout.capacity)
    if store == "parquet":
        return ParquetBackend("labels", specs)
    raise ValueError(f"the store should be {' or '.join(STORES)}; found {store!r}")


def check_rows(what: str, part: Part, backend: Backend, arrays: Arrays) -> int:
    """How many classes ``arrays`` keep in all, 0 where each position keeps as many.

    Raises ValueError when they are not those of ``backend``, or have not the rows of ``part``.
    """
    if set(arrays) != set(backend.shapes()):
        raise ValueError(f"the {what} should be {sorted(backend.shapes())}; found {sorted(arrays)}")
    kept = int(arrays[KEPT].sum(dtype=np.int64)) if backend.kept else 0
    for name, rows in arrays.items():
        wanted = kept if name in backend.kept else part.positions
        if len(rows) != wanted:
            raise ValueError(f"{name} should have {wanted} rows, found {len(rows)}")
    return kept


def check_lengths(layout: Layout, index: IndexRows) -> None:
    """Raise ValueError when the index does not say how long ragged entries are, or says so wrongly of others."""
    if index.length is None:
        if layout.is_ragged:
            raise ValueError("the entries of this layout are ragged: IndexRows needs the length of each")
    elif not layout.is_ragged and (np.asarray(index.length) != layout.length).any():
        raise ValueError(f"each entry of this layout has {layout.length} positions; found {index.length}")


def ranges(numbers: Sequence[int], most: int = 8) -> str:
    """Ascending numbers as ``FIRST:END`` ranges, as ``--parts`` takes them.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0:3, 5:6, 7:9'
    """
    starts = [n for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] != n - 1]
    ends = [n + 1 for i, n in enumerate(numbers) if i == len(numbers) - 1 or numbers[i + 1] != n + 1]
    found = [f"{start}:{end}" for start, end in zip(starts, ends, strict=True)]
    return ", ".join(found[:most]) + (f" and {len(found) - most} more ranges" if len(found) > most else "")
