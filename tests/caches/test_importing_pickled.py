"""Arrays out of a file of torch.save, of which nothing is run, whatever it is."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.caches.importing.pickled import read_arrays
from pipeline.errors import DataError

FKD = Path(__file__).parent / "foreign" / "fkd"


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def archive(program: bytes, **members: bytes) -> bytes:
    """A file as torch.save lays it out, around a pickle of one's own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in {"data.pkl": program, **members}.items():
            file.writestr(f"archive/{name}", data)
    return buffer.getvalue()


@pytest.mark.parametrize("path", sorted(FKD.rglob("*.tar")), ids=lambda p: str(p.relative_to(FKD)))
def test_what_fkd_saved_is_read_as_torch_reads_it(path: Path) -> None:
    found = read_arrays(path.read_bytes(), "here")
    for mine, theirs in zip(found, torch.load(path, weights_only=False), strict=True):
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)


def test_arrays_and_tensors_of_every_layout() -> None:
    values: list[Any] = [
        np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        np.zeros((0, 4), np.float16),
        torch.arange(12, dtype=torch.float16).reshape(3, 4)[1:],
        torch.tensor([True, False]),
        torch.tensor(3, dtype=torch.int64),
    ]
    for mine, theirs in zip(read_arrays(saved(values), "here"), values, strict=True):
        assert np.array_equal(mine, np.asarray(theirs)) and mine.shape == tuple(theirs.shape)


class _Runs:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.arguments


def hostile(witness: Path) -> dict[str, bytes]:
    """Files that run something, or ask for much, when they are loaded by pickle."""
    evil = _Runs(os.mkdir, str(witness))
    protocols = {f"protocol {n}": archive(pickle.dumps([evil], n)) for n in range(6)}
    state = b"cnumpy._core.multiarray\n_reconstruct\nX\x0c\x00\x00\x00__defaults__K\x01\x86b"
    return {
        **protocols,
        "torch.save": saved([np.zeros(3), evil]),
        "a system call": saved(_Runs(os.system, f"touch {witness}")),
        "the class of a tensor's storage": archive(b"\x80\x02ctorch\n_import_dotted_name\nX\x02\x00\x00\x00os\x85R."),
        "numpy's loader": archive(b"\x80\x02cnumpy\nload\nX\x01\x00\x00\x00x\x85R."),
        "an attribute of a name": archive(b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93."),
        "a state for a name": archive(b"\x80\x02](" + state + b"e."),
        "a call of a type": archive(b"\x80\x02cnumpy\nndarray\n)R."),
        "objects in an array": saved([np.array([evil, 1], dtype=object)]),
        "an array with fields": saved([np.zeros(2, [("a", "f4")])]),
        "a memo of 4 GB": archive(b"\x80\x02]r\xff\xff\xff\x7f."),
        "an array of more than there is": archive(
            b"\x80\x02]cnumpy._core.multiarray\n_reconstruct\n)R(K\x01J\x00\x00\x00\x7f\x85cnumpy\ndtype\nX\x02\x00\x00\x00f4"
            b"\x85R\x89c_codecs\nencode\nX\x01\x00\x00\x00bX\x06\x00\x00\x00latin1\x86Rtba."
        ),
        "a storage that is not there": archive(
            b"\x80\x02](X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQa."
        ),
        "never ends": archive(b"\x80\x02]"),
        "no list": archive(pickle.dumps(7, 2)),
        "a list of texts": archive(pickle.dumps(["a"], 2)),
        "an empty array object": archive(b"\x80\x02]cnumpy._core.multiarray\n_reconstruct\n)Ra."),
        "a bare pickle": pickle.dumps([evil], 2),
        "torch's old format": _old_format(evil),
        "a deep nest": archive(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
        "big-endian": archive(pickle.dumps([], 2), byteorder=b"big"),
        "nothing": b"",
        "zeros": b"\0" * 1000,
        "a length beyond the end": archive(b"\x80\x02X" + struct.pack("<I", 2**31) + b"a."),
    }


def _old_format(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("name", sorted(hostile(Path("unused"))))
def test_a_hostile_file_is_a_named_error_and_runs_nothing(name: str, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    data = hostile(witness)[name]
    with pytest.raises(DataError, match=r"some\.tar should be a list of arrays.*Nothing in it was run"):
        read_arrays(data, "some.tar")
    assert not witness.exists()


def test_the_witness_would_have_been_there(tmp_path: Path) -> None:
    # The test above cannot pass for want of a payload that works.
    witness = tmp_path / "witness"
    torch.load(io.BytesIO(hostile(witness)["torch.save"]), weights_only=False)
    assert witness.exists()


def test_every_cut_and_every_flipped_byte_is_arrays_or_a_named_error() -> None:
    data = next(FKD.rglob("*.tar")).read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(0, len(data), 300).tolist():
        for damaged in (data[:place], data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :]):
            with contextlib.suppress(DataError):
                assert all(isinstance(array, np.ndarray) for array in read_arrays(damaged, "here"))


def test_names_of_the_file_keep_no_state_from_one_file_to_the_next() -> None:
    with pytest.raises(DataError):
        read_arrays(hostile(Path("unused"))["a state for a name"], "here")
    assert read_arrays(saved([np.arange(3)]), "here")[0].tolist() == [0, 1, 2]
