"""What a file claims is held against what is in it; what cannot be done is refused by name; artefacts that drift."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.artefacts.checking import check
from pipeline.artefacts.counting import size_of
from pipeline.artefacts.onnx_file import export_onnx
from pipeline.artefacts.onnx_runtime import open_model
from pipeline.compression.quantisation import (
    bits_per_weight,
    choose_activation_type,
    fusion,
    halve,
    overstated,
    quantise_dynamic,
    quantise_mixed,
    quantise_static,
    quantise_weights,
    to_bfloat16,
    unfused,
)
from pipeline.errors import ConfigError, ModelError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
Exported = Callable[[str], tuple[nn.Module, Path]]


def model_of(nodes: list[object], tensors: dict[str, np.ndarray], path: Path, width: int = 4) -> Path:
    """An ONNX file of ``nodes`` from input (N, width) to logits."""
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [onnx.helper.make_tensor_value_info("input", 1, ["batch", width])],
        [onnx.helper.make_tensor_value_info("logits", 1, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def test_int4_takes_about_four_bits_and_scales(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 256), nn.ReLU(), nn.Linear(256, 7)).eval()
    export_onnx(model, (3, 16, 16), tmp_path / "a.onnx", opset=18, metadata={})
    for block in (32, 64, 128):
        quantise_weights(tmp_path / "a.onnx", tmp_path / "b.onnx", block=block)
        stored = bits_per_weight(tmp_path / "b.onnx")
        assert stored.weights == 256 * (768 + 7) and stored.narrowed == 1
        assert stored.bits == pytest.approx(4 + 32 / block)  # float32 scales
        assert not overstated(tmp_path / "b.onnx", 4)
        assert size_of(tmp_path / "b.onnx") < 0.2 * size_of(tmp_path / "a.onnx")


def test_int4_kept_at_a_byte_a_weight_is_found(tmp_path: Path) -> None:
    """What torchao does on a CPU: sixteen levels, a byte each."""
    levels = np.random.default_rng(0).integers(-8, 8, (4, 64)).astype(np.int8)
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wide"], axis=1),
        onnx.helper.make_node("MatMul", ["input", "wide"], ["logits"]),
    ]
    tensors = {"w": levels, "scale": np.full(64, 0.1, np.float32), "zero": np.zeros(64, np.int8)}
    path = model_of(nodes, tensors, tmp_path / "a.onnx")
    assert bits_per_weight(path).bits == 8 + (32 + 8) / 4
    assert "claims 4 bits a weight and keeps 18.0" in overstated(path, 4)[0]


def test_weights_that_were_left_in_float_are_found(exported: Exported) -> None:
    _, source = exported("resnet")
    assert overstated(source, 8) and not overstated(source, 32)
    assert "0% of" in overstated(source, 8)[0]


def test_operators_that_stay_in_float_are_counted(
    exported: Exported, batches: list[np.ndarray], tmp_path: Path
) -> None:
    _, source = exported("resnet")
    every = ["operators not fused: 15 of 15 convolutions", "operators not fused: 1 of 1 matrix products"]
    assert unfused(source) == every
    quantise_static(source, tmp_path / "all.onnx", batches)
    assert fusion(tmp_path / "all.onnx").total == {"convolutions": 15, "matrix products": 1}
    quantise_static(source, tmp_path / "few.onnx", batches, operators=("Gemm",))
    assert unfused(tmp_path / "few.onnx") == ["operators not fused: 15 of 15 convolutions"]
    assert fusion(tmp_path / "few.onnx").unfused == 15


def test_the_fastest_kind_is_kept(exported: Exported, batches: list[np.ndarray], tmp_path: Path) -> None:
    _, source = exported("resnet")
    chosen = choose_activation_type(source, tmp_path / "a.onnx", batches, batch_sizes=(1, 4), seconds=1e-9)
    assert set(chosen.times) == {"float", "U8S8", "S8S8"} == set(chosen.fused) | {"float"}
    means = {k: np.prod([t.p50 for t in chosen.times[k].values()]) for k in chosen.fused}
    assert chosen.kind == min(means, key=lambda k: means[k]) and not chosen.skipped
    quantise_static(source, tmp_path / "b.onnx", batches, kind=chosen.kind)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_gemm_is_found_however_it_is_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b, bias = (rng.normal(size=s).astype(np.float32) for s in ((64, 64), (64, 64), (64,)))
    nodes = [
        onnx.helper.make_node("Gemm", ["input", "a", "bias"], ["x"], transB=1),
        onnx.helper.make_node("Gemm", ["x", "a"], ["y"], transB=1),  # the same weight again
        onnx.helper.make_node("Gemm", ["y", "b", "bias"], ["z"]),
        onnx.helper.make_node("Transpose", ["b"], ["turned"], perm=[1, 0]),
        onnx.helper.make_node("MatMul", ["z", "turned"], ["u"]),
        onnx.helper.make_node("Gemm", ["u", "b", "bias"], ["logits"], alpha=0.5),
    ]
    path = model_of(nodes, {"a": a, "b": b, "bias": bias}, tmp_path / "a.onnx", width=64)
    narrowed = quantise_weights(path, tmp_path / "b.onnx", bits=8, block=32)
    assert narrowed.operators == 4 and narrowed.left == ("a Gemm with a factor or a transposed input",)
    inputs = rng.normal(size=(3, 64)).astype(np.float32)
    x = inputs.astype(np.float64)
    expected = 0.5 * ((((x @ a.T + bias) @ a.T) @ b + bias) @ b.T) @ b + bias
    exact = open_model(path)(inputs)
    np.testing.assert_allclose(exact, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    for made in (tmp_path / "b.onnx", tmp_path / "c.onnx"):
        if made.name == "c.onnx":
            quantise_dynamic(path, made)
        assert np.abs(open_model(made)(inputs) - expected).max() < 0.06 * np.abs(expected).max()


class TestRefused:
    """What cannot be done says what it is."""

    def test_int4_of_a_convolutional_net(self, exported: Exported, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"no matrix products of weights.*convolutional net.*static"):
            quantise_weights(exported("mobilenet")[1], tmp_path / "a.onnx")
        assert not list(tmp_path.iterdir())

    def test_bfloat16_files(self, exported: Exported, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no bfloat16"):
            halve(exported("resnet")[1], tmp_path / "a.onnx", kind="bfloat16")

    def test_weights_beyond_float16(self, tmp_path: Path) -> None:
        node = onnx.helper.make_node("MatMul", ["input", "w"], ["logits"])
        path = model_of([node], {"w": np.full((4, 3), 1e6, np.float32)}, tmp_path / "a.onnx")
        with pytest.raises(ModelError, match="1e\\+06"):
            halve(path, tmp_path / "b.onnx")

    def test_a_file_without_weights(self, tmp_path: Path) -> None:
        path = model_of([onnx.helper.make_node("Relu", ["input"], ["logits"])], {}, tmp_path / "a.onnx")
        for make in (lambda t: quantise_weights(path, t, bits=8), lambda t: halve(path, t)):
            with pytest.raises(ModelError, match="no convolutions or matrix products"):
                make(tmp_path / "b.onnx")
        with pytest.raises(ModelError, match="no weights"):
            bits_per_weight(path)

    @pytest.mark.parametrize(
        ("options", "match"),
        [({"kind": "S4S4"}, "U8S8"), ({"method": "mean"}, "min-max")],
    )
    def test_unknown_names(self, options: dict[str, str], match: str, exported: Exported, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=match):
            quantise_static(exported("resnet")[1], tmp_path / "a.onnx", [], **options)
        with pytest.raises(ConfigError, match="bits of weights"):
            quantise_weights(exported("resnet")[1], tmp_path / "a.onnx", bits=3, block=5)

    def test_no_batches(self, exported: Exported, tmp_path: Path) -> None:
        with pytest.raises(ModelError):
            quantise_static(exported("resnet")[1], tmp_path / "a.onnx", [])

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").write_bytes(b"not a model")
        with pytest.raises(ModelError, match=r"a\.onnx"):
            quantise_weights(tmp_path / "a.onnx", tmp_path / "b.onnx")


def test_bfloat16_of_a_torch_model(exported: Exported) -> None:
    model, _ = exported("resnet")
    inputs = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    half = to_bfloat16(model)
    with torch.no_grad():
        expected, found = model(inputs), half(inputs)
    assert found.dtype == torch.float32 and next(model.parameters()).dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_an_artefact_that_drifts_after_its_first_call_is_caught(
    exported: Exported, batches: list[np.ndarray], tmp_path: Path
) -> None:
    """What inductor's freezing did to PT2E models: the first call right, later ones not."""
    _, source = exported("resnet")
    quantise_static(source, tmp_path / "a.onnx", batches)
    sound, expected = open_model(tmp_path / "a.onnx"), open_model(source)(batches[0])
    calls = iter(range(100))

    def drifting(inputs: np.ndarray) -> np.ndarray:
        return sound(inputs) + np.float32(0.01 if next(calls) else 0.0)

    def stale(inputs: np.ndarray) -> np.ndarray:
        return sound(inputs) if len(inputs) > 1 else sound(inputs) * np.float32(2)  # a plan made for another batch

    assert check(sound, batches[0], expected).repeat_identical
    assert "repeated calls on the same input differ" in check(drifting, batches[0], expected).problems()
    assert any("batch 1 and batch N" in problem for problem in check(stale, batches[0], expected).problems())


