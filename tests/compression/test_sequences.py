"""A language model compressed: files of fewer bits that take any number of tokens, measured in tokens' words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pipeline import compression, evaluation, training
from pipeline.artefacts.metadata import read_metadata
from pipeline.artefacts.onnx_file import export_onnx
from pipeline.artefacts.opening import open_artefact
from pipeline.compression import CompressConfig
from pipeline.compression.quantisation import quantise_weights
from pipeline.errors import ConfigError
from pipeline.evaluation import EvaluateConfig
from pipeline.models import build_model, load_weights
from pipeline.training import TrainConfig
from tests.sequences import VOCABULARY, uneven

DATA, SHAPE, ARGUMENTS = "tests.sequences:uneven", (12,), ("layers=1", "heads=1")
SHARED: dict[str, Any] = {"data": DATA, "threads": 1, "device": "cpu"}
RECIPE = """
[[steps]]
step = "quantise"
method = "weights"
bits = 4

[[steps]]
step = "export"
of = "baseline"
format = "pt2"
"""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("language") / "student"
    options: dict[str, Any] = {"alpha": 0.0, "beta": 1.0, "lr": 0.01, "epochs": 6, "seeds": 1}
    training.run(TrainConfig(**SHARED, **options, student="gpt-16", student_args=ARGUMENTS, out=out))
    return out


def settings(student: Path, out: Path, **options: Any) -> CompressConfig:
    shared: dict[str, Any] = {"runs": (student,), "allow": (DATA,), "out": out, "latency_seconds": 0.01}
    return CompressConfig(**{**SHARED, **shared, "latency_batch": (1, 2), **options})


@pytest.fixture(scope="module")
def compressed(student: Path) -> Path:
    out = student.parent / "compressed"
    compression.run(settings(student, out))
    return out


def model_of(student: Path) -> torch.nn.Module:
    model = build_model("gpt-16", {"layers": 1, "heads": 1}, classes=VOCABULARY, input_shape=SHAPE, discrete=True)
    load_weights(model, student / "seed-0" / "model.safetensors")
    return model.eval()


def test_files_of_fewer_bits_and_what_they_lose(student: Path, compressed: Path) -> None:
    table = json.loads((compressed / "table.json").read_text())
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == ["baseline", "int8-weights", "int4-weights", "int8-dynamic"]
    assert not any(row["skipped"] for row in rows.values())
    base = rows["baseline"]
    assert all(row["bytes"] < 0.6 * base["bytes"] for name, row in rows.items() if name != "baseline")
    assert rows["int8-weights"]["perplexity"] == pytest.approx(base["perplexity"], rel=0.01)
    assert rows["int8-dynamic"]["perplexity"] == pytest.approx(base["perplexity"], rel=0.05)
    assert rows["int4-weights"]["perplexity"] == pytest.approx(base["perplexity"], rel=0.2)
    assert base["check"]["max_difference"] < 1e-5 and base["macs"] > 0
    data = uneven()
    tested = data.rows("test")
    assert table["test_tokens"] == data.lengths[tested].sum() and table["test_examples"] == len(tested)
    tokens = torch.randint(0, VOCABULARY, (3, 29), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model_of(student)(tokens).numpy()
    found = open_artefact(compressed / "int8-weights.onnx").predict(tokens.numpy())
    assert found.shape == (3, 29, VOCABULARY), "longer than any sequence of the data"
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert read_metadata(compressed / "int4-weights.onnx")["discrete"] is True
    figures = json.loads((compressed / "metrics.json").read_text())
    assert figures["int4_weights_perplexity"] == round(rows["int4-weights"]["perplexity"], 4)
    card = (compressed / "README.md").read_text()
    assert "A causal language model" in card and f"| {table['test_tokens']} test tokens |" in card


def test_a_directory_of_compress_is_evaluated(compressed: Path, tmp_path: Path) -> None:
    report = evaluation.run(
        EvaluateConfig(**SHARED, allow=(DATA,), models=(str(compressed),), cache="none", cost=False, out=tmp_path / "e")
    )
    before = {row["name"]: row for row in json.loads((compressed / "table.json").read_text())["rows"]}
    for row in report.details["rows"]:
        assert row["perplexity"] == pytest.approx(before[row["name"]]["perplexity"], rel=1e-4)


def test_a_recipe_of_what_fits_and_what_does_not(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.evaluation.costs.STARTS", 1)
    (tmp_path / "r.toml").write_text(RECIPE)
    report = compression.run(settings(student, tmp_path / "out", recipe=tmp_path / "r.toml"))
    rows = {row["name"]: row for row in report.table["rows"]}
    assert list(rows) == ["baseline", "int4-weights", "pt2"] and (tmp_path / "out" / "pt2.pt2").is_file()
    assert rows["pt2"]["perplexity"] == pytest.approx(rows["baseline"]["perplexity"], rel=1e-5)
    (tmp_path / "bad.toml").write_text(
        '[[steps]]\nstep = "prune"\n[[steps]]\nstep = "quantise"\n[[steps]]\nstep = "export"\nof = "baseline"\n'
        'format = "executorch"\n'
    )
    with pytest.raises(ConfigError) as refused:
        compression.run(settings(student, tmp_path / "no", recipe=tmp_path / "bad.toml"))
    said = str(refused.value)
    for part in (
        "pruned (prune)",
        "pruned-int8 (quantise, static)",
        "(export, executorch)",
        "made has token sequences",
    ):
        assert part in said
    with pytest.raises(ConfigError, match=r"--prune: of classifiers"):
        compression.run(settings(student, tmp_path / "no", prune=(0.5,)))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_an_embedding_is_narrowed_by_rows(bits: int, tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"layers": 1, "heads": 1, "tied": tied}
    model = build_model("gpt-32", arguments, classes=200, input_shape=SHAPE, discrete=True).eval()
    with torch.no_grad():
        model.body.embedding.weight[3] = 0.0
    export_onnx(model, SHAPE, tmp_path / "f.onnx", opset=18, metadata={}, discrete=True)
    quantise_weights(tmp_path / "f.onnx", tmp_path / "q.onnx", bits=bits)
    proto = onnx.load(tmp_path / "q.onnx")
    rows = model.body.embedding.weight.detach().numpy().astype(np.float64)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    gathered = [held[node.input[0]] for node in proto.graph.node if node.op_type == "Gather" and node.input[0] in held]
    whole = next(array for array in gathered if array.dtype == np.int8)
    scale = next(array for array in gathered if array.shape == (200, 1))
    # Half a step of each row's own largest value, and a row of zeros stays one.
    steps = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-30) / 127
    assert (np.abs(whole * scale.astype(np.float64) - rows) <= steps * 0.501 + 1e-12).all()
    assert not whole[3].any() and not any(array.shape == (200, 32) and array.dtype == np.float32 for array in gathered)
    tokens = torch.randint(0, 200, (2, 9))
    with torch.no_grad():
        expected = model(tokens).numpy()
    found = open_artefact(tmp_path / "q.onnx").predict(tokens.numpy())
    assert np.abs(found - expected).mean() < (0.02 if bits == 8 else 0.4) * np.abs(expected).mean()
