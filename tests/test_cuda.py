"""What must also hold on a GPU. Skipped where there is none; run it where there is one before a release."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import dump, open_cache, training
from pipeline.dump import DumpConfig
from pipeline.models import build_model, save_weights
from pipeline.training import TrainConfig
from pipeline.verification import VerifyConfig, verify_with_teacher

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(path, build_model("cnn-8", {}, classes=10, input_shape=(1, 8, 8)), {})
    return path


def cache_on(device: str, out: Path, weights: Path, **options: object) -> Path:
    base = {"teacher": "cnn-8", "weights": weights, "views": 1, "transform": "affine:degrees=10", "part_size": 256}
    dump.run(DumpConfig(**{**base, "out": out, "device": device, **options}))  # type: ignore[arg-type]
    return out


def test_a_dump_on_the_gpu_says_what_the_cpu_says(tmp_path: Path, weights: Path) -> None:
    cache = cache_on("cuda", tmp_path / "cuda", weights)
    found = verify_with_teacher(VerifyConfig(cache=str(cache), teacher="cnn-8", weights=weights, device="cpu"))
    assert found.ok


def test_the_gpu_writes_the_same_bytes_twice(tmp_path: Path, weights: Path) -> None:
    one, two = (cache_on("cuda", tmp_path / name, weights, features=("hint=stage2",)) for name in ("one", "two"))
    for file in sorted(p for p in one.rglob("*") if p.is_file()):
        assert file.read_bytes() == (two / file.relative_to(one)).read_bytes(), file


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_near(tmp_path: Path, weights: Path, precision: str) -> None:
    exact, half = (
        open_cache(cache_on("cuda", tmp_path / name, weights, precision=name)) for name in ("float32", precision)
    )
    rows = np.arange(100)
    a, b = (cache.decode(cache.read_rows("train", 0, rows)).logits for cache in (exact, half))
    assert not np.array_equal(a, b)
    assert np.abs(a - b).max() < 0.1 * np.abs(a).max()


@pytest.mark.parametrize("resident", ["none", "ram", "device"])
@pytest.mark.parametrize("encoding", ["dense", "topk"])
def test_training_on_the_gpu_follows_the_cpu(tmp_path: Path, weights: Path, resident: str, encoding: str) -> None:
    cache = cache_on("cuda", tmp_path / "cache", weights, encoding=encoding, k=4)
    losses = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        options = {"cache": str(cache), "student": "mlp-8", "epochs": 3, "train_views": "all", "resident": resident}
        training.run(TrainConfig(**options, out=out, device=device))  # type: ignore[arg-type]
        losses[device] = [epoch["loss"] for epoch in json.loads((out / "seed-0" / "history.json").read_text())]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)
