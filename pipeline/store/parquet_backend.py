"""Arrays as the columns of Parquet files, one file per part.

For people who would rather query soft labels than stream them: DuckDB, Polars and pyarrow read them as they are.
Vectors are fixed-size lists, so reading is slower than from zarr (docs/decisions/0004).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encodings import Arrays, ArraySpec
from pipeline.errors import CacheError
from pipeline.store import pages
from pipeline.store.backend import Backend
from pipeline.store.files import Files
from pipeline.store.layout import Part
from pipeline.store.parts import PartRecord
from pipeline.store.shards import check_out
from pipeline.store.tables import write_table

GROUP_BYTES = 8 * 1024 * 1024
"""Row groups hold about this much before compression: what a reader of a few rows has to decode."""


class ParquetBackend(Backend):
    """The arrays ``specs`` as columns of ``folder``/part-00000.parquet ..., beside their ``position``."""

    def __init__(self, folder: str, specs: Mapping[str, ArraySpec]) -> None:
        self.folder = folder
        self.specs = dict(specs)
        self.schema = pa.schema(
            [
                pa.field("position", pa.int64(), nullable=False),
                *(pa.field(name, _type(spec), nullable=False) for name, spec in self.specs.items()),
            ]
        )

    def static(self) -> dict[str, bytes]:
        return {}

    def paths(self, number: int) -> dict[str, str]:
        return dict.fromkeys(self.specs, f"{self.folder}/part-{number:05d}.parquet")

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {name: (spec.shape, spec.dtype) for name, spec in self.specs.items()}

    def encode(self, part: Part, arrays: Arrays) -> dict[str, bytes]:
        columns = [pa.array(np.arange(part.start, part.start + part.positions, dtype=np.int64))]
        for name, spec in self.specs.items():
            rows = np.ascontiguousarray(arrays[name])
            if rows.shape != (part.positions, *spec.shape) or rows.dtype != np.dtype(spec.dtype):
                raise ValueError(
                    f"{name} should be {(part.positions, *spec.shape)} {spec.dtype}; found {rows.shape} {rows.dtype}"
                )
            flat = pa.array(rows.reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(flat, type=_type(spec)) if spec.shape else flat)
        row_bytes = 8 + sum(spec.row_bytes for spec in self.specs.values())
        data = write_table(
            pa.Table.from_arrays(columns, schema=self.schema),
            row_group_size=max(1, GROUP_BYTES // row_bytes),
            zstd=("position", *(_leaf(name, spec) for name, spec in self.specs.items() if spec.codec == "zstd")),
            delta=("position",),
        )
        return {f"{self.folder}/part-{part.number:05d}.parquet": data}

    def read(
        self, files: Files, part: PartRecord, out: Arrays | None = None, names: tuple[str, ...] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        names = tuple(self.specs) if names is None else names
        self._check_room(files, part)
        result: dict[str, npt.NDArray[Any]] = {}
        for name in names:
            shape = (part.positions, *self.specs[name].shape)
            result[name] = np.empty(shape, self.specs[name].dtype) if out is None else out[name]
            check_out(result[name], shape, self.specs[name].dtype)
        for first, rows in self._groups(files, part, names):
            for name in names:
                result[name][first : first + len(rows[name])] = rows[name]
        return result

    def read_rows(
        self, files: Files, part: PartRecord, rows: npt.NDArray[np.int64], names: tuple[str, ...] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        names = tuple(self.specs) if names is None else names
        self._check_room(files, part)
        result = {n: np.empty((len(rows), *self.specs[n].shape), self.specs[n].dtype) for n in names}
        for first, held in self._groups(files, part, names, rows):
            count = len(held[names[0]])
            here = (rows >= first) & (rows < first + count)
            for name in names:
                result[name][here] = held[name][rows[here] - first]
        return result

    def _check_room(self, files: Files, part: PartRecord) -> None:
        """Refuse a description that asks for more memory than the file could ever fill."""
        path = f"{self.folder}/part-{part.number:05d}.parquet"
        size = files.check_size(path, part.files[path].size)
        asked = part.positions * sum(spec.row_bytes for spec in self.specs.values())
        if asked > size * 40_000:  # zstd: a run of 128 KB takes 4 bytes at the least
            raise files.corrupt(path, f"{size:,} bytes cannot hold {part.positions:,} rows that take {asked:,}")

    def _groups(
        self, files: Files, part: PartRecord, names: tuple[str, ...], rows: npt.NDArray[np.int64] | None = None
    ) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
        """(first row, arrays) of each row group, or of those that hold some of ``rows``."""
        path = f"{self.folder}/part-{part.number:05d}.parquet"
        try:
            with files.whole(path) as file:
                values = part.positions * (1 + sum(int(np.prod(spec.shape)) for spec in self.specs.values()))
                asked = part.positions * (8 + sum(spec.row_bytes for spec in self.specs.values()))
                pages.check(file, part.files[path].size, (1 << 20) + 2 * asked, 4096 + values)
                reader = pq.ParquetFile(_seekable(file), page_checksum_verification=True)
                if not reader.schema_arrow.equals(self.schema):
                    raise files.corrupt(path, "its columns are not those of the encoding in the manifest")
                counts = [reader.metadata.row_group(g).num_rows for g in range(reader.num_row_groups)]
                if sum(counts) != part.positions:
                    raise files.corrupt(path, f"it should have {part.positions:,} rows and has {sum(counts):,}")
                first = 0
                for group, count in enumerate(counts):
                    if rows is None or ((rows >= first) & (rows < first + count)).any():
                        table = reader.read_row_group(group, columns=["position", *names], use_threads=False)
                        start = part.start + first
                        if table.num_rows != count or not np.array_equal(
                            table["position"].to_numpy(), np.arange(start, start + count)
                        ):
                            raise files.corrupt(path, f"it should hold the positions from {part.start:,} on")
                        yield first, {n: _rows(table[n], self.specs[n], files, path) for n in names}
                    first += count
        except CacheError:
            raise
        except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
            raise files.unreadable(path, error) from error


def _type(spec: ArraySpec) -> Any:
    value = pa.from_numpy_dtype(np.dtype(spec.dtype))
    if not spec.shape:
        return value
    return pa.list_(pa.field("element", value, nullable=False), int(np.prod(spec.shape)))


def _leaf(name: str, spec: ArraySpec) -> str:
    return f"{name}.list.element" if spec.shape else name


def _rows(column: Any, spec: ArraySpec, files: Files, path: str) -> npt.NDArray[Any]:
    array = column.combine_chunks()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    flat = array.flatten() if spec.shape else array
    if array.null_count or flat.null_count or len(flat) != len(array) * int(np.prod(spec.shape)):
        raise files.corrupt(path, "it holds missing values")
    values: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(len(array), *spec.shape)
    return values


def _seekable(file: Any) -> Any:
    return file if isinstance(file, io.BytesIO) else pa.PythonFile(file, mode="r")
