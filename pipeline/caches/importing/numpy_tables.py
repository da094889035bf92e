"""``.npy`` and ``.npz`` files of logits, mapped into memory; compressed ones are unpacked into an unnamed file first.

An ``.npz`` holds ``logits``, ``logprobs`` or ``probs`` (N, C), ``ids`` (N,), and may hold ``labels`` (N,), ``split``
(N,) and ``class_names`` (C,). An ``.npy`` is the values (N, C) alone. Objects (pickles) are refused.
"""

from __future__ import annotations

import math
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pipeline.caches.importing.full import KINDS
from pipeline.caches.importing.plain import ROW, Columns, Table, kind_of
from pipeline.caches.importing.source import Ints
from pipeline.errors import DataError
from pipeline.workspace import room_for

_LOCAL_HEADER = 30
"""Bytes of a zip member's fixed header; the lengths of its name and extra field are its last four."""

_NAMES = {"label": "labels", "y": "labels", "splits": "split", "classes": "class_names"}
_FAILURES = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)


class NumpyTable(Table):
    """The values of one file."""

    def __init__(self, path: Path, *, kind: str | None, aside: Path) -> None:
        """``aside``: a folder with room for what has to be unpacked."""
        self.path = path
        try:
            if path.suffix == ".npz":
                self.kind, self.columns, self._values = _npz(path, kind, aside)
            else:
                self.kind, self.columns = kind or _kind_in_name(path), Columns()
                with open(path, "rb") as file:
                    self._values = _mapped(file, path.stat().st_size)
        except _FAILURES as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} cannot be read: {error}. It should hold plain arrays, no objects") from error
        if self._values.ndim != 2 or self._values.dtype.kind != "f" or not self._values.shape[1]:
            found = f"{self._values.dtype} {self._values.shape}"
            raise DataError(f"{path}: {self.kind} should be floating numbers (N, C), a row an example; found {found}")
        self.rows, self.classes = self._values.shape
        self.dtype = self._values.dtype.newbyteorder("=")
        _check(self.path, self.columns, self.rows, self.classes)

    def take(self, rows: Ints) -> npt.NDArray[Any]:
        """See Table."""
        return np.asarray(self._values[rows], self.dtype)


def _check(path: Path, columns: Columns, rows: int, classes: int) -> None:
    for name in ("ids", "labels", "splits"):
        column = getattr(columns, name)
        if column is not None and len(column) != rows:
            raise DataError(f"{path}: {name} should have {rows:,} items, one a row; found {len(column):,}")
    if columns.class_names and len(columns.class_names) != classes:
        raise DataError(f"{path}: class_names should name {classes:,} classes; found {len(columns.class_names):,}")


def _kind_in_name(path: Path) -> str:
    words = [word for word in re.split(r"[^a-z]+", path.stem.lower()) if word in KINDS]
    if len(words) != 1:
        raise DataError(f"{path} does not say what its numbers are: give --kind {', '.join(KINDS)}")
    return words[0]


def _npz(path: Path, kind: str | None, aside: Path) -> tuple[str, Columns, npt.NDArray[Any]]:
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        members = {_NAMES.get(name, name): name for i in archive.namelist() if (name := i.removesuffix(".npy"))}
        found = kind_of(path, list(members), kind)

        def column(name: str, of: Callable[[npt.NDArray[Any]], Any]) -> Any:
            if name not in members:
                return None
            with archive.open(f"{members[name]}.npy") as member:
                return of(np.lib.format.read_array(member, allow_pickle=False))

        columns = Columns(
            ids=column("ids", texts),
            labels=column("labels", lambda array: whole_numbers(path, "labels", array)),
            splits=column("split", texts),
            class_names=tuple(column("class_names", texts) or ()),
        )
        info = archive.getinfo(f"{members[found]}.npy")
        if info.compress_type == zipfile.ZIP_STORED:
            file.seek(info.header_offset + _LOCAL_HEADER - 4)
            lengths = np.frombuffer(file.read(4), "<u2").astype(int)
            file.seek(int(lengths.sum()), 1)
            return found, columns, _mapped(file, file.tell() + info.file_size)
        aside.mkdir(parents=True, exist_ok=True)
        # The map keeps the file for as long as it is needed.
        with tempfile.TemporaryFile(dir=aside) as unpacked, archive.open(info) as member:
            with room_for(aside, info.file_size):
                shutil.copyfileobj(member, unpacked, 1 << 20)
                unpacked.flush()
            unpacked.seek(0)
            return found, columns, _mapped(unpacked, info.file_size)


def _mapped(file: IO[bytes], end: int) -> npt.NDArray[Any]:
    """The array whose ``.npy`` form begins where ``file`` stands and ends before ``end``."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its array has version {version}")
    shape, fortran, dtype = readers[version](file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or size > end - file.tell():
        raise ValueError("it holds objects" if dtype.hasobject else f"its {shape} array is cut short")
    if not size:
        return np.empty(shape, dtype)
    return np.asarray(np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C"))


def texts(array: npt.NDArray[Any]) -> list[str]:
    """A one-dimensional array of texts or whole numbers as texts. Raises ValueError for others."""
    array = np.atleast_1d(array)
    if array.ndim != 1 or array.dtype.kind not in "UiuS":
        raise ValueError(f"ids and names should be texts, found {array.dtype} {array.shape}")
    return [item.decode() if isinstance(item, bytes) else str(item) for item in array.tolist()]


def whole_numbers(path: Path, name: str, array: npt.NDArray[Any]) -> Ints:
    """A one-dimensional array of whole numbers. Raises DataError for others."""
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"{path}: {name} should be whole numbers (N,), found {array.dtype} {array.shape}")
    return array.astype(np.int64)


def read_ids(text: str, rows: int) -> Sequence[str]:
    """The ids that ``--ids`` means: a file, or ``row``, of ``rows`` rows."""
    if text == ROW:
        return [str(row) for row in range(rows)]
    path = Path(text)
    try:
        if path.suffix == ".npy":
            with open(path, "rb") as file:
                return texts(np.load(file, allow_pickle=False))
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"--ids {text} cannot be read: {error}. It should hold an id a line, or be an .npy") from error
    ids = [line.strip() for line in lines]
    if "" in ids:
        raise DataError(f"--ids {text} should hold an id a line; line {ids.index('') + 1} is empty")
    return ids
