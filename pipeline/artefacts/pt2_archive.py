"""What can be read of a ``.pt2`` without loading it: its members' names, JSON texts and raw weights.

Only the standard library and numpy look into the file; nothing is unpickled, no expression is evaluated
(docs/decisions/0012-artefacts.md says why that matters).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ModelError, first_line

EXTRA = "softlabels.json"
"""The member, under ``extra/``, that holds this project's metadata."""

_TEXT_LIMIT = 100_000_000

# torch._export.serde.schema.ScalarType: how many bytes, and how numpy reads them. bfloat16 is read as its bits.
_TYPES: dict[int, npt.DTypeLike] = {
    1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f2", 7: "<f4", 8: "<f8", 12: "?", 13: "<u2",
}  # fmt: skip
_BFLOAT16 = 13


@dataclass(frozen=True)
class Stored:
    """One tensor of an archive: its shape, its raw values (bfloat16 as bits without the sign), is it a parameter."""

    name: str
    shape: tuple[int, ...]
    values: npt.NDArray[Any]
    parameter: bool


class Archive:
    """The members of an archive that torch.export.save wrote."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self._file = path, file
        self.names = {name.partition("/")[2]: name for name in file.namelist()}

    def read(self, name: str, limit: int | None = None) -> bytes:
        """One member's bytes. Raises ModelError when it is missing, damaged or larger than ``limit``."""
        if name not in self.names:
            raise ModelError(f"{self.path} should be a .pt2 of torch.export.save; it holds no {name}")
        info = self._file.getinfo(self.names[name])
        if info.compress_type != zipfile.ZIP_STORED or (limit is not None and info.file_size > limit):
            raise ModelError(f"{self.path} is no sound .pt2: its {name} is compressed or {info.file_size:,} bytes long")
        return self._file.read(info)

    def json(self, name: str) -> Any:
        """One member's JSON value."""
        return json.loads(self.read(name, _TEXT_LIMIT))


@contextmanager
def reading(path: Path) -> Iterator[Archive]:
    """The archive at ``path``. Raises ModelError when it is none, or when what is read of it is damaged."""
    try:
        with zipfile.ZipFile(path) as file:
            yield Archive(path, file)
    except ModelError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        NotImplementedError,
        RecursionError,
        zipfile.BadZipFile,
    ) as error:
        raise ModelError(f"{path} should be a .pt2 of torch.export.save; it cannot be read: {first_line(error)}") from (
            error
        )


def extra_of(path: Path) -> dict[str, Any]:
    """This project's metadata in a ``.pt2``, {} for files of others."""
    with reading(path) as archive:
        if f"extra/{EXTRA}" not in archive.names:
            return {}
        found = archive.json(f"extra/{EXTRA}")
        return found if isinstance(found, dict) else {}


def weights_of(path: Path) -> list[Stored]:
    """Every tensor that a ``.pt2`` stores, tied ones once. Raises ModelError for pickled ones: they are not read."""
    found: dict[tuple[str, int], Stored] = {}
    with reading(path) as archive:
        config = archive.json("data/weights/model_weights_config.json")["config"]
        for name, entry in config.items():
            if entry["use_pickle"]:
                raise ModelError(f"{path} stores {name} as a pickle, which is not read: its weights cannot be counted")
            meta = entry["tensor_meta"]
            if meta["dtype"] not in _TYPES:
                raise ModelError(f"{path} stores {name} in a type that is not known here ({meta['dtype']})")
            shape = tuple(int(size["as_int"]) for size in meta["sizes"])
            offset = int(meta["storage_offset"]["as_int"])
            raw = np.frombuffer(archive.read(f"data/weights/{entry['path_name']}"), dtype=_TYPES[meta["dtype"]])
            values = raw[offset : offset + prod(shape)]
            if values.size != prod(shape):
                raise ModelError(f"{path} is cut off: {name} should have {prod(shape):,} values; found {values.size:,}")
            if meta["dtype"] == _BFLOAT16:
                values = values & 0x7FFF  # without the sign, zero is one value
            found.setdefault((entry["path_name"], offset), Stored(name, shape, values, bool(entry["is_param"])))
    return list(found.values())
