"""What a quantised file really is: which operators run in int8, and how many bits a weight takes.

Both are read from the file and from what ONNX Runtime makes of it, not from what was asked for: a quantiser may leave
operators in float, a runtime may not fuse a quantised operator and dequantise at every call instead, and int4 may be
kept at a byte a weight.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artefacts.onnx_file import quiet
from pipeline.compression.quantisation.files import load_proto
from pipeline.errors import ModelError, first_line
from pipeline.references import optional

CONVOLUTIONS = "convolutions"
PRODUCTS = "matrix products"
_FUSED = {
    "QLinearConv": CONVOLUTIONS,
    "ConvInteger": CONVOLUTIONS,
    "QGemm": PRODUCTS,
    "QLinearMatMul": PRODUCTS,
    "MatMulInteger": PRODUCTS,
    "MatMulIntegerToFloat": PRODUCTS,
    "DynamicQuantizeMatMul": PRODUCTS,
    "MatMulNBits": PRODUCTS,
}
_FLOAT = {
    "Conv": CONVOLUTIONS,
    "FusedConv": CONVOLUTIONS,
    "NhwcFusedConv": CONVOLUTIONS,
    "ConvTranspose": CONVOLUTIONS,
    "Gemm": PRODUCTS,
    "FusedGemm": PRODUCTS,
    "MatMul": PRODUCTS,
    "FusedMatMul": PRODUCTS,
}
_WEIGHT = {"QLinearConv": 3, "QGemm": 3, "QLinearMatMul": 3}
"""Which input is the weight; the second for all others."""
_THROUGH = ("DequantizeLinear", "QuantizeLinear", "Transpose", "Cast", "Identity", "Mul", "Reshape")
"""Operators between a stored weight and its use."""


@dataclass(frozen=True)
class Fusion:
    """How many operators with weights run in integers, and how many there are, by kind of operator.

    Counted in the graph that ONNX Runtime optimised on this machine; matrix products of two activations do not count.
    """

    fused: dict[str, int]
    total: dict[str, int]

    @property
    def unfused(self) -> int:
        """Operators with weights that run in float."""
        return sum(self.total.values()) - sum(self.fused.values())

    def warnings(self) -> list[str]:
        """One line for each kind of operator that is not all fused."""
        return [
            f"operators not fused: {count - self.fused[kind]} of {count} {kind}"
            for kind, count in self.total.items()
            if self.fused[kind] < count
        ]


def fusion(path: Path) -> Fusion:
    """What ONNX Runtime fused of the int8 file ``path`` on this machine. Raises ModelError when it cannot open it."""
    proto = optimised(path)
    producers = _producers(proto.graph)
    fused, total = dict.fromkeys((CONVOLUTIONS, PRODUCTS), 0), dict.fromkeys((CONVOLUTIONS, PRODUCTS), 0)
    for node in proto.graph.node:
        kind = _FUSED.get(node.op_type) or _FLOAT.get(node.op_type)
        if kind is None or _stored(node, producers, proto.graph) is None:
            continue
        total[kind] += 1
        fused[kind] += node.op_type in _FUSED
    present = [kind for kind, count in total.items() if count]
    return Fusion({k: fused[k] for k in present}, {k: total[k] for k in present})


def unfused(path: Path) -> list[str]:
    """Warnings on an int8 file whose operators do not all run in int8, such as "operators not fused: 6 of 9
    convolutions"; empty where all do."""
    return fusion(path).warnings()


def optimised(path: Path) -> Any:
    """The graph that ONNX Runtime runs on this machine for the file ``path``, as an ONNX model."""
    runtime = optional("onnxruntime", "compress", "running an ONNX file")
    with tempfile.TemporaryDirectory() as folder, quiet():
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # it warns that the optimised graph is of this machine, which is its purpose
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        try:
            runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot open {path.name}: {first_line(error)}") from error
        return load_proto(Path(options.optimized_model_filepath))


def _producers(graph: Any) -> dict[str, Any]:
    return {output: node for node in graph.node for output in node.output}


def _initializers(graph: Any) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in graph.initializer}


def _stored(node: Any, producers: dict[str, Any], graph: Any) -> list[str] | None:
    """Names of the stored tensors behind a node's weight, the weight first; None where it is an activation."""
    place = _WEIGHT.get(node.op_type, 1)
    names = {tensor.name for tensor in graph.initializer}
    if len(node.input) <= place:
        return None
    found: list[str] = []
    name = node.input[place]
    if node.op_type == "MatMulNBits":
        return [name, *(n for n in node.input[2:4] if n in names)]
    while name not in names:
        source = producers.get(name)
        if source is None or source.op_type not in _THROUGH:
            return None
        found += [n for n in source.input[1:] if n in names]
        name = source.input[0]
    return [name, *found]


@dataclass(frozen=True)
class Stored:
    """Weights of convolutions and matrix products as a file holds them.

    ``weights``: how many there are; ``bits``: bits each takes on average, scales and zero points included;
    ``narrowed``: the share of them kept in less than 32 bits.
    """

    weights: int
    bits: float
    narrowed: float


def bits_per_weight(path: Path) -> Stored:
    """Count the bits that the weights of ``path`` take in the file, by its bytes.

    Raises ModelError when it has no convolution or matrix product with weights.
    """
    counted = list(_weights(load_proto(path).graph))
    weights = sum(count for count, _ in counted)
    if not weights:
        raise ModelError(f"{path.name} has no weights of convolutions or matrix products to count")
    narrow = sum(count for count, size in counted if 8 * size < 32 * count)
    return Stored(weights, 8 * sum(size for _, size in counted) / weights, narrow / weights)


def _weights(graph: Any) -> Iterator[tuple[int, int]]:
    """(Weights, bytes) of every operator with stored weights; a tensor used twice counts once."""
    producers, initializers = _producers(graph), _initializers(graph)
    seen: set[str] = set()
    for node in graph.node:
        if node.op_type not in _FUSED and node.op_type not in _FLOAT:
            continue
        stored = _stored(node, producers, graph)
        if stored is None or stored[0] in seen:
            continue
        seen.add(stored[0])
        shapes = {attribute.name: attribute.i for attribute in node.attribute}
        count = shapes["K"] * shapes["N"] if node.op_type == "MatMulNBits" else _elements(initializers[stored[0]])
        yield count, sum(_bytes(initializers[name]) for name in stored)


def _elements(tensor: Any) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _bytes(tensor: Any) -> int:
    return len(tensor.raw_data) or tensor.ByteSize()


def overstated(path: Path, claimed: int) -> list[str]:
    """A warning where ``path`` claims ``claimed`` bits a weight and keeps them in twice that or more; else empty."""
    stored = bits_per_weight(path)
    if stored.bits < 2 * claimed:
        return []
    return [
        f"claims {claimed} bits a weight and keeps {stored.bits:.1f}: {stored.narrowed:.0%} of "
        f"{stored.weights:,} weights are narrower than float"
    ]
