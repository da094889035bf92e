"""``arrays:file.npz``: examples in one NumPy archive.

Keys: ``x`` (N, ...), and optionally ``y`` (N,) integer labels (-1 for none), ``ids`` (N,) texts, ``split`` (N,) texts
(train, validation, test) and ``classes`` (C,) names. Without ``ids`` an example is known by its row number, so rows
must keep their place; without ``split``, splits follow from the ids. An archive of ``numpy.savez`` is memory-mapped;
one of ``numpy.savez_compressed`` is read into memory.
"""

from __future__ import annotations

import difflib
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.datasets.base import Dataset, split_index
from pipeline.errors import DataError
from pipeline.identity import SPLITS

KEYS = ("x", "y", "ids", "split", "classes")
_SYNONYMS = {"label": "y", "labels": "y", "target": "y", "targets": "y", "names": "classes", "class_names": "classes"}
_LOCAL_HEADER = 30
"""Bytes of a zip entry's fixed header; the lengths of its name and extra field are its last four."""


class Arrays(Dataset):
    """Rows of ``x`` as float32: floats and other numbers as they are, uint8 divided by 255."""

    def __init__(self, path: str, *, classes: int | None = None) -> None:
        """``classes``: their number, where the archive names none and has no labels, or not of every class."""
        self._path = Path(path).expanduser().absolute()
        self._x: npt.NDArray[Any] | None = None
        name = f"arrays:{path}"
        held = _read_small(self._path, name)
        x = self._array()
        if x.ndim < 2 or x.dtype.kind not in "fiub":
            raise DataError(f"{name}: x should be an array of numbers (N, ...), found {x.dtype} {x.shape}")
        for key in ("y", "ids", "split"):
            if key in held and held[key].shape != (len(x),):
                raise DataError(f"{name}: {key} should have shape ({len(x)},) like x, found {held[key].shape}")
        self._scaled = x.dtype == np.uint8
        super().__init__(
            name=name,
            classes=_class_names(name, held, classes),
            ids=_texts(name, "ids", held["ids"]) if "ids" in held else [str(row) for row in range(len(x))],
            labels=held.get("y"),
            splits=_splits(name, held["split"]) if "split" in held else None,
            input_shape=x.shape[1:],
            preprocessing="uint8 divided by 255" if self._scaled else "values as they are, in float32",
        )

    def _array(self) -> npt.NDArray[Any]:
        if self._x is None:
            self._x = _open_x(self._path)
        return self._x

    def __getstate__(self) -> dict[str, Any]:
        # A loader worker that is spawned opens the file again instead of receiving a copy of it.
        return self.__dict__ | {"_x": None}

    def load(self, row: int) -> Tensor:
        """(...) float32."""
        x = torch.from_numpy(self._array()[row].astype(np.float32))
        return x.div_(255) if self._scaled else x

    def prepare(self, x: Tensor) -> Tensor:
        """Nothing more to do."""
        return x

    def read(self, row: int) -> bytes:
        """The row's type, shape and bytes."""
        array = np.ascontiguousarray(self._array()[row])
        return f"{array.dtype.str}{array.shape}\n".encode() + array.tobytes()


def _read_small(path: Path, name: str) -> dict[str, npt.NDArray[Any]]:
    try:
        # Opened here: np.load leaves a file of its own open when it raises.
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{name} should be an .npz archive with x and y; found a single array")
            if "x" not in archive.files:
                raise DataError(
                    f"{name} should hold x, and may hold {', '.join(KEYS[1:])}; found {', '.join(archive.files)}"
                )
            for key in archive.files:
                meant = difflib.get_close_matches(_SYNONYMS.get(key.lower(), key.lower()), KEYS, n=1)
                if key not in KEYS and meant and meant[0] not in archive.files:
                    raise DataError(f"{name} holds {key!r}, which is not read: call it {meant[0]!r}")
            return {key: archive[key] for key in KEYS[1:] if key in archive.files}
    except FileNotFoundError:
        raise DataError(f"{name}: there is no file {path}") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name} cannot be read: {error}. It should be an archive of numpy.savez, without objects in it"
        ) from error


def _open_x(path: Path) -> npt.NDArray[Any]:
    """``x`` as a memory map where it is stored uncompressed, else in memory."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            entry = archive.getinfo("x.npy")
            if entry.compress_type == zipfile.ZIP_STORED:
                file.seek(entry.header_offset)
                header = file.read(_LOCAL_HEADER)
                file.seek(sum(struct.unpack("<HH", header[-4:])), 1)
                version = np.lib.format.read_magic(file)
                readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                if version in readers:
                    shape, fortran, dtype = readers[version](file)
                    size = int(np.prod(shape)) * dtype.itemsize
                    if not dtype.hasobject and 0 < size <= path.stat().st_size - file.tell():
                        return np.asarray(np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C"))
        with open(path, "rb") as file:
            return np.asarray(np.load(file, allow_pickle=False)["x"])
    except (OSError, EOFError, ValueError, KeyError, struct.error, zipfile.BadZipFile) as error:
        raise DataError(f"arrays:{path}: x cannot be read: {error}") from error


def _texts(name: str, key: str, array: npt.NDArray[Any]) -> list[str]:
    if array.dtype.kind not in "Uiu":
        raise DataError(f"{name}: {key} should be texts (a NumPy array of str), found {array.dtype}")
    return [str(item) for item in array.tolist()]


def _splits(name: str, array: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    indices = {text: split_index(text) for text in set(_texts(name, "split", array))}
    unknown = sorted(text for text, index in indices.items() if index is None)
    if unknown:
        raise DataError(f"{name}: split should be one of {', '.join(SPLITS)}; found {', '.join(unknown[:3])}")
    return np.array([indices[text] for text in array.tolist()], np.int8)


def _class_names(name: str, held: dict[str, npt.NDArray[Any]], count: int | None) -> list[str]:
    if "classes" in held:
        return _texts(name, "classes", np.atleast_1d(held["classes"]))
    if count is None and ("y" not in held or not held["y"].size):
        raise DataError(f"{name} has no labels and no class names: add an array 'classes', or --data-args classes=10")
    if count is None and held["y"].dtype.kind not in "iu":
        raise DataError(f"{name}: y should be integer labels, found {held['y'].dtype}")
    number = int(held["y"].max()) + 1 if count is None else count
    return [str(n) for n in range(number)]
