"""What a file stores: bytes, parameters, how many of them are not zero, and how many bits each takes.

Read from the file itself, so that a quantised or pruned file is counted as it is, not as the model it came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.artefacts.kinds import ONNX, PT2, kind_of
from pipeline.artefacts.onnx_reading import beside, graphs_of, read_proto
from pipeline.artefacts.pt2_archive import weights_of
from pipeline.errors import ModelError
from pipeline.references import optional

# TensorProto.DataType: bits of a value as it is stored. Whatever is not here (int64, bool, text) is no weight.
_BITS = {
    1: 32,
    2: 8,
    3: 8,
    4: 16,
    5: 16,
    6: 32,
    10: 16,
    11: 64,
    16: 16,
    17: 8,
    18: 8,
    19: 8,
    20: 8,
    21: 4,
    22: 4,
    23: 4,
}

# Inputs of operators that are no weights: scales and zero points, statistics of batch norm. Those of
# https://onnx.ai/onnx/operators and https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
_NO_WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (3, 4),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "DynamicQuantizeMatMul": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "MatMulNBits": (2, 3, 4),
    "Clip": (1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Pad": (2,),
}
# Which input is a quantised weight, which its zero point, and along which axis of the weight that goes.
_ZERO_POINTS: dict[str, tuple[int, int, int]] = {
    "DequantizeLinear": (0, 2, 1),
    "QLinearConv": (3, 5, 0),
    "QLinearMatMul": (3, 5, -1),
    "ConvInteger": (1, 3, 0),
    "MatMulInteger": (1, 3, -1),
    "DynamicQuantizeMatMul": (1, 3, -1),
    "MatMulIntegerToFloat": (1, 5, -1),
    "QGemm": (3, 5, -1),
}


@dataclass(frozen=True)
class Counts:
    """``parameters`` and how many are not ``zero`` when they are used; ``bits``: stored for each of them on average.

    ``bits`` counts the scales and zero points that low precision needs, and not the description of the graph.
    """

    parameters: int
    nonzeros: int
    bits: float


def size_of(path: Path) -> int:
    """Bytes of a file of any kind, and of the weights that an ONNX file keeps beside itself.

    Raises ModelError when there is none, or when it names weights that are missing or elsewhere.
    """
    if path.suffix == ".safetensors" and path.is_file():
        return path.stat().st_size
    files = (path, *beside(path, read_proto(path))) if kind_of(path) == ONNX else (path,)
    return sum(file.stat().st_size for file in files)


def counts_of(path: Path) -> Counts:
    """What an ``.onnx`` or ``.pt2`` stores, without running it. A tied or shared tensor counts once.

    Batch norm's running statistics are no parameters, as in torch, unless the exporter folded them into weights.
    Raises ModelError for other kinds, whose weights are packed in ways that only their runtime knows.
    """
    kind = kind_of(path)
    if kind == ONNX:
        return _of_onnx(path)
    if kind != PT2:
        raise ModelError(f"{path}: parameters can be counted in .onnx and .pt2; a {kind} packs them for its kernels")
    weights = [stored for stored in weights_of(path) if stored.parameter]
    total = sum(stored.values.size for stored in weights)
    bits = sum(stored.values.nbytes for stored in weights) * 8
    return Counts(total, sum(int(np.count_nonzero(stored.values)) for stored in weights), bits / max(total, 1))


def parameters_of(path: Path) -> int:
    """``counts_of(path).parameters``."""
    return counts_of(path).parameters


def nonzeros_of(path: Path) -> int:
    """``counts_of(path).nonzeros``."""
    return counts_of(path).nonzeros


def _of_onnx(path: Path) -> Counts:
    proto = read_proto(path)
    beside(path, proto)
    numpy_helper = optional("onnx", "compress", "counting parameters").numpy_helper
    held, nodes = _held(proto)
    helpers = _helpers(nodes)
    used = {name: (node, place) for node in nodes for place, name in enumerate(node.input) if name in held}

    def array(name: str) -> npt.NDArray[Any]:
        return np.asarray(numpy_helper.to_array(held[name], base_dir=str(path.parent)))

    parameters = nonzeros = bits = 0
    for name, tensor in held.items():
        stored = prod(tensor.dims) * _BITS.get(tensor.data_type, 0)
        if name in helpers:
            bits += stored if helpers[name] else 0
            continue
        if not stored:
            continue
        bits += stored
        node, place = used.get(name, (None, 0))
        if node is not None and node.op_type == "MatMulNBits" and place == 1:
            values = _nbits(node, array(name), array(node.input[3]) if _given(node, 3, held) else None)
        else:
            values = _without_zero_point(node, place, _plain(array(name)), held, array)
        parameters += values.size
        nonzeros += int(np.count_nonzero(values))
    return Counts(parameters, nonzeros, bits / max(parameters, 1))


def _held(proto: Any) -> tuple[dict[str, Any], list[Any]]:
    """Constant tensors by the name they are used by, and all nodes."""
    held: dict[str, Any] = {}
    nodes = []
    for graph in graphs_of(proto):
        held |= {tensor.name: tensor for tensor in getattr(graph, "initializer", ())}
        for node in graph.node:
            nodes.append(node)
            if node.op_type == "Constant":
                held.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return held, nodes


def _helpers(nodes: list[Any]) -> dict[str, bool]:
    """Names of tensors that are no weights, and whether they are the price of low precision."""
    found: dict[str, bool] = {}
    weights: set[str] = set()
    ranges = {node.output[1] for node in nodes if node.op_type == "DynamicQuantizeLinear"}
    for node in nodes:
        kept = _NO_WEIGHTS.get(node.op_type, ())
        if node.op_type == "Mul" and ranges & set(node.input):  # the scale of a weight times that of the activations
            kept = (0, 1)
        for place, name in enumerate(node.input):
            if place in kept:
                price = node.op_type in _ZERO_POINTS or node.op_type in ("QuantizeLinear", "MatMulNBits", "Mul")
                found[name] = found.get(name, False) or price
            elif node.op_type not in ("Shape", "Cast"):
                weights.add(name)
    return {name: price for name, price in found.items() if name not in weights}


def _given(node: Any, place: int, held: dict[str, Any]) -> bool:
    return len(node.input) > place and node.input[place] in held


def _plain(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """int4 and the small floats as numbers that numpy can compare."""
    if values.dtype.kind in "iuf":
        return values
    return values.astype(np.float32) if "float" in values.dtype.name else values.astype(np.int16)


def _without_zero_point(
    node: Any, place: int, values: npt.NDArray[Any], held: dict[str, Any], array: Any
) -> npt.NDArray[Any]:
    """Where a quantised weight differs from the value that stands for zero."""
    weight, zero, axis = _ZERO_POINTS.get(node.op_type if node is not None else "", (-1, -1, 0))
    if place != weight or not _given(node, zero, held):
        return values
    points = _plain(array(node.input[zero]))
    given = {a.name: a.i for a in node.attribute}
    axis = 0 if node.op_type == "QGemm" and given.get("transB") else given.get("axis", axis)
    if points.ndim == values.ndim and given.get("block_size"):
        points = np.repeat(points, given["block_size"], axis=axis).take(range(values.shape[axis]), axis=axis)
    elif points.size > 1:
        points = points.reshape([-1 if i == axis % values.ndim else 1 for i in range(values.ndim)])
    else:
        points = points.reshape(())
    return np.asarray(values.astype(np.int32) != points)


def _nbits(node: Any, packed: npt.NDArray[Any], points: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """Weights of MatMulNBits, (N, K), true where they differ from their zero point: 2^(bits - 1) unless given."""
    given = {a.name: a.i for a in node.attribute}
    bits, block, rows, columns = given.get("bits", 4), given["block_size"], given["N"], given["K"]
    if bits not in (2, 4, 8):
        raise ModelError(f"MatMulNBits of {bits} bits is not counted here; 2, 4 and 8 are")
    values = _unpacked(packed.reshape(rows, -1), bits)[:, :columns]
    blocks = ceil(columns / block)
    if points is None:
        return np.asarray(values != 1 << (bits - 1))
    if points.dtype == np.uint8:
        points = _unpacked(points.reshape(rows, -1), bits)[:, :blocks]
    spread = np.repeat(points.reshape(rows, blocks), block, axis=1)[:, :columns]
    return np.asarray(values != spread)


def _unpacked(packed: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Bytes as the values of ``bits`` each that are packed in them, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    mask = np.uint8((1 << bits) - 1)
    return ((packed.view(np.uint8)[..., None] >> shifts) & mask).reshape(*packed.shape[:-1], -1)
