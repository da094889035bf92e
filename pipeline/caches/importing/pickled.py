"""Arrays out of a file of ``torch.save`` without running what is in it, and without torch.

Such a file is a zip with a pickle in it, and a pickle is a program: it names functions and has them called. Here the
program is looked through first (only instructions that arrays need, none that grows beyond the file), and every name
in it stands for an object of this module, whatever it is called: nothing is imported, no foreign code can be reached.
Arrays of NumPy and plain tensors come out; anything else is a named error.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError, first_line

MOST_BYTES = 256 << 20
"""Larger files are refused: FKD's take some ten kilobytes, whole distributions of 500 crops 2 MB."""

_OPCODES = re.compile(
    "PROTO|FRAME|STOP|MARK|EMPTY_LIST|EMPTY_TUPLE|TUPLE|TUPLE1|TUPLE2|TUPLE3|APPEND|APPENDS|NONE|NEWTRUE|NEWFALSE|"
    "BININT|BININT1|BININT2|LONG1|BINUNICODE|SHORT_BINUNICODE|BINBYTES|SHORT_BINBYTES|GLOBAL|STACK_GLOBAL|REDUCE|"
    "BUILD|BINPUT|LONG_BINPUT|MEMOIZE|BINGET|LONG_BINGET|BINPERSID"
)
_TYPES = {f"{kind}{size}" for kind, sizes in (("f", "248"), ("i", "1248"), ("u", "1248")) for size in sizes} | {"b1"}
_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}


class _Type:
    """A NumPy type as a pickle builds it: its code, then its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        if code not in _TYPES:
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not read")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|") or state[2:5] != (None, None, None):
            raise pickle.UnpicklingError("an array is not of plain little-endian numbers")

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("<" + self.code)


class _Array:
    """A NumPy array as a pickle builds it: empty, then its state."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: npt.NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Type) or not isinstance(data, bytes) or type(fortran) is not bool:
            raise pickle.UnpicklingError("an array's state is not that of an array of numbers")
        self.value = np.frombuffer(data, kind.dtype).reshape(_shape(shape), order="F" if fortran else "C")


class _Called:
    """A name of the pickle: what is done instead when it is called. It takes no state."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *arguments: Any) -> Any:
        return self._run(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a name of the file is given a state")


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError("an array has no sensible shape")
    return shape


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes are not spelt as NumPy spells them")
    return text.encode("latin1")


def _no_bytes(*arguments: Any) -> bytes:
    """The bytes of an array without items."""
    if arguments:
        raise pickle.UnpicklingError("bytes are not spelt as NumPy spells them")
    return b""


def _type(code: Any, *_: Any) -> _Type:
    return _Type(str(code))


def _array(*_: Any) -> _Array:
    return _Array()


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Array:
    """A contiguous tensor over a storage."""
    shape = _shape(size)
    steps = tuple(int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape)))
    count = int(np.prod(shape, dtype=np.int64))
    inside = isinstance(storage, _Array) and type(offset) is int and offset >= 0
    if not inside or storage.value is None or offset + count > len(storage.value) or tuple(stride) != steps:
        raise pickle.UnpicklingError("a tensor is not contiguous, or lies outside its storage")
    found = _Array()
    found.value = storage.value[offset : offset + count].reshape(shape)
    return found


def _nothing(*_: Any) -> None:
    return None


def _no_call(*_: Any) -> Any:
    raise pickle.UnpicklingError("a type is called")


class _Storage(_Called):
    """The type of a tensor's storage, by its code."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        super().__init__(_no_call)
        self.code = code


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Called(_array),
    ("numpy._core.multiarray", "_reconstruct"): _Called(_array),
    ("numpy", "ndarray"): _Called(_no_call),
    ("numpy", "dtype"): _Called(_type),
    ("_codecs", "encode"): _Called(_encode),
    ("__builtin__", "bytes"): _Called(_no_bytes),
    ("collections", "OrderedDict"): _Called(_nothing),
    ("torch._utils", "_rebuild_tensor_v2"): _Called(_tensor),
    **{("torch", name): _Storage(code) for name, code in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, storage: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs") from None

    def persistent_load(self, pid: Any) -> _Array:
        word, kind, key, _, count = pid
        if word != "storage" or not isinstance(kind, _Storage) or not isinstance(key, str) or type(count) is not int:
            raise pickle.UnpicklingError("it refers to something that is no tensor's storage")
        found = _Array()
        found.value = np.frombuffer(self._storage(key), "<" + kind.code)[:count]
        return found


def read_arrays(data: bytes, where: str) -> list[npt.NDArray[Any]]:
    """The list of arrays (or tensors) that ``torch.save`` put into ``data``. Nothing in it is run.

    Raises DataError, naming ``where``, for anything else: another pickle, a damaged or compressed archive.
    """
    try:
        if len(data) > MOST_BYTES:
            raise pickle.UnpicklingError(f"it has {len(data):,} bytes")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            (program,) = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
            root = program.removesuffix("data.pkl")
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise pickle.UnpicklingError("its members are compressed")
            if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
                raise pickle.UnpicklingError("its numbers are big-endian")
            code = archive.read(program)
            _look_through(code)
            found = _Unpickler(code, lambda key: archive.read(f"{root}data/{key}")).load()
        if not isinstance(found, (list, tuple)) or not all(isinstance(a, _Array) for a in found):
            raise pickle.UnpicklingError("it holds something else than a list of arrays")
        arrays = [a.value for a in found if a.value is not None]
        if len(arrays) < len(found):
            raise pickle.UnpicklingError("an array in it was never filled")
        return arrays
    # Damaged or hostile bytes fail in any way that building from them can fail; what is built is this module's alone.
    except (pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise _refused(where, error) from error
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        MemoryError,
        struct.error,
    ) as error:
        raise _refused(where, error) from error


def _refused(where: str, error: Exception) -> DataError:
    return DataError(
        f"{where} should be a list of arrays saved by torch.save (1.6 or later): {first_line(error)}. Nothing in it "
        "was run. Fetch it again, and do not open it with torch.load"
    )


def _look_through(code: bytes) -> None:
    """Raise unless the program has only instructions that arrays need, and counts no further than its own length."""
    for opcode, argument, _ in pickletools.genops(code):
        if not _OPCODES.fullmatch(opcode.name):
            raise pickle.UnpicklingError(f"it has the instruction {opcode.name}, which no array needs")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and (argument or 0) > len(code):
            raise pickle.UnpicklingError("it numbers more objects than it has bytes")
