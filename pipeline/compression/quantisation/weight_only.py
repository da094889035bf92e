"""Narrow weights, float activations: a smaller file that needs no calibration.

Int4 is ONNX Runtime's MatMulNBits: weights stay narrow in memory, in blocks with a scale each, and only matrix products
have it. Int8 per channel is a cast and a multiplication that the runtime folds when it opens the file: it then runs as
fast as float, convolutions included, and takes as much memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefacts.onnx_file import quiet
from pipeline.compression.quantisation.files import finish, load_proto, load_quantiser, quantising
from pipeline.errors import ConfigError, ModelError

BLOCKS = (32, 64, 128)
CONVOLUTIONAL = 0.1
"""Where matrix products hold less than this share of the weights, narrowing them alone does next to nothing."""
_PRODUCTS, _CONVOLUTIONS = ("Gemm", "MatMul"), ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class Narrowed:
    """Operators whose weights were narrowed; those left in float, with the reason for each."""

    operators: int
    left: tuple[str, ...]


def quantise_weights(
    source: Path,
    target: Path,
    *,
    bits: int = 4,
    block: int | None = None,
    symmetric: bool = True,
    accuracy_level: int = 4,
) -> Narrowed:
    """Write ``source`` with weights of ``bits`` 4 or 8 to ``target``.

    Int4 is always in blocks of 32 (the default), 64 or 128 weights; int8 has a scale per output channel, or blocks
    where ``block`` says so, for matrix products only. ``symmetric`` blocks have no zero point. ``accuracy_level`` is
    ONNX Runtime's: 4 computes blocks with activations in int8, 1 in float32, 0 as it likes. Raises ConfigError on an
    unknown option, ModelError where there is nothing to narrow.
    """
    problems = []
    if bits not in (4, 8):
        problems.append(f"bits of weights should be 4 or 8; found {bits}")
    if block is not None and block not in BLOCKS:
        problems.append(f"blocks should be of {', '.join(map(str, BLOCKS))} weights; found {block}")
    if accuracy_level not in range(5):
        problems.append(f"accuracy_level should be 0 to 4; found {accuracy_level}")
    if problems:
        raise ConfigError(problems)
    load_quantiser()
    with quantising(source, f"int{bits} weights"):
        proto = load_proto(source)
        narrow_embedding(proto)
        if bits == 4 or block is not None:
            proto, narrowed = _blocks(proto, source, bits, block or 32, symmetric, accuracy_level)
        else:
            narrowed = _channels(proto, source)
        done = {"how": "weight-only", "bits": bits, "block": block or (32 if bits == 4 else None)}
        done |= {"symmetric": symmetric or done["block"] is None, "operators": narrowed.operators}
        finish(proto, source, target, done)
    return narrowed


def _blocks(proto: Any, source: Path, bits: int, block: int, symmetric: bool, level: int) -> tuple[Any, Narrowed]:
    """Matrix products as MatMulNBits; all that has a stored matrix as its weight is made a MatMul first."""
    share = _share_of_products(proto.graph)
    if share < CONVOLUTIONAL:
        raise ModelError(
            f"{source.name} has no matrix products of weights to speak of ({share:.1%} of its weights): a "
            f"convolutional net. Use static quantisation, or int8 weights per channel"
        )
    left = as_matmul(proto)
    before = sum(node.op_type == "MatMul" for node in proto.graph.node)
    library = importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    quantiser = library.MatMulNBitsQuantizer(
        proto, bits=bits, block_size=block, is_symmetric=symmetric, accuracy_level=level
    )
    with quiet():
        quantiser.process()
    made = quantiser.model.model
    stored = {tensor.name: tensor for tensor in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            left.append(f"a product with a stack of matrices {tuple(stored[node.input[1]].dims)}")
        elif node.op_type in _CONVOLUTIONS and node.input[1] in stored:
            left.append(f"a convolution {tuple(stored[node.input[1]].dims)}")
    after = sum(node.op_type == "MatMul" for node in made.graph.node)
    return made, Narrowed(before - after, tuple(left))


def narrow_embedding(proto: Any) -> None:
    """Store the matrices (V, D) that a graph's tokens pick rows of as int8 with a scale per row, in place.

    The rows picked are widened at every call: unlike other weights these are never in memory as float. A matrix that
    is the head's as well stays for that, and is narrowed there in its own way.
    """
    onnx = importlib.import_module("onnx")
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    tokens = {value.name for value in graph.input} - stored.keys()
    nodes: list[Any] = []
    for node in graph.node:
        name = node.input[0] if node.op_type == "Gather" else ""
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        known = stored.get(name)
        if known is None or node.input[1] not in tokens or axis or len(known.dims) != 2:
            nodes.append(node)
            continue
        value = onnx.numpy_helper.to_array(known)
        if known.data_type != onnx.TensorProto.FLOAT or not np.isfinite(value).all():
            nodes.append(node)
            continue
        whole, scale = int8_by(value, axis=0)
        made, result = (f"{name}_rows", f"{name}_rows_scale"), node.output[0]
        if made[0] not in stored:
            for array, called in zip((whole, scale), made, strict=True):
                graph.initializer.append(onnx.numpy_helper.from_array(array, called))
                stored[called] = graph.initializer[-1]
        picked = [f"{result}_int8", f"{result}_scale", f"{result}_float"]
        nodes += [
            onnx.helper.make_node("Gather", [made[0], node.input[1]], [picked[0]], axis=0),
            onnx.helper.make_node("Gather", [made[1], node.input[1]], [picked[1]], axis=0),
            onnx.helper.make_node("Cast", [picked[0]], [picked[2]], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", [picked[2], picked[1]], [result]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)


def int8_by(value: Any, axis: int) -> tuple[Any, Any]:
    """A float array as int8, and the float32 scales along ``axis`` that make it that again."""
    kept = tuple(i for i in range(value.ndim) if i != axis)
    scale = np.abs(value).max(axis=kept, keepdims=True).astype(np.float32) / np.float32(127)
    scale[scale == 0] = 1
    return np.clip(np.rint(value / scale), -127, 127).astype(np.int8), scale


def _share_of_products(graph: Any) -> float:
    """The share of the weights of convolutions and matrix products that the products hold."""
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    behind = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose" and n.input[0] in dims}
    sizes = {kind: 0 for kind in (_PRODUCTS, _CONVOLUTIONS)}
    for node in graph.node:
        for kind in sizes:
            if node.op_type in kind:
                name = behind.get(node.input[1], node.input[1])
                sizes[kind] += int(np.prod(dims[name])) if len(dims.get(name, ())) > 1 else 0
    return sizes[_PRODUCTS] / max(sum(sizes.values()), 1)


def as_matmul(proto: Any) -> list[str]:
    """Make every product with a stored matrix a MatMul with the matrix (in, out), in place.

    Gemm becomes MatMul and Add, a transposed weight is stored as it is used. Returns the products that stay, with why.
    """
    onnx = importlib.import_module("onnx")
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    turned = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in stored and _permutation(node) in ([1, 0], [])
    }
    left: list[str] = []
    nodes: list[Any] = []

    def matrix(name: str, transposed: bool) -> str:
        """The stored matrix that ``name`` is, turned over or not, under a name of its own."""
        inner, over = (turned[name], not transposed) if name in turned else (name, transposed)
        if not over:
            return inner
        made = f"{inner}_transposed"
        if made not in stored:
            value = np.ascontiguousarray(onnx.numpy_helper.to_array(stored[inner]).T)
            graph.initializer.append(onnx.numpy_helper.from_array(value, made))
            stored[made] = graph.initializer[-1]
        return made

    for k, node in enumerate(graph.node):
        weight = node.input[1] if node.op_type in _PRODUCTS else ""
        inner = turned.get(weight, weight)
        if inner not in stored or (node.op_type == "Gemm" and len(stored[inner].dims) != 2):
            nodes.append(node)
        elif node.op_type == "MatMul":
            if weight in turned and len(stored[inner].dims) == 2:
                node.input[1] = matrix(weight, False)
            nodes.append(node)
        else:
            options = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            plain = options.get("alpha", 1.0) == 1.0 and not options.get("transA", 0)
            biased = len(node.input) > 2 and node.input[2] != ""
            if not plain or (biased and options.get("beta", 1.0) != 1.0):
                left.append("a Gemm with a factor or a transposed input")
                nodes.append(node)
                continue
            product = f"{node.output[0]}_product" if biased else node.output[0]
            name = matrix(weight, bool(options.get("transB", 0)))
            nodes.append(onnx.helper.make_node("MatMul", [node.input[0], name], [product], name=f"product_{k}"))
            if biased:
                nodes.append(onnx.helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"bias_{k}"))
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)
    return left


def _permutation(node: Any) -> list[int]:
    return [int(axis) for attribute in node.attribute if attribute.name == "perm" for axis in attribute.ints]


def drop_unused(graph: Any) -> None:
    """Remove stored tensors that nothing reads, and transposes of weights that nothing reads, in place."""
    outputs = {value.name for value in graph.output}
    while True:
        read = {name for node in graph.node for name in node.input} | outputs
        idle = [node for node in graph.node if node.op_type == "Transpose" and node.output[0] not in read]
        for node in idle:
            graph.node.remove(node)
        if not idle:
            break
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def _channels(proto: Any, source: Path) -> Narrowed:
    """Weights as int8 times a scale per output channel, of products and convolutions alike."""
    onnx = importlib.import_module("onnx")
    helper, arrays = onnx.helper, onnx.numpy_helper
    left = as_matmul(proto)

    def narrow(name: str, value: Any, axis: int) -> tuple[list[Any], list[Any]]:
        whole, scale = int8_by(value, axis)
        tensors = [arrays.from_array(whole, f"{name}_int8"), arrays.from_array(scale, f"{name}_scale")]
        cast = helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], to=onnx.TensorProto.FLOAT)
        return tensors, [cast, helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [f"{name}_wide"])]

    operators, more = restore_on_load(proto, narrow, "_wide")
    if not operators:
        raise ModelError(f"{source.name} has no convolutions or matrix products with float weights to narrow")
    return Narrowed(operators, (*left, *more))


def restore_on_load(proto: Any, narrow: Any, ending: str) -> tuple[int, Sequence[str]]:
    """Store weights otherwise, in place: ``narrow(name, value, output axis)`` gives tensors and nodes.

    The nodes make ``name + ending``, float32, out of constants only, so that a runtime folds them when it opens the
    file. Returns the operators that read such a weight, and those left out, with why.
    """
    onnx = importlib.import_module("onnx")
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    done: set[str] = set()
    left: list[str] = []
    nodes: list[Any] = []
    operators = 0
    for node in graph.node:
        name = node.input[1] if node.op_type in (*_PRODUCTS, *_CONVOLUTIONS) else ""
        if name not in stored or stored[name].data_type != onnx.TensorProto.FLOAT or len(stored[name].dims) < 2:
            nodes.append(node)
            continue
        value = onnx.numpy_helper.to_array(stored[name])
        if not np.isfinite(value).all():
            raise ModelError(f"a weight of {node.op_type} {value.shape} is not finite")
        if node.op_type == "ConvTranspose" and _groups(node) > 1:
            left.append("a transposed convolution in groups")
        else:
            if name not in done:
                axis = 0 if node.op_type in ("Conv", "Gemm") else value.ndim - 1 if node.op_type == "MatMul" else 1
                tensors, before = narrow(name, value, axis)
                graph.initializer.extend(tensors)
                nodes.extend(before)
                done.add(name)
            node.input[1] = name + ending
            operators += 1
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)
    return operators, left


def _groups(node: Any) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
