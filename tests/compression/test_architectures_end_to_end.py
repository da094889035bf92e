"""The whole stage on students that other people have: what can be done is done, what cannot says why in its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import compression, training
from pipeline.compression import CompressConfig
from pipeline.datasets import load_dataset
from pipeline.models import logits_of
from pipeline.models.weights import read_state
from pipeline.runs import load_trained, read_run
from pipeline.training import TrainConfig
from tests import architectures
from tests.small_pipeline import COUNTS

SIZES = (3, 16, 16)

CONVOLUTIONS = """
[[steps]]
step = "prune"
ratio = 0.5
epochs = 0

[[steps]]
step = "finetune"
epochs = 1

[[steps]]
step = "quantise"
activations = "uint8"

[[steps]]
step = "export"
of = "pruned-finetuned"
format = "pt2"
"""
ATTENTION = """
[[steps]]
step = "prune"
what = "heads"
ratio = 0.5
multiple = 1
epochs = 1

[[steps]]
step = "quantise"
activations = "uint8"

[[steps]]
step = "quantise"
of = "fewer-heads"
method = "weights"

[[steps]]
step = "quantise"
of = "fewer-heads"
method = "weights"
bits = 4
"""


def resnet() -> nn.Module:
    return architectures.resnet()[0]


def mobilenet() -> nn.Module:
    return architectures.mobilenet()[0]


def vit() -> nn.Module:
    return architectures.vit()[0]


def hf_vit() -> nn.Module:
    return architectures.hf_vit()[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seven classes of images that differ by colour and side."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    random = np.random.default_rng(0)
    splits = np.concatenate([[name] * count for name, count in COUNTS.items()])
    labels = np.arange(len(splits)) % architectures.CLASSES
    images = random.normal(scale=0.5, size=(len(splits), *SIZES)).astype(np.float32)
    for row, label in enumerate(labels):
        images[row, label % 3, :, 8 * (label // 3 % 2) : 8 * (label // 3 % 2) + 8] += 1 + (label == 6)
    names = np.array([f"class-{number}" for number in range(architectures.CLASSES)])
    np.savez(path, x=images, y=labels, split=splits, classes=names)
    return f"arrays:{path}"


def compressed(name: str, recipe: str, data: str, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Train a student for an epoch, compress it, and return the rows by name."""
    reference = f"{__name__}:{name}"
    run = tmp_path / "runs" / name
    training.run(TrainConfig(data=data, student=reference, out=run, epochs=1, device="cpu"))
    (tmp_path / "recipe.toml").write_text(recipe)
    config = CompressConfig(
        runs=(run,), allow=(reference,), out=tmp_path / "out", recipe=tmp_path / "recipe.toml", controls=False,
        latency_seconds=0.001, calibration=16, device="cpu", threads=1,
    )  # fmt: skip
    report = compression.run(config)
    rows = {row["name"]: row for row in report.table["rows"]}
    for row in rows.values():
        assert row["accuracy"] is not None or row["skipped"], row["name"]
        assert row["file"] is None or (tmp_path / "out" / row["file"]).is_file()
    opens_again(next(iter(tmp_path.glob("out/*.safetensors"))), read_run(run, (reference,)), data, reference)
    return rows


def opens_again(path: Path, run: Any, data: str, reference: str) -> None:
    """The pruned file alone gives a smaller model of finite logits."""
    dataset = load_dataset(data, {})
    model, whole = load_trained(path, dataset, (reference,)), run.build(dataset, 0)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in whole.parameters())
    with torch.no_grad():
        assert torch.isfinite(logits_of(model(torch.zeros(3, *SIZES)))).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_convolutions_of_others(name: str, data: str, tmp_path: Path) -> None:
    rows = compressed(name, CONVOLUTIONS, data, tmp_path)
    assert [row["skipped"] for row in rows.values()] == [None] * 5, json.dumps(rows, indent=1)
    assert rows["pruned"]["parameters"] < 0.6 * rows["baseline"]["parameters"]
    assert rows["pruned"]["macs"] < 0.6 * rows["baseline"]["macs"]
    assert rows["pruned-finetuned-int8"]["bytes"] < rows["pruned-finetuned"]["bytes"]
    assert rows["pruned-finetuned-pt2"]["check"]["max_difference"] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "hf_vit"])
def test_attention_of_others(name: str, data: str, tmp_path: Path) -> None:
    if name == "hf_vit":
        pytest.importorskip("transformers")
    rows = compressed(name, ATTENTION, data, tmp_path)
    assert [row["skipped"] for row in rows.values()] == [None] * 5, json.dumps(rows, indent=1)
    assert rows["fewer-heads"]["parameters"] < rows["baseline"]["parameters"]
    shapes = {key: tuple(tensor.shape) for key, tensor in read_state(tmp_path / "out/fewer-heads.safetensors").items()}
    wide = [shape for key, shape in shapes.items() if key.endswith(("mlp.0.weight", "mlp.fc1.weight"))]
    assert wide == [(64, 32)] * 2, "heads alone left"
    for made in ("fewer-heads-int8", "fewer-heads-int8-weights", "fewer-heads-int4-weights"):
        assert rows[made]["bytes"] < rows["fewer-heads"]["bytes"], made
