"""The files of a packing contract, and arrays whose bytes follow from what ``contract.json`` says.

    contract.json     what it is: tokenizer, text, packing, counts, and the size and sha256 of every other file
    tokens.npy        (tokens,) uint16 or uint32: all documents of train, then validation, then test
    scored.npy        (tokens + 7) // 8 uint8: bit i % 8 of byte i // 8 says whether token i is predicted
    documents.npy     (D,) int64: where each document begins
    documents.txt     D lines: their ids
    sequences.npy     (N, 4) int64: start, stop, scored positions, UTF-8 bytes of the scored targets
    vocabulary.json   V token texts in the order of their ids
    tokenizer.json    for the ``tokenizers`` library

An array file is NumPy's format, version 1.0, always with a header of HEADER bytes. A reader that knows dtype and shape
compares that header with the one it expects, and has nothing to parse.
"""

from __future__ import annotations

import hashlib
import os
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.workspace import room_for

FORMAT, VERSION = "softlabels-tokens", 1
CONTRACT, TOKENS, SCORED, DOCUMENTS, NAMES, SEQUENCES, VOCABULARY, TOKENIZER = (
    "contract.json", "tokens.npy", "scored.npy", "documents.npy", "documents.txt", "sequences.npy", "vocabulary.json",
    "tokenizer.json",
)  # fmt: skip
FILES = (TOKENS, SCORED, DOCUMENTS, NAMES, SEQUENCES, VOCABULARY, TOKENIZER)
COLUMNS = 4
HEADER = 128
_MAGIC = b"\x93NUMPY\x01\x00"


def token_type(vocabulary: int) -> np.dtype[np.unsignedinteger]:
    """The type of ``tokens.npy`` for so many tokens."""
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


def header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    """The HEADER bytes that begin an array's file."""
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
    return _MAGIC + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"


def open_array(path: Path, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """A memory map of ``path``. Raises DataError unless it is just such an array."""
    wanted = HEADER + int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != wanted or file.read(HEADER) != header(dtype, shape):
            raise DataError(
                f"{path} should be {wanted:,} bytes, an array of {dtype} {shape}; found {size:,} bytes, or another "
                "array. It is damaged: tokenize again"
            )
        if wanted == HEADER:
            return np.zeros(shape, dtype)
        return np.memmap(file, dtype, "r", HEADER, shape)


def open_file(path: Path) -> BufferedReader:
    """A plain file, open for reading. Raises DataError naming it."""
    if not path.is_file():
        raise DataError(f"there is no file {path}, which a packing contract should have. Tokenize again")
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def file_size(path: Path) -> int:
    """Bytes of a plain file. Raises DataError."""
    with open_file(path) as file:
        return os.fstat(file.fileno()).st_size


def file_digest(path: Path) -> tuple[int, str]:
    """Size and sha256 of a file, read once. Raises DataError."""
    with open_file(path) as file:
        try:
            return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


class ArrayWriter:
    """Writes a one-dimensional array whose length is known at the end. ``with`` closes it, whole and on disk."""

    def __init__(self, path: Path, dtype: np.dtype[np.generic]) -> None:
        self.length = 0
        self._path, self._dtype = path, dtype

    def append(self, values: npt.NDArray[np.generic]) -> None:
        """Further values, of any type that fits."""
        with room_for(self._path, HEADER + (self.length + len(values)) * self._dtype.itemsize):
            self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())
        self.length += len(values)

    def __enter__(self) -> ArrayWriter:
        self._file = open(self._path, "wb")
        self._file.write(header(self._dtype, (0,)))
        return self

    def __exit__(self, *_: object) -> None:
        with room_for(self._path, HEADER + self.length * self._dtype.itemsize), self._file:
            self._file.seek(0)
            self._file.write(header(self._dtype, (self.length,)))
            self._file.flush()
            os.fsync(self._file.fileno())


class BitWriter:
    """Writes bits, eight to a byte, the first as the lowest."""

    def __init__(self, path: Path) -> None:
        self._bytes = ArrayWriter(path, np.dtype("u1"))
        self._rest = np.zeros(0, bool)

    def append(self, bits: npt.NDArray[np.bool_]) -> None:
        """Further bits."""
        bits = np.concatenate([self._rest, bits])
        whole = len(bits) // 8 * 8
        self._bytes.append(np.packbits(bits[:whole], bitorder="little"))
        self._rest = bits[whole:]

    def __enter__(self) -> BitWriter:
        self._bytes.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bytes.append(np.packbits(self._rest, bitorder="little"))
        self._bytes.__exit__(*error)


def bits(packed: npt.NDArray[np.generic], start: int, stop: int) -> npt.NDArray[np.uint8]:
    """Bits [start, stop) of what a BitWriter wrote, as 0 and 1."""
    first = start // 8
    found = np.unpackbits(np.asarray(packed[first : (stop + 7) // 8], np.uint8), bitorder="little")
    return found[start - 8 * first : stop - 8 * first]
