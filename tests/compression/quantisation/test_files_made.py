"""Every quantiser on four kinds of models: the same answers within bounds, smaller, stable, and saying what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from pipeline.artefacts.checking import check
from pipeline.artefacts.counting import size_of
from pipeline.artefacts.onnx_runtime import open_model
from pipeline.compression.quantisation import (
    bits_per_weight,
    halve,
    quantise_dynamic,
    quantise_static,
    quantise_weights,
)

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

Exported = Callable[[str], tuple[nn.Module, Path]]
MODELS = ("resnet", "mobilenet", "hf_vit", "native")
CONVOLUTIONAL = ("resnet", "mobilenet")
# How, the largest difference of a logit relative to the largest, the bits a weight takes
WAYS: dict[str, tuple[Callable[[Path, Path, list[np.ndarray]], object], float, float]] = {
    "static": (lambda s, t, b: quantise_static(s, t, b), 0.15, 11.0),
    "signed": (lambda s, t, b: quantise_static(s, t, b, kind="S8S8", method="entropy"), 0.4, 11.0),
    "dynamic": (lambda s, t, b: quantise_dynamic(s, t), 0.15, 9.0),
    "int8": (lambda s, t, b: quantise_weights(s, t, bits=8), 0.05, 12.0),
    "int8-blocks": (lambda s, t, b: quantise_weights(s, t, bits=8, block=32), 0.1, 14.0),
    "int4": (lambda s, t, b: quantise_weights(s, t), 0.5, 10.0),
    "int4-zeros": (lambda s, t, b: quantise_weights(s, t, block=64, symmetric=False), 0.5, 11.0),
    "float16": (lambda s, t, b: halve(s, t), 0.005, 16.0),
}
CASES = [
    (m, w) for m in MODELS for w in WAYS if not (m in CONVOLUTIONAL and w in ("int8-blocks", "int4", "int4-zeros"))
]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_file_is_close_smaller_and_stable(
    name: str, way: str, exported: Exported, batches: list[np.ndarray], tmp_path: Path
) -> None:
    _, source = exported(name)
    make, bound, bits = WAYS[way]
    target = tmp_path / "made.onnx"
    make(source, target, batches)
    logits = open_model(source)(batches[0])
    found = check(open_model(target), batches[0], logits)
    assert found.repeat_identical
    assert found.max_difference <= bound * found.scale
    assert found.batch_difference <= bound * found.scale
    assert found.max_difference > 0, "something was rounded"
    before, after = bits_per_weight(source), bits_per_weight(target)
    assert (before.bits, before.narrowed) == (32.0, 0.0)
    assert after.weights == before.weights and after.bits <= bits and after.narrowed > 0.8
    # Dozens of scales and nodes outweigh what the weights of so small a model save.
    assert size_of(target) < size_of(source) or way in ("static", "signed", "dynamic")


@pytest.mark.parametrize("way", WAYS)
def test_a_file_keeps_its_properties_and_says_what_was_done(
    way: str, exported: Exported, batches: list[np.ndarray], tmp_path: Path
) -> None:
    _, source = exported("native")
    WAYS[way][0](source, tmp_path / "made.onnx", batches)
    properties = {p.key: json.loads(p.value) for p in onnx.load(tmp_path / "made.onnx").metadata_props}
    assert len(properties["class_names"]) == 7 and properties["preprocessing"] == "none"
    assert properties["quantisation"]["how"] in ("static", "dynamic", "weight-only", "half")
    if way == "static":
        assert properties["quantisation"]["examples"] == sum(map(len, batches))
        assert properties["quantisation"]["types"] == "U8S8"
    assert str(tmp_path).encode() not in (tmp_path / "made.onnx").read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_int8_weights_are_what_numpy_rounds_them_to(name: str, exported: Exported, tmp_path: Path) -> None:
    """The file with its weights put back as floats, by numpy, is the file that was made, bit for bit."""
    _, source = exported(name)
    quantise_weights(source, tmp_path / "int8.onnx", bits=8)
    proto = onnx.load(source)
    stored = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in stored:
            tensor = stored[node.input[1]]
            value = onnx.numpy_helper.to_array(tensor)
            turned = node.op_type == "MatMul"
            rows = (value.T if turned else value).reshape(value.shape[1] if turned else value.shape[0], -1)
            scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
            rows = np.rint(rows / scale).astype(np.float32) * scale
            value = rows.T if turned else rows.reshape(value.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    onnx.save(proto, str(tmp_path / "expected.onnx"))
    inputs = np.random.default_rng(5).normal(size=(4, 3, 16, 16)).astype(np.float32)
    expected, found = (open_model(tmp_path / f"{n}.onnx")(inputs) for n in ("expected", "int8"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_equal_sources_give_equal_bytes(exported: Exported, batches: list[np.ndarray], tmp_path: Path) -> None:
    _, source = exported("native")
    for way in ("static", "int4", "int8", "float16"):
        for name in ("a", "b"):
            WAYS[way][0](source, tmp_path / f"{name}.onnx", batches)
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes(), way
