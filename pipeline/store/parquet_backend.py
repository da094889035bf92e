"""Arrays as the columns of Parquet files, one file per part.

For people who would rather query soft labels than stream them: DuckDB, Polars and pyarrow read them as they are.
Vectors are fixed-size lists, kept classes lists as long as there are, so reading is slower than from zarr
(docs/decisions/0004).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encodings import KEPT, Arrays, ArraySpec
from pipeline.errors import CacheError
from pipeline.store import pages
from pipeline.store.backend import Backend
from pipeline.store.files import Files
from pipeline.store.layout import Part
from pipeline.store.parts import PartRecord
from pipeline.store.shards import check_out
from pipeline.store.spans import bounds_of, expand
from pipeline.store.tables import write_table

GROUP_BYTES = 8 * 1024 * 1024
"""Row groups hold about this much before compression: what a reader of a few rows has to decode."""

Ints = npt.NDArray[np.int64]


class ParquetBackend(Backend):
    """The arrays ``specs`` as columns of ``folder``/part-00000.parquet ..., beside their ``position``."""

    def __init__(self, folder: str, specs: Mapping[str, ArraySpec]) -> None:
        self.folder = folder
        self.specs = dict(specs)
        self.kept = frozenset(name for name, spec in self.specs.items() if spec.axis == KEPT)
        if any(self.specs[name].shape for name in self.kept):
            raise ValueError("a kept class has one number in each array")
        self.schema = pa.schema(
            [
                pa.field("position", pa.int64(), nullable=False),
                *(pa.field(name, _type(spec), nullable=False) for name, spec in self.specs.items()),
            ]
        )

    def static(self) -> dict[str, bytes]:
        return {}

    def paths(self, number: int) -> dict[str, str]:
        return dict.fromkeys(self.specs, self._path(number))

    def _path(self, number: int) -> str:
        return f"{self.folder}/part-{number:05d}.parquet"

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {name: (spec.shape, spec.dtype) for name, spec in self.specs.items()}

    def _rows(self, part: Part, name: str, kept: int) -> int:
        return kept if name in self.kept else part.positions

    def encode(self, part: Part, arrays: Arrays) -> dict[str, bytes]:
        columns = [pa.array(np.arange(part.start, part.start + part.positions, dtype=np.int64))]
        bounds = bounds_of(arrays[KEPT]) if self.kept else np.zeros(1, np.int64)
        kept = int(bounds[-1])
        for name, spec in self.specs.items():
            rows = np.ascontiguousarray(arrays[name])
            wanted = (self._rows(part, name, kept), *spec.shape)
            if rows.shape != wanted or rows.dtype != np.dtype(spec.dtype):
                raise ValueError(f"{name} should be {wanted} {spec.dtype}; found {rows.shape} {rows.dtype}")
            flat = pa.array(rows.reshape(-1))
            if name in self.kept:
                columns.append(pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), flat, type=_type(spec)))
            else:
                columns.append(pa.FixedSizeListArray.from_arrays(flat, type=_type(spec)) if spec.shape else flat)
        row_bytes = 8 + self._bytes(part.positions, kept) // part.positions
        data = write_table(
            pa.Table.from_arrays(columns, schema=self.schema),
            row_group_size=max(1, GROUP_BYTES // row_bytes),
            zstd=("position", *(_leaf(name, spec) for name, spec in self.specs.items() if spec.codec == "zstd")),
            delta=("position",),
            lists=tuple(self.kept),
        )
        return {self._path(part.number): data}

    def _bytes(self, positions: int, kept: int, *, plain: bool = False) -> int:
        """Bytes of all arrays of so many positions and kept classes; ``plain``: as Parquet's pages hold them."""
        each = {n: spec.row_bytes * (_widened(spec.dtype) if plain else 1) for n, spec in self.specs.items()}
        return sum(size * (kept if name in self.kept else positions) for name, size in each.items())

    def read(
        self, files: Files, part: PartRecord, out: Arrays | None = None, names: tuple[str, ...] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        names = tuple(self.specs) if names is None else names
        self._check_room(files, part)
        result: dict[str, npt.NDArray[Any]] = {}
        for name in names:
            shape = (self._rows(part, name, part.kept), *self.specs[name].shape)
            result[name] = np.empty(shape, self.specs[name].dtype) if out is None else out[name]
            check_out(result[name], shape, self.specs[name].dtype)
        place = dict.fromkeys(names, 0)
        for _, rows in self._groups(files, part, names):
            for name in names:
                end = place[name] + len(rows[name])
                if end > len(result[name]):
                    raise files.corrupt(self._path(part.number), f"it should keep {part.kept:,} classes in all")
                result[name][place[name] : end] = rows[name]
                place[name] = end
        if any(place[name] != len(result[name]) for name in names):
            raise files.corrupt(self._path(part.number), f"it should keep {part.kept:,} classes in all")
        return result

    def read_rows(
        self,
        files: Files,
        part: PartRecord,
        rows: Ints,
        names: tuple[str, ...] | None = None,
        bounds: Ints | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        names = tuple(self.specs) if names is None else names
        self._check_room(files, part)
        counts = np.zeros(len(rows), np.int64) if bounds is None else bounds[rows + 1] - bounds[rows]
        begin = bounds_of(counts)
        lengths = {name: int(begin[-1]) if name in self.kept else len(rows) for name in names}
        result = {n: np.empty((lengths[n], *self.specs[n].shape), self.specs[n].dtype) for n in names}
        for first, held in self._groups(files, part, names, rows):
            count = held.pop("position")
            here = np.flatnonzero((rows >= first) & (rows < first + len(count)))
            for name in names:
                if name not in self.kept:
                    result[name][here] = held[name][rows[here] - first]
                elif bounds is not None:
                    if len(held[name]) != bounds[first + len(count)] - bounds[first]:
                        raise files.corrupt(self._path(part.number), "its lists are not as long as it says")
                    inner = expand(bounds[rows[here]] - bounds[first], counts[here])
                    result[name][expand(begin[here], counts[here])] = held[name][inner]
        return result

    def _check_room(self, files: Files, part: PartRecord) -> None:
        """Refuse a description that asks for more memory than the file could ever fill."""
        path = self._path(part.number)
        size = files.check_size(path, part.files[path].size)
        asked = self._bytes(part.positions, part.kept)
        if asked > size * 40_000:  # zstd: a run of 128 KB takes 4 bytes at the least
            raise files.corrupt(path, f"{size:,} bytes cannot hold {part.positions:,} rows that take {asked:,}")

    def _groups(
        self, files: Files, part: PartRecord, names: tuple[str, ...], rows: Ints | None = None
    ) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
        """(first row, arrays with ``position``) of each row group, or of those that hold some of ``rows``."""
        path = self._path(part.number)
        try:
            with files.whole(path) as file:
                values = part.positions + sum(
                    self._rows(part, name, part.kept) * int(np.prod(spec.shape)) for name, spec in self.specs.items()
                )
                asked = 8 * part.positions + self._bytes(part.positions, part.kept, plain=True)
                levels = len(self.kept) * part.kept
                pages.check(file, part.files[path].size, (1 << 20) + 2 * asked + levels, 4096 + values)
                reader = pq.ParquetFile(_seekable(file), page_checksum_verification=True)
                if not reader.schema_arrow.equals(self.schema):
                    raise files.corrupt(path, "its columns are not those of the encoding in the manifest")
                counts = [reader.metadata.row_group(g).num_rows for g in range(reader.num_row_groups)]
                if sum(counts) != part.positions:
                    raise files.corrupt(path, f"it should have {part.positions:,} rows and has {sum(counts):,}")
                first = 0
                for group, count in enumerate(counts):
                    if rows is None or ((rows >= first) & (rows < first + count)).any():
                        yield first, self._group(reader, group, part.start + first, count, names, files, path)
                    first += count
        except CacheError:
            raise
        except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
            raise files.unreadable(path, error) from error

    def _group(
        self, reader: Any, group: int, start: int, count: int, names: tuple[str, ...], files: Files, path: str
    ) -> dict[str, npt.NDArray[Any]]:
        """The arrays of one row group, of the positions from ``start`` on."""
        wanted = dict.fromkeys(("position", *((KEPT,) if self.kept & set(names) else ()), *names))
        table = reader.read_row_group(group, columns=list(wanted), use_threads=False)
        position = table["position"].to_numpy()
        if table.num_rows != count or not np.array_equal(position, np.arange(start, start + count)):
            raise files.corrupt(path, f"it should hold the positions from {start:,} on")
        found = {n: _rows(table[n], self.specs[n], files, path) for n in wanted if n in self.specs}
        for name in self.kept & set(names):
            if not np.array_equal(_list_lengths(table[name]), found[KEPT]):
                raise files.corrupt(path, f"the lists of {name} are not as long as {KEPT} says")
        return {"position": position, **found}


def _type(spec: ArraySpec) -> Any:
    value = pa.from_numpy_dtype(np.dtype(spec.dtype))
    element = pa.field("element", value, nullable=False)
    if spec.axis == KEPT:
        return pa.list_(element)
    return pa.list_(element, int(np.prod(spec.shape))) if spec.shape else value


def _leaf(name: str, spec: ArraySpec) -> str:
    return f"{name}.list.element" if spec.shape or spec.axis == KEPT else name


def _widened(dtype: str) -> int:
    """How many times its width a number takes in a plain page: Parquet has no integers of less than 32 bits."""
    plain = np.dtype(dtype)
    return max(1, 4 // plain.itemsize) if plain.kind in "iu" else 1


def _rows(column: Any, spec: ArraySpec, files: Files, path: str) -> npt.NDArray[Any]:
    array = _combined(column)
    listed = bool(spec.shape) or spec.axis == KEPT
    flat = array.flatten() if listed else array
    even = spec.axis == KEPT or len(flat) == len(array) * int(np.prod(spec.shape))
    if array.null_count or flat.null_count or not even:
        raise files.corrupt(path, "it holds missing values")
    values: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    return values if spec.axis == KEPT else values.reshape(len(array), *spec.shape)


def _combined(column: Any) -> Any:
    array = column.combine_chunks()
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _list_lengths(column: Any) -> npt.NDArray[Any]:
    offsets: npt.NDArray[Any] = _combined(column).offsets.to_numpy()
    return np.diff(offsets)


def _seekable(file: Any) -> Any:
    return file if isinstance(file, io.BytesIO) else pa.PythonFile(file, mode="r")
