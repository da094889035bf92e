"""What an ONNX file says, read without running it: its tensors, its one input, its logits, and files beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ModelError, first_line, some
from pipeline.references import optional

MARK = "softlabels"
"""The property that says a file's properties are this project's, each of them JSON."""

FLOATS: dict[int, npt.DTypeLike] = {1: np.float32, 10: np.float16, 11: np.float64}
"""TensorProto.DataType of inputs that numpy's floats can be turned into."""
TOKENS: dict[int, npt.DTypeLike] = {6: np.int32, 7: np.int64}
"""Those of inputs that token ids can be turned into."""

_PROBABILITIES = ("Softmax", "Sigmoid")


@dataclass(frozen=True)
class Signature:
    """How a file is called: names, the input's type and shape (None where free), and the number of classes.

    An input of whole numbers is token sequences, whose logits have an axis more than others: ``axes`` of the output.
    """

    input: str
    dtype: npt.DTypeLike
    shape: tuple[int | None, ...]
    output: str
    classes: int | None

    @property
    def axes(self) -> int:
        """2 of (batch, classes), 3 of (batch, length, vocabulary)."""
        return 3 if np.dtype(self.dtype).kind == "i" else 2


def read_proto(path: Path) -> Any:
    """The ModelProto in a file, weights beside it not read.

    Raises ModelError when it is none, MissingDependencyError without onnx.
    """
    onnx = optional("onnx", "compress", "reading an ONNX file")
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:
        raise ModelError(f"{path} should be an ONNX file and cannot be read: {first_line(error)}") from error
    if not proto.graph.node and not proto.graph.output:
        raise ModelError(f"{path} should be an ONNX file; it holds no graph")
    return proto


def graphs_of(proto: Any) -> Iterator[Any]:
    """The graph, those inside its nodes, and functions: everything that has nodes."""
    waiting = [proto.graph, *proto.functions]
    for training in proto.training_info:
        waiting += [training.initialization, training.algorithm]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def tensors_of(proto: Any) -> Iterator[Any]:
    """Every TensorProto in the file, wherever it stands."""
    for graph in graphs_of(proto):
        yield from getattr(graph, "initializer", ())
        sparse = list(getattr(graph, "sparse_initializer", ()))
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                sparse += [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])]
                sparse += list(attribute.sparse_tensors)
        for tensor in sparse:
            yield from (tensor.values, tensor.indices)


def beside(path: Path, proto: Any) -> tuple[Path, ...]:
    """The files that hold the weights of ``path``, other than itself.

    Raises ModelError when one is missing, or lies outside the file's folder by its name or by a link: a model file
    must not make this machine read other files.
    """
    found = []
    folder = path.parent.resolve()
    for location in sorted({_location(tensor) for tensor in tensors_of(proto) if tensor.data_location == 1}):
        given = path.parent / location
        # Backslashes and drives lead elsewhere on another system; no exporter writes them.
        odd = not location or Path(location).is_absolute() or "\\" in location or ":" in location or "\0" in location
        if odd or ".." in Path(location).parts or not given.resolve().is_relative_to(folder):
            raise ModelError(f"{path} names weights at {location!r}, outside its folder; it was not opened")
        if not given.is_file():
            raise ModelError(f"{path} keeps weights in {location}, which is missing. Put it beside the file")
        found.append(given)
    return tuple(found)


def _location(tensor: Any) -> str:
    return next((str(entry.value) for entry in tensor.external_data if entry.key == "location"), "")


def properties(proto: Any) -> dict[str, Any]:
    """This project's metadata in the file's properties, {} for files of others."""
    texts = {p.key: p.value for p in proto.metadata_props}
    if MARK not in texts:
        return {}
    try:
        return {key: json.loads(text) for key, text in texts.items()}
    except (ValueError, RecursionError):
        return {}


def signature(path: Path, proto: Any) -> Signature:
    """How to call the file.

    Raises ModelError: several inputs, others than floats or token sequences, no output of (batch, classes), or
    (batch, length, vocabulary) of token sequences.
    """
    held = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in held]
    if len(inputs) != 1:
        raise ModelError(
            f"{path} should take one input; it takes {len(inputs)} ({some([value.name for value in inputs])})"
        )
    kind, shape = inputs[0].type.tensor_type.elem_type, _shape(inputs[0])
    tokens = kind in TOKENS and shape is not None and len(shape) == 2
    if not (kind in FLOATS or tokens) or not shape:
        onnx = optional("onnx", "compress", "reading an ONNX file")
        names = {number: name for name, number in onnx.TensorProto.DataType.items()}
        found = names.get(kind, "no tensor") if shape else "of no known rank"
        raise ModelError(
            f"{path} should take batches of floats, or of tokens (batch, length); its input {inputs[0].name} is {found}"
        )
    axes, wanted = (3, "(batch, length, vocabulary)") if tokens else (2, "(batch, classes)")
    outputs = [value for value in proto.graph.output if value.type.tensor_type.elem_type in FLOATS]
    known = [value for value in outputs if len(_shape(value) or ()) == axes]
    unknown = [value for value in outputs if _shape(value) is None]
    if not known and not unknown:
        shapes = some([f"{value.name} {_shape(value)}" for value in proto.graph.output])
        raise ModelError(f"{path} should have an output of shape {wanted}; it has {shapes}")
    chosen = (known or unknown)[0]
    last = next((node.op_type for node in proto.graph.node if chosen.name in node.output), "")
    if last in _PROBABILITIES:
        raise ModelError(
            f"{path} should give logits; its {chosen.name} is the output of {last}, which gives probabilities. Export "
            "the model without it"
        )
    classes = (_shape(chosen) or (None,))[-1]
    return Signature(inputs[0].name, (FLOATS | TOKENS)[kind], shape, chosen.name, classes)


def _shape(value: Any) -> tuple[int | None, ...] | None:
    """The sizes of a value, None for free ones; None when the rank is not said."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)
