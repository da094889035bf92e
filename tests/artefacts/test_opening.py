"""ONNX files by anybody: called by their own names, batches, and types, or refused by name; nothing else is read."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.artefacts import kinds
from pipeline.artefacts.kinds import in_batches, kind_of
from pipeline.artefacts.onnx_file import export_onnx
from pipeline.artefacts.onnx_reading import beside, read_proto
from pipeline.artefacts.opening import open_artefact
from pipeline.errors import ModelError
from pipeline.models import build_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

F32, F16, F64, I64 = 1, 10, 11, 7
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


def inputs(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)


def value(name: str, kind: int, shape: list[Any] | None) -> Any:
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def write(path: Path, graph: Any, **properties: str) -> Path:
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.helper.set_model_props(proto, properties)
    path.write_bytes(proto.SerializeToString())
    return path


def linear(path: Path, *, kind: int = F32, batch: Any = "n", weight: Any = None, after: str | None = None) -> Path:
    """y = x W, as somebody else would write it: names of their own, W an initialiser."""
    numpy_kind = {F32: np.float32, F16: np.float16, F64: np.float64}[kind]
    weight = onnx.numpy_helper.from_array(WEIGHT.astype(numpy_kind), "w") if weight is None else weight
    nodes = [onnx.helper.make_node("MatMul", ["pixels", "w"], ["hidden" if after else "scores"])]
    if after:
        nodes.append(onnx.helper.make_node(after, ["hidden"], ["scores"]))
    graph = onnx.helper.make_graph(
        nodes, "g", [value("pixels", kind, [batch, 4])], [value("scores", kind, [batch, 3])], [weight]
    )
    return write(path, graph)


def test_own_files_are_opened_with_what_they_say(tmp_path: Path) -> None:
    model = build_model("cnn-4", {}, classes=3, input_shape=(1, 8, 8)).eval()
    metadata = {"softlabels": 1, "class_names": ["a", "b", "c"]}
    export_onnx(model, (1, 8, 8), tmp_path / "m.onnx", opset=18, metadata=metadata)
    artefact = open_artefact(tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(artefact.predict(x), model(torch.from_numpy(x)), atol=1e-5)
    assert (artefact.kind, artefact.input_shape, artefact.classes, artefact.batch) == (".onnx", (1, 8, 8), 3, None)
    assert artefact.metadata == metadata and artefact.runtime.startswith("onnxruntime ")


@pytest.mark.parametrize("kind", [F32, F16, F64])
def test_other_names_and_precisions(kind: int, tmp_path: Path) -> None:
    artefact = open_artefact(linear(tmp_path / "theirs.onnx", kind=kind))
    found = artefact.predict(inputs(5))
    assert found.dtype == np.float32 and artefact.metadata == {}
    np.testing.assert_allclose(found, inputs(5) @ WEIGHT, rtol=2e-3 if kind == F16 else 1e-6, atol=2e-2)


def test_a_fixed_batch_is_split_and_filled(tmp_path: Path) -> None:
    artefact = open_artefact(linear(tmp_path / "fixed.onnx", batch=4))
    assert artefact.batch == 4
    for count in (1, 4, 11):
        np.testing.assert_allclose(artefact.predict(inputs(count)), inputs(count) @ WEIGHT, rtol=1e-5)


def test_splitting_calls_as_often_as_needed() -> None:
    calls: list[int] = []

    def call(x: np.ndarray) -> np.ndarray:
        calls.append(len(x))
        return x

    np.testing.assert_array_equal(in_batches(call, 4, fill=True)(inputs(9)), inputs(9))
    np.testing.assert_array_equal(in_batches(call, 4, fill=False)(inputs(9)), inputs(9))
    assert calls == [4, 4, 4, 4, 4, 1]


def test_the_first_output_of_two_dimensions_is_taken(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("ArgMax", ["x"], ["label"], axis=1),
        onnx.helper.make_node("Unsqueeze", ["x", "axes"], ["map"]),
        onnx.helper.make_node("Neg", ["x"], ["logits"]),
        onnx.helper.make_node("Exp", ["x"], ["embedding"]),
    ]
    axes = onnx.numpy_helper.from_array(np.array([1], dtype=np.int64), "axes")
    outputs = [value("label", I64, ["n", 1]), value("map", F32, ["n", 1, 4])]
    outputs += [value("logits", F32, ["n", 4]), value("embedding", F32, ["n", 4])]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", F32, ["n", 4])], outputs, [axes])
    artefact = open_artefact(write(tmp_path / "many.onnx", graph))
    np.testing.assert_array_equal(artefact.predict(inputs(3)), -inputs(3))


def test_free_sizes_are_said_and_wrong_ones_named(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("GlobalMaxPool", ["x"], ["p"]), onnx.helper.make_node("Flatten", ["p"], ["y"])],
        "g",
        [value("x", F32, ["n", 3, "h", "w"])],
        [value("y", F32, None)],
    )
    artefact = open_artefact(write(tmp_path / "free.onnx", graph))
    assert (artefact.input_shape, artefact.classes) == (None, None)
    assert artefact.predict(np.zeros((2, 3, 5, 7), dtype=np.float32)).shape == (2, 3)
    with pytest.raises(ModelError, match=r"takes inputs of \?x3x\?x\?.*cannot answer \(2, 4, 5, 7\)"):
        artefact.predict(np.zeros((2, 4, 5, 7), dtype=np.float32))


def test_other_signatures_are_named(tmp_path: Path) -> None:
    x, y = value("x", F32, ["n", 4]), value("y", F32, ["n", 4])
    add = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "z"], ["y"])], "g", [x, value("z", F32, [1])], [y])
    cast = onnx.helper.make_graph(
        [onnx.helper.make_node("Cast", ["x"], ["y"], to=F32)], "g", [value("x", I64, ["n", 4, 4])], [y]
    )
    tokens = onnx.helper.make_graph(
        [onnx.helper.make_node("Cast", ["x"], ["y"], to=F32)], "g", [value("x", I64, ["n", 4])], [y]
    )
    only = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0)], "g", [x], [value("s", F32, [])]
    )
    for name, graph, said in (
        ("add", add, r"one input; it takes 2 \(x, z\)"),
        ("cast", cast, r"batches of floats, or of tokens \(batch, length\); its input x is INT64"),
        ("tokens", tokens, r"an output of shape \(batch, length, vocabulary\); it has y \(None, 4\)"),
        ("only", only, r"shape \(batch, classes\); it has s \(\)"),
    ):
        with pytest.raises(ModelError, match=said):
            open_artefact(write(tmp_path / f"{name}.onnx", graph))


@pytest.mark.parametrize("last", ["Softmax", "Sigmoid"])
def test_probabilities_are_not_taken_for_logits(last: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"output of {last}, which gives probabilities"):
        open_artefact(linear(tmp_path / "p.onnx", after=last))
    assert open_artefact(linear(tmp_path / "l.onnx", after="LogSoftmax")).classes == 3


def external(location: str) -> Any:
    tensor = onnx.TensorProto(name="w", data_type=F32, dims=[4, 3], data_location=1)
    for key, text in (("location", location), ("offset", "0"), ("length", str(WEIGHT.nbytes))):
        tensor.external_data.add(key=key, value=text)
    return tensor


def test_weights_beside_a_file_are_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "any name.bin").write_bytes(WEIGHT.tobytes())
    path = linear(tmp_path / "m.onnx", weight=external("any name.bin"))
    artefact = open_artefact(path)
    np.testing.assert_allclose(artefact.predict(inputs(2)), inputs(2) @ WEIGHT, rtol=1e-5)
    assert artefact.files == (path, tmp_path / "any name.bin")
    assert artefact.bytes == path.stat().st_size + WEIGHT.nbytes
    (tmp_path / "any name.bin").unlink()
    with pytest.raises(ModelError, match=r"any name\.bin, which is missing"):
        open_artefact(path)


@pytest.mark.parametrize(
    "location", ["../secret.bin", "link.bin", "sub/../../secret.bin", "ABSOLUTE", "..\\secret.bin"]
)
def test_weights_elsewhere_are_not_read(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    os.symlink(tmp_path / "secret.bin", folder / "link.bin")
    location = str(tmp_path / "secret.bin") if location == "ABSOLUTE" else location
    with pytest.raises(ModelError, match="outside its folder; it was not opened"):
        open_artefact(linear(folder / "m.onnx", weight=external(location)))


def test_weights_hidden_in_attributes_and_inner_graphs_are_found(tmp_path: Path) -> None:
    """ONNX Runtime looks at initialisers; a Constant's tensor or one inside an If counts as much."""
    constant = onnx.helper.make_node("Constant", [], ["w"], value=external("../secret.bin"))
    inner = onnx.helper.make_graph([constant], "then", [], [value("w", F32, [4, 3])])
    condition = onnx.numpy_helper.from_array(np.array(True), "yes")
    branch = onnx.helper.make_node("If", ["yes"], ["w2"], then_branch=inner, else_branch=inner)
    product = onnx.helper.make_node("MatMul", ["x", "w2"], ["y"])
    graph = onnx.helper.make_graph(
        [branch, product], "g", [value("x", F32, ["n", 4])], [value("y", F32, ["n", 3])], [condition]
    )
    path = write(tmp_path / "m.onnx", graph)
    with pytest.raises(ModelError, match="outside its folder"):
        beside(path, read_proto(path))


