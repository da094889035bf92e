"""``.pt2`` files: what is in them, what is not, and that nothing in one runs unless somebody vouches for it."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.artefacts.checking import check
from pipeline.artefacts.opening import open_artefact
from pipeline.artefacts.pt2_archive import extra_of, weights_of
from pipeline.artefacts.pt2_file import export_pt2, open_pt2
from pipeline.errors import ModelError
from pipeline.models import build_model

SHAPE = (1, 8, 8)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)


def logits(model: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(inputs)).float().numpy())


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("cnn-4", {}, classes=3, input_shape=SHAPE)
    model.train()
    with torch.no_grad():
        model(torch.from_numpy(images(32)))
    return model.eval()


@pytest.fixture(scope="module")
def written(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    return path, export_pt2(model, SHAPE, path, {"softlabels": 1, "class_names": ["a", "b", "c"]})


def test_the_file_gives_the_logits_of_the_model_at_any_batch(model: nn.Module, written: tuple[Path, str]) -> None:
    path, digest = written
    artefact = open_artefact(path, trusted=[digest])
    assert check(artefact.predict, images(17), logits(model, images(17))).faithful
    assert artefact.predict(images(1)).shape == (1, 3) and artefact.predict(images(1)).dtype == np.float32
    assert (artefact.input_shape, artefact.classes, artefact.batch) == (SHAPE, 3, None)
    assert artefact.runtime == f"torch {torch.__version__}" and artefact.sha256 == digest
    assert artefact.metadata["class_names"] == ["a", "b", "c"]
    assert (artefact.files, artefact.bytes) == ((path,), path.stat().st_size)


def test_weights_in_bfloat16_take_and_give_float32(tmp_path: Path) -> None:
    model = build_model("mlp-16", {}, classes=3, input_shape=SHAPE).eval().bfloat16()
    digest = export_pt2(model, SHAPE, tmp_path / "m.pt2", {})
    found = open_pt2(tmp_path / "m.pt2", trusted=[digest]).predict(images(5))
    with torch.no_grad():
        expected = model(torch.from_numpy(images(5)).bfloat16()).float().numpy()
    np.testing.assert_array_equal(found, expected)
    assert {stored.values.dtype.itemsize for stored in weights_of(tmp_path / "m.pt2")} == {2}


def test_equal_models_give_equal_bytes(model: nn.Module, written: tuple[Path, str], tmp_path: Path) -> None:
    metadata = {"class_names": ["a", "b", "c"], "softlabels": 1}
    assert export_pt2(model, SHAPE, tmp_path / "elsewhere.pt2", metadata) == written[1]


def test_nothing_of_this_machine(written: tuple[Path, str]) -> None:
    raw = written[0].read_bytes()
    for text in (str(Path(__file__).resolve().parents[2]), torch.__file__, "stack_trace", "pipeline.models"):
        assert text.encode() not in raw, text


def test_no_data_in_the_file(tmp_path: Path) -> None:
    """A program embeds the whole storage of its example: here it has none but zeros of its own."""
    data = images(500)

    class Sees(nn.Module):
        """A model that was calibrated on data, of which it keeps a mean alone."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 3)
            self.register_buffer("mean", torch.from_numpy(data).mean())

        def forward(self, x: Tensor) -> Tensor:
            return self.linear((x - self.mean).flatten(1))

    model = Sees().eval()
    export_pt2(model, SHAPE, tmp_path / "m.pt2", {})
    raw = (tmp_path / "m.pt2").read_bytes()
    assert all(data[i].tobytes()[:64] not in raw for i in range(500))
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert len(raw) < weights + 20_000 < data.nbytes, "the weights and a description of the graph"
    # The leak that this guards against is real: it is what torch.export.save does with a slice of the data.
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, (torch.from_numpy(data)[:2],)), buffer)
    assert data[499].tobytes() in buffer.getvalue()


def test_size_is_that_of_the_weights_where_they_dominate(tmp_path: Path) -> None:
    wide = build_model("mlp-4096", {}, classes=3, input_shape=SHAPE).eval()
    export_pt2(wide, SHAPE, tmp_path / "m.pt2", {})
    weights = sum(t.numel() * t.element_size() for t in wide.state_dict().values())
    assert weights < (tmp_path / "m.pt2").stat().st_size < 1.05 * weights


