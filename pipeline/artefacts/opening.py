"""Open any file that computes logits, in the runtime it was made for, without running what others put into it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefacts.checking import Floats, Inputs, Predictor
from pipeline.artefacts.executorch_file import open_executorch, text_of
from pipeline.artefacts.kinds import ONNX, PT2, Opened, in_batches, kind_of
from pipeline.artefacts.onnx_reading import Signature, beside, properties, read_proto, signature
from pipeline.artefacts.onnx_runtime import open_session
from pipeline.artefacts.pt2_archive import extra_of
from pipeline.artefacts.pt2_file import open_pt2
from pipeline.errors import ModelError, first_line


@dataclass(frozen=True)
class Artefact:
    """A file that computes logits, open.

    ``predict`` takes (B, *input_shape) float32 for any B and gives (B, classes) float32; that of a language model
    (``discrete``) takes (B, T) int64 tokens and gives (B, T, classes). ``runtime`` is its name and version;
    ``metadata`` holds JSON values, {} in files of others; ``input_shape`` and ``classes`` are None where the file
    leaves them open; ``batch`` is the batch size that the file was fixed to and ``largest`` the largest it takes, if
    any; ``dtype`` is what the file itself takes; ``files`` are all that belong to it, weights beside it included,
    ``bytes`` their size; ``sha256`` is that of ``path`` alone.
    """

    path: Path
    kind: str
    runtime: str
    predict: Predictor = field(repr=False, compare=False)
    metadata: dict[str, Any] = field(repr=False)
    input_shape: tuple[int, ...] | None
    classes: int | None
    batch: int | None
    largest: int | None
    dtype: str
    files: tuple[Path, ...]
    bytes: int
    sha256: str

    @property
    def discrete(self) -> bool:
        """Whether it takes token sequences."""
        return self.dtype in ("int64", "int32")


def open_artefact(path: str | Path, *, threads: int = 1, trusted: Collection[str] = ()) -> Artefact:
    """Open an ``.onnx``, ``.pt2`` or ``.pte`` file. ``threads`` 0 leaves the number to the runtime.

    ``trusted``: sha256 digests of files that the user vouches for; a ``.pt2`` runs what it carries when it is loaded
    and is opened only with one (docs/decisions/0012-artefacts.md). Raises ModelError: another kind (TorchScript,
    pickles), weights outside the file's folder, other than one input of floats and (B, C) logits, or of tokens (B, T)
    and (B, T, V) logits; MissingDependencyError without the runtime.
    """
    path = Path(path)
    kind = kind_of(path)
    files: tuple[Path, ...] = (path,)
    if kind == ONNX:
        proto = read_proto(path)
        files = (path, *beside(path, proto))
        opened, metadata = _open_onnx(path, signature(path, proto), threads), properties(proto)
    elif kind == PT2:
        opened, metadata = open_pt2(path, threads=threads, trusted=trusted), extra_of(path)
    else:
        opened, metadata = open_executorch(path, threads=threads), text_of(path)
    return Artefact(
        path=path,
        kind=kind,
        runtime=opened.runtime,
        predict=opened.predict,
        metadata=metadata,
        input_shape=opened.input_shape,
        classes=opened.classes,
        batch=opened.batch,
        largest=opened.largest,
        dtype=opened.dtype,
        files=files,
        bytes=sum(file.stat().st_size for file in files),
        sha256=_sha256(path),
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_onnx(path: Path, called: Signature, threads: int) -> Opened:
    session, version = open_session(path, threads)
    fixed = called.shape[0]

    def predict(inputs: Inputs) -> Floats:
        try:
            found = session.run([called.output], {called.input: inputs.astype(called.dtype, copy=False)})[0]
        except Exception as error:
            wanted = "x".join("?" if size is None else str(size) for size in called.shape)
            raise ModelError(
                f"{path.name} takes inputs of {wanted}; it cannot answer {inputs.shape}: {first_line(error)}"
            ) from error
        if found.ndim != called.axes:
            wanted = "(batch, classes)" if called.axes == 2 else "(batch, length, vocabulary)"
            raise ModelError(f"{path.name} should give logits of shape {wanted}; it gave {found.shape}")
        return np.asarray(found, dtype=np.float32)

    inner = tuple(size for size in called.shape[1:] if size is not None)
    return Opened(
        predict=predict if fixed is None else in_batches(predict, fixed, fill=True),
        runtime=f"onnxruntime {version}",
        input_shape=inner if len(inner) == len(called.shape) - 1 else None,
        classes=called.classes,
        batch=fixed,
        dtype=np.dtype(called.dtype).name,
    )
