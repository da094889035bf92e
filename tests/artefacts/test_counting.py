"""Parameters, non-zeros and bits are those of the file: float, pruned, int8, int4, with weights beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.artefacts.counting import counts_of, nonzeros_of, parameters_of, size_of
from pipeline.artefacts.onnx_file import export_onnx
from pipeline.artefacts.pt2_file import export_pt2
from pipeline.errors import ModelError
from pipeline.models import build_model, save_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A perceptron without biases of value zero, with a third of its first weights set to zero."""
    torch.manual_seed(0)
    model = build_model("mlp-64", {}, classes=3, input_shape=SHAPE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.001)
        first = next(iter(model.parameters()))
        first.flatten()[: first.numel() // 3] = 0
    return model


@pytest.fixture(scope="module")
def exported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("counting") / "m.onnx"
    export_onnx(model, SHAPE, path, opset=21, metadata={})
    return path


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def nonzeros(model: nn.Module) -> int:
    return sum(int((p != 0).sum()) for p in model.parameters())


def test_a_float_file_counts_as_its_model(model: nn.Module, exported: Path, tmp_path: Path) -> None:
    export_pt2(model, SHAPE, tmp_path / "m.pt2", {})
    for path in (exported, tmp_path / "m.pt2"):
        found = counts_of(path)
        assert (found.parameters, found.nonzeros, found.bits) == (parameters(model), nonzeros(model), 32.0)
    assert (parameters_of(exported), nonzeros_of(exported)) == (parameters(model), nonzeros(model))


def test_statistics_of_batch_norm_are_no_parameters(tmp_path: Path) -> None:
    model = build_model("cnn-4", {}, classes=3, input_shape=SHAPE).eval()
    export_pt2(model, SHAPE, tmp_path / "m.pt2", {})
    assert counts_of(tmp_path / "m.pt2").parameters == parameters(model)
    norm = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()).eval()
    export_onnx(norm, SHAPE, tmp_path / "n.onnx", opset=18, metadata={})
    assert counts_of(tmp_path / "n.onnx").parameters == 2


def test_bfloat16_takes_16_bits_and_its_zeros_are_seen(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        model[1].weight[0] = -0.0  # type: ignore[index]
        model[1].bias.fill_(1.0)  # type: ignore[union-attr, operator]
    export_pt2(model.bfloat16(), SHAPE, tmp_path / "m.pt2", {})
    found = counts_of(tmp_path / "m.pt2")
    assert (found.parameters, found.nonzeros, found.bits) == (195, 131, 16.0)


def test_tied_weights_count_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(64, 64, bias=False)
            self.b = nn.Linear(64, 64, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.b(self.a(x.flatten(1))))

    model = Tied().eval()
    export_pt2(model, SHAPE, tmp_path / "m.pt2", {})
    assert counts_of(tmp_path / "m.pt2").parameters == 64 * 64


def quantised(exported: Path, path: Path, how: str, **given: Any) -> Path:
    from onnxruntime import quantization

    from pipeline.artefacts.onnx_file import quiet

    class Batches(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        batches = iter([{"input": np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    with quiet():
        if how != "dynamic":
            form = quantization.QuantFormat.QDQ if how == "static" else quantization.QuantFormat.QOperator
            given |= {"activation_type": quantization.QuantType.QUInt8, "quant_format": form}
            quantization.quantize_static(str(exported), str(path), Batches(), **given)
        else:
            quantization.quantize_dynamic(str(exported), str(path), **given)
    return path


@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("how", ["static", "operators", "dynamic"])
def test_int8_keeps_parameters_and_zeros(how: str, kind: str, model: nn.Module, exported: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType

    path = quantised(
        exported,
        tmp_path / "q.onnx",
        how,
        weight_type=QuantType[kind],
        per_channel=kind == "QInt8",
        op_types_to_quantize=["MatMul", "Gemm"],
    )
    found = counts_of(path)
    assert found.parameters == parameters(model), "scales and zero points are none"
    zeros = next(iter(model.parameters())).numel() // 3
    # Zero stays zero whatever its zero point is; some small weights are rounded to it.
    assert zeros <= found.parameters - found.nonzeros < zeros + 0.05 * parameters(model)
    assert 8 < found.bits < 12


@pytest.mark.parametrize("symmetric", [True, False])
def test_int4_is_two_to_a_byte(symmetric: bool, model: nn.Module, exported: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    from pipeline.artefacts.onnx_file import quiet

    weight = np.random.default_rng(0).normal(size=(48, 10)).astype(np.float32)
    weight[:16] = 0
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["n", 48])],
        [onnx.helper.make_tensor_value_info("y", 1, ["n", 10])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    with quiet():
        tool = nbits.MatMulNBitsQuantizer(proto, block_size=16, is_symmetric=symmetric)
        tool.process()
    tool.model.save_model_to_file(str(tmp_path / "m.onnx"))
    found = counts_of(tmp_path / "m.onnx")
    assert found.parameters == 480
    assert 4 < found.bits <= 4 + (32 + 8) / 16 + 1, "a scale of 32 bits, and a zero point, for each block of 16"
    # Written independently: dequantise by running the file on the identity.
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    back = session.run(None, {"x": np.eye(48, dtype=np.float32)})[0]
    assert found.nonzeros == int((np.abs(back) > 1e-6).sum()) < 480 - 159


def test_int4_tensors_of_onnx_itself(tmp_path: Path) -> None:
    """QuantizeLinear's int4, odd in number so that the last half byte is padding, with zero points in blocks."""
    values = np.array([[0, 1, -8], [7, 2, 0], [2, 2, 2]], dtype=np.int8)
    points = np.array([[0, 1, 0], [2, 2, 3]], dtype=np.int8)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0, block_size=2),
            onnx.helper.make_node("MatMul", ["x", "d"], ["y"]),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["n", 3])],
        [onnx.helper.make_tensor_value_info("y", 1, ["n", 3])],
        [
            onnx.helper.make_tensor("w", onnx.TensorProto.INT4, (3, 3), values.flatten().tolist()),
            onnx.numpy_helper.from_array(np.ones((2, 3), dtype=np.float32), "s"),
            onnx.helper.make_tensor("z", onnx.TensorProto.INT4, (2, 3), points.flatten().tolist()),
        ],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    found = counts_of(tmp_path / "m.onnx")
    expected = int((values != points[[0, 0, 1]]).sum())
    assert (found.parameters, found.nonzeros) == (9, expected)
    assert found.bits == pytest.approx((9 * 4 + 6 * 32 + 6 * 4) / 9)


def test_weights_beside_a_file_count(exported: Path, tmp_path: Path) -> None:
    proto = onnx.load(exported)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="other name.bin", size_threshold=0)
    assert size_of(tmp_path / "m.onnx") == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert counts_of(tmp_path / "m.onnx") == counts_of(exported)


def test_what_cannot_be_counted_is_named(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "m.pte").write_bytes(b"12345")
    with pytest.raises(ModelError, match=r"can be counted in \.onnx and \.pt2"):
        counts_of(tmp_path / "m.pte")
    assert size_of(tmp_path / "m.pte") == 5
    save_weights(tmp_path / "m.safetensors", model)
    assert size_of(tmp_path / "m.safetensors") == (tmp_path / "m.safetensors").stat().st_size
    with pytest.raises(ModelError, match="there is none"):
        size_of(tmp_path / "absent.pt2")