def test_several_outputs_and_a_fixed_batch_of_others(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return x * 2, {"logits": x.flatten(1)[:, :5], "more": x.flatten(1)}

    torch.export.save(torch.export.export(Two(), (torch.zeros(4, *SHAPE),)), tmp_path / "two.pt2")
    artefact = open_artefact(tmp_path / "two.pt2", trusted=[sha(tmp_path / "two.pt2")])
    assert (artefact.batch, artefact.classes, artefact.metadata) == (4, 5, {})
    np.testing.assert_array_equal(artefact.predict(images(7)), images(7).reshape(7, -1)[:, :5])


def test_other_signatures_are_named(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    for name, module, inputs, said in (
        ("two", Sum(), (torch.zeros(2, 3), torch.zeros(2, 3)), "one input"),
        ("ints", nn.Embedding(5, 3), (torch.zeros(2, dtype=torch.long),), "one input of floats"),
        ("map", nn.ReLU(), (torch.zeros(2, *SHAPE),), r"shape \(batch, classes\)"),
    ):
        path = tmp_path / f"{name}.pt2"
        torch.export.save(torch.export.export(module, inputs), path)
        with pytest.raises(ModelError, match=said):
            open_artefact(path, trusted=[sha(path)])


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] if x.sum() > 0 else x.flatten(1)[:, 3:6]

    with pytest.raises(ModelError, match="Branching"):
        export_pt2(Branching(), SHAPE, tmp_path / "no.pt2", {})
    assert not list(tmp_path.iterdir())


def sha(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


class Payload:
    """What a hostile pickle is made of: reading it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.mark), "w")


def rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Write ``path`` again, as torch's own writer would, with some members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    for name, data in members.items():
        if name not in (".data/version", "byteorder", ".data/serialization_id"):
            data = change(name, data)
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    path.write_bytes(buffer.getvalue())


def in_sample_inputs(mark: Path) -> Callable[[str, bytes], bytes]:
    buffer = io.BytesIO()
    torch.save((Payload(mark),), buffer)
    return lambda name, data: buffer.getvalue() if name.startswith("data/sample_inputs/") else data


def in_a_weight(mark: Path) -> Callable[[str, bytes], bytes]:
    buffer = io.BytesIO()
    torch.save(Payload(mark), buffer)

    def change(name: str, data: bytes) -> bytes:
        if name == "data/weights/model_weights_config.json":
            config = json.loads(data)
            next(iter(config["config"].values())).update(use_pickle=True)
            return json.dumps(config).encode()
        return buffer.getvalue() if name == "data/weights/weight_0" else data

    return change


def in_an_expression(mark: Path) -> Callable[[str, bytes], bytes]:
    code = f"""[].append(__import__('pathlib').Path('{mark}').touch())"""

    def change(name: str, data: bytes) -> bytes:
        text = re.sub(r'"expr_str": "[^"]*"', lambda _: f'"expr_str": "{code}"', data.decode(errors="ignore"))
        return text.encode() if name == "models/model.json" else data

    return change


@pytest.mark.parametrize("hide", [in_sample_inputs, in_a_weight, in_an_expression])
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_file_runs_nothing(
    hide: Callable[[Path], Callable[[str, bytes], bytes]], written: tuple[Path, str], tmp_path: Path
) -> None:
    path, mark = tmp_path / "hostile.pt2", tmp_path / "ran"
    path.write_bytes(written[0].read_bytes())
    rewritten(path, hide(mark))
    with pytest.raises(ModelError, match=f"not loaded.*{sha(path)}"):
        open_artefact(path, trusted=[written[1]])  # vouched for another file
    extra_of(path)
    if hide is in_a_weight:
        with pytest.raises(ModelError, match="pickle, which is not read"):
            weights_of(path)
    else:
        weights_of(path)
    assert not mark.exists()
    # And the danger is real: torch's own loader runs each of them.
    with pytest.raises(Exception), _silenced():  # noqa: B017 - how it fails afterwards is torch's business
        torch.export.load(io.BytesIO(path.read_bytes()))
        raise RuntimeError("loaded without a murmur")
    assert mark.exists()


def _silenced() -> object:
    from pipeline.artefacts.onnx_file import quiet

    return quiet()


def test_what_is_no_program_is_named(written: tuple[Path, str], tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    path.write_bytes(b"no archive")
    with pytest.raises(ModelError, match=r"should be a \.pt2"):
        extra_of(path)
    with pytest.raises(ModelError, match=r"should be a \.pt2"):
        open_artefact(path, trusted=[sha(path)])
    torch.save({"a": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="no exported program"):
        open_artefact(path, trusted=[sha(path)])
    assert extra_of(path) == {}
    with pytest.raises(ModelError, match="holds no data/weights"):
        weights_of(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/extra/softlabels.json", b" " * 10_000_000)
    with pytest.raises(ModelError, match=r"no sound \.pt2"):
        extra_of(path)


def test_threads_are_put_back(model: nn.Module, written: tuple[Path, str]) -> None:
    before = torch.get_num_threads()
    open_pt2(written[0], threads=before + 1, trusted=[written[1]]).predict(images(1))
    assert torch.get_num_threads() == before