def test_properties_of_others_are_no_metadata(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {"class_names": json.dumps(["x"])})
    onnx.save(proto, path)
    assert open_artefact(path).metadata == {}
    onnx.helper.set_model_props(proto, {"softlabels": "no JSON"})
    onnx.save(proto, path)
    assert open_artefact(path).metadata == {}


class Payload:
    ran = False

    def __reduce__(self) -> Any:
        return setattr, (Payload, "ran", True)


def test_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    def made(name: str, data: bytes = b"x") -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:  # what torch.jit.save writes looks like this
        archive.writestr("script/code/__torch__.py", "class M(Module): ...")
        archive.writestr("script/data.pkl", b"")
    for path, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "absent.onnx", "there is none at"),
        (made("m.pkl", pickle.dumps(Payload())), "checkpoint or pickle"),
        (made("m.safetensors"), "weights alone"),
        (made("m.tflite"), "ends in '.tflite'"),
        (made("model"), "without an ending"),
        (tmp_path / "script.pt", "a TorchScript archive, which is a program"),
    ):
        with pytest.raises(ModelError, match=said):
            open_artefact(path)
    with pytest.raises(ModelError, match="should be an ONNX file"):
        open_artefact(made("pickle.onnx", pickle.dumps(Payload())))
    assert not Payload.ran
    assert kind_of(made("UPPER.ONNX")) == kinds.ONNX