class TestMixed:
    def test_nothing_stays_in_float_where_nothing_has_to(
        self, exported: Exported, batches: list[np.ndarray], tmp_path: Path
    ) -> None:
        _, source = exported("resnet")
        made = quantise_mixed(source, tmp_path / "a.onnx", batches, max_drop=10.0, groups=4)
        assert made.met and list(made.scores) == [0] and len(made.scan) == 4
        assert not any(row["in_float"] for row in made.table())
        assert sum(len(row["layers"]) for row in made.table()) == 16
        assert not unfused(tmp_path / "a.onnx")

    def test_the_most_sensitive_stay_in_float(
        self, exported: Exported, batches: list[np.ndarray], tmp_path: Path
    ) -> None:
        _, source = exported("resnet")
        scores = iter([1.0, 0.0, 0.5, 0.95])  # the float file, then 0, 1 and 2 groups in float
        made = quantise_mixed(
            source, tmp_path / "a.onnx", batches, max_drop=0.1, groups=4, score=lambda predict: next(scores)
        )
        assert made.scores == {0: 0.0, 1: 0.5, 2: 0.95} and made.met
        assert [row.in_float for row in made.scan] == [True, True, False, False]
        assert [r.divergence for r in made.scan] == sorted((r.divergence for r in made.scan), reverse=True)
        left = sum(len(row.layers) for row in made.scan if row.in_float)
        graph = onnx.load(tmp_path / "a.onnx").graph
        stored = {t.name for t in graph.initializer}
        assert sum(n.op_type in ("Conv", "Gemm") and n.input[1] in stored for n in graph.node) == left == 8

    def test_a_bound_that_cannot_be_met(self, exported: Exported, batches: list[np.ndarray], tmp_path: Path) -> None:
        _, source = exported("resnet")
        scores = iter([1.0, 0.3, 0.5, 0.2])
        made = quantise_mixed(
            source, tmp_path / "a.onnx", batches, max_drop=0.0, groups=3, score=lambda predict: next(scores)
        )
        assert not made.met and sum(row.in_float for row in made.scan) == 1, "the best that was tried"
