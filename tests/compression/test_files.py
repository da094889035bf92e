"""ONNX files: what is in them, what is not, and how they behave when they are run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.artefacts.checking import Predictor, check
from pipeline.artefacts.counting import size_of
from pipeline.artefacts.latency import measure
from pipeline.artefacts.onnx_file import export_onnx
from pipeline.artefacts.onnx_runtime import open_model
from pipeline.compression import quantisation
from pipeline.errors import ModelError
from pipeline.models import build_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
SHAPE = (1, 8, 8)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("cnn-4", {}, classes=3, input_shape=SHAPE)
    model.train()
    with torch.no_grad():
        model(torch.from_numpy(images(32)))  # batch norms with statistics of their own
    return model.eval()


@pytest.fixture(scope="module")
def exported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, SHAPE, path, opset=18, metadata={"class_names": ["a", "b", "c"], "preprocessing": "none"})
    return path


@pytest.fixture(scope="module")
def quantised(exported: Path) -> Path:
    path = exported.with_name("int8.onnx")
    quantisation.quantise_static(exported, path, [images(64)[:32], images(64)[32:]])
    return path


def logits(model: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(inputs)).numpy())


def test_the_file_gives_the_logits_of_the_model_at_any_batch(model: nn.Module, exported: Path) -> None:
    predict = open_model(exported)
    found = check(predict, images(17), logits(model, images(17)))
    assert found.faithful and not found.problems()
    assert predict(images(1)).shape == (1, 3)


def test_one_file_with_a_free_batch_and_nothing_of_this_machine(exported: Path) -> None:
    assert [p.name for p in exported.parent.glob("model*")] == ["model.onnx"]
    proto = onnx.load(exported)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert {p.key: json.loads(p.value) for p in proto.metadata_props}["class_names"] == ["a", "b", "c"]
    raw = exported.read_bytes()
    assert str(Path(__file__).parent.parent).encode() not in raw
    assert b"stack_trace" not in raw


def test_equal_models_give_equal_bytes(model: nn.Module, exported: Path, tmp_path: Path) -> None:
    metadata = {"class_names": ["a", "b", "c"], "preprocessing": "none"}
    export_onnx(model, SHAPE, tmp_path / "again.onnx", opset=18, metadata=metadata)
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()
    for name in ("x", "y"):
        quantisation.quantise_static(exported, tmp_path / f"{name}.onnx", [images(32)])
    assert (tmp_path / "x.onnx").read_bytes() == (tmp_path / "y.onnx").read_bytes()


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] if x.sum() > 0 else x.flatten(1)[:, 3:6]

    with pytest.raises(ModelError, match="Branching"):
        export_onnx(Branching(), SHAPE, tmp_path / "no.onnx", opset=18, metadata={})
    assert not list(tmp_path.iterdir())


def test_an_operator_set_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--opset 99"):
        export_onnx(nn.Flatten(), SHAPE, tmp_path / "no.onnx", opset=99, metadata={})


def test_int8_is_unsigned_activations_and_signed_weights_per_channel(quantised: Path) -> None:
    proto = onnx.load(quantised)
    kinds = {i.data_type for i in proto.graph.initializer}
    assert {onnx.TensorProto.UINT8, onnx.TensorProto.INT8} <= kinds
    weights = [i for i in proto.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 4]
    scales = [i for i in proto.graph.initializer if i.data_type == onnx.TensorProto.FLOAT and list(i.dims) == [4]]
    assert weights and scales, "a scale for each output channel"
    assert {p.key for p in proto.metadata_props} == {"class_names", "preprocessing", "quantisation"}, "carried over"


def test_int8_stays_close_and_stable(model: nn.Module, quantised: Path) -> None:
    found = check(open_model(quantised), images(32), logits(model, images(32)))
    assert found.repeat_identical and not found.problems()
    assert 0 < found.max_difference < 0.1 * found.scale
    assert not found.faithful, "int8 is not mistaken for an exact export"


def test_int8_is_smaller_where_weights_dominate(tmp_path: Path) -> None:
    wide = build_model("mlp-512", {}, classes=3, input_shape=SHAPE).eval()
    export_onnx(wide, SHAPE, tmp_path / "wide.onnx", opset=18, metadata={})
    quantisation.quantise_static(tmp_path / "wide.onnx", tmp_path / "int8.onnx", [images(8)])
    quantisation.quantise_dynamic(tmp_path / "wide.onnx", tmp_path / "dynamic.onnx")
    assert size_of(tmp_path / "int8.onnx") < 0.35 * size_of(tmp_path / "wide.onnx")
    assert size_of(tmp_path / "dynamic.onnx") < 0.35 * size_of(tmp_path / "wide.onnx")
    assert open_model(tmp_path / "dynamic.onnx")(images(2)).shape == (2, 3)


def test_a_batch_that_would_be_fixed_is_refused(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] + torch.zeros(1, 3).expand(len(x), -1)

    with pytest.raises(ModelError, match=r"Counting would be fixed at 2.*len\(x\)"):
        export_onnx(Counting(), SHAPE, tmp_path / "no.onnx", opset=18, metadata={})
    assert not list(tmp_path.iterdir())


class TestCheck:
    """What makes a file unusable is found, whatever made it."""

    source = np.array([[1.0, -2.0], [0.5, 3.0]], dtype=np.float32)
    inputs = source.copy()

    def test_a_sound_one(self) -> None:
        found = check(lambda x: x.copy(), self.inputs, self.source)
        assert (found.faithful, found.problems()) == (True, [])

    def test_calls_that_drift(self) -> None:
        calls = iter(range(100))
        found = check(lambda x: x + np.float32(1e-3) * next(calls), self.inputs, self.source)
        assert "repeated calls on the same input differ" in found.problems()

    def test_a_batch_that_matters(self) -> None:
        found = check(lambda x: x - x.mean(axis=0), self.inputs, self.source - self.source.mean(axis=0))
        assert any("batch 1 and batch N" in problem for problem in found.problems())

    def test_other_logits(self) -> None:
        assert not check(lambda x: x + np.float32(0.01), self.inputs, self.source).faithful

    @pytest.mark.parametrize("wrong", [lambda x: x[:, :1], lambda x: x * np.float32(np.nan)])
    def test_shapes_and_values(self, wrong: Predictor) -> None:
        with pytest.raises(ModelError, match="finite"):
            check(wrong, self.inputs, self.source)


def test_latency_takes_turns_and_knows_its_batch() -> None:
    calls: list[tuple[str, int]] = []

    def model(name: str) -> Predictor:
        def predict(inputs: np.ndarray) -> np.ndarray:
            calls.append((name, len(inputs)))
            return inputs

        return predict

    found = measure({"a": model("a"), "b": model("b")}, images(3), [1, 5], seconds=1e-9)
    assert set(found) == {"a", "b"} and set(found["a"]) == {1, 5}
    assert {size for _, size in calls} == {1, 5}
    timed = [name for name, size in calls if size == 5][6:]
    assert timed[:4] == ["a", "b", "b", "a"], "neither always goes first"
    assert all(0 <= latency.p50 <= latency.p95 for sizes in found.values() for latency in sizes.values())
