"""``.pte`` files: ExecuTorch's programs, for phones and boards, with XNNPACK's kernels.

A program names operators of a fixed set and holds no code; the extra ``executorch`` brings exporter and runtime.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import identity
from pipeline.artefacts.checking import Floats
from pipeline.artefacts.kinds import Opened, in_batches
from pipeline.artefacts.onnx_file import quiet
from pipeline.artefacts.pt2_file import exported
from pipeline.errors import ModelError, first_line
from pipeline.references import optional
from pipeline.workspace import write_atomic

LARGEST_BATCH = 32
_FORWARD, _METADATA = "forward", "softlabels"
_FLOAT = 6  # executorch's scalar type of float32


def export_executorch(
    model: nn.Module,
    input_shape: tuple[int, ...],
    path: Path,
    metadata: Mapping[str, Any],
    *,
    largest: int = LARGEST_BATCH,
) -> None:
    """Write ``model`` (in eval mode) to ``path`` for 1 to ``largest`` examples at once, delegated to XNNPACK.

    ExecuTorch plans memory for the largest batch. Input (B, *input_shape) float32, output (B, C) float32 logits;
    ``metadata`` is what the program's method ``softlabels`` answers. Raises MissingDependencyError without executorch,
    ModelError when the model cannot be exported.
    """
    optional("executorch", "executorch", "exporting a .pte")
    with quiet():
        exir = importlib.import_module("executorch.exir")
        xnnpack = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    # Lowering narrows the batch to the side of its own kernels' thresholds that the example is on: hence the largest.
    program = exported(model, input_shape, example=largest, largest=largest)
    text = identity.canonical_json(dict(metadata)).decode()
    try:
        with quiet(), torch.no_grad():
            edge = exir.to_edge_transform_and_lower(
                program, partitioner=[xnnpack.XnnpackPartitioner()], constant_methods={_METADATA: text}
            )
            data = edge.to_executorch().buffer
    except Exception as error:
        raise ModelError(f"ExecuTorch cannot export {type(model).__name__}: {first_line(error)}") from error
    write_atomic(path, data)


def open_executorch(path: Path, *, threads: int = 1) -> Opened:
    """Load a program into ExecuTorch's runtime. ``threads`` 0 leaves the number to it; it is the whole process's.

    Raises MissingDependencyError without executorch, ModelError for what is no program of one float32 input.
    """
    program = _load(path)
    if threads:
        bindings = importlib.import_module("executorch.extension.pybindings.portable_lib")
        bindings._unsafe_reset_threadpool(threads)
    try:
        method = program.load_method(_FORWARD)
        entry = method.metadata.input_tensor_meta(0)
        exit_ = method.metadata.output_tensor_meta(0)
        inputs, shape, dtype = method.metadata.num_inputs(), tuple(entry.sizes()), entry.dtype()
    except Exception as error:
        raise ModelError(f"{path} should be a program with a method forward: {first_line(error)}") from error
    if inputs != 1 or dtype != _FLOAT or len(exit_.sizes()) != 2:
        raise ModelError(
            f"{path} should take one float32 input and give (batch, classes); it takes {inputs} of type {dtype}"
        )

    def predict(inputs: Floats, _alive: Any = program) -> Floats:  # a method alone does not keep its program
        found = method.execute([torch.from_numpy(np.ascontiguousarray(inputs))])[0]
        return np.array(found.numpy(), dtype=np.float32)  # a copy: the next call writes to the same memory

    fixed = shape[0] > 1 and not _takes_one(predict, shape)
    return Opened(
        predict=in_batches(predict, shape[0], fill=fixed),
        runtime=f"executorch {importlib.metadata.version('executorch')}",
        input_shape=shape[1:],
        classes=int(exit_.sizes()[1]),
        batch=shape[0] if fixed else None,
        largest=shape[0],
    )


def _takes_one(predict: Any, shape: tuple[int, ...]) -> bool:
    """Whether a batch of one is answered; a program says only how many examples it takes at most."""
    try:
        return bool(predict(np.zeros((1, *shape[1:]), dtype=np.float32)).shape[0] == 1)
    except RuntimeError:
        return False


def text_of(path: Path) -> dict[str, Any]:
    """This project's metadata in a program, {} for files of others."""
    program = _load(path)
    if _METADATA not in program.method_names:
        return {}
    try:
        found = json.loads(program.load_method(_METADATA).execute([])[0])
    except (RuntimeError, ValueError, TypeError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def _load(path: Path) -> Any:
    optional("executorch", "executorch", "running a .pte")
    with quiet():
        runtime = importlib.import_module("executorch.runtime")
    try:
        check = runtime.Verification.InternalConsistency  # of all offsets in the file
        return runtime.Runtime.get().load_program(path.read_bytes(), verification=check)
    except Exception as error:
        raise ModelError(
            f"{path} should be a program of ExecuTorch and cannot be loaded: {first_line(error)}"
        ) from error
