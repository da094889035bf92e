"""A small dataset that can be learnt, in a file, and options that train on it in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.models import build_model, save_weights
from pipeline.training import TrainConfig

CLASSES = ("ant", "bee", "cat")
COUNTS = {"train": 50, "validation": 12, "test": 10}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.npz, teacher.safetensors (mlp-8) and cache/ (2 random views, parts of 16)."""
    folder = tmp_path_factory.mktemp("training")
    random = np.random.default_rng(0)
    n = sum(COUNTS.values())
    labels = np.arange(n) % 3
    centres = random.normal(size=(3, 1, 6, 6))
    np.savez(
        folder / "data.npz",
        x=(centres[labels] + 0.8 * random.normal(size=(n, 1, 6, 6))).astype(np.float32),
        y=labels,
        ids=np.array([f"e{i}" for i in range(n)]),
        split=np.repeat(list(COUNTS), list(COUNTS.values())),
        classes=np.array(CLASSES),
    )
    torch.manual_seed(1)
    save_weights(folder / "teacher.safetensors", build_model("mlp-8", {}, classes=3, input_shape=(1, 6, 6)), {})
    _dump(folder, folder / "cache")
    return folder


def _dump(shared: Path, out: Path, **options: Any) -> str:
    base: dict[str, Any] = {
        "data": f"arrays:{shared / 'data.npz'}",
        "teacher": "mlp-8",
        "weights": shared / "teacher.safetensors",
        "out": out,
        "part_size": 16,
        "views": 2,
        "transform": "affine:degrees=15",
    }
    dump(DumpConfig(**(base | options)))
    return str(out)


@pytest.fixture
def make_cache(shared: Path, tmp_path: Path) -> Callable[..., str]:
    """Another cache of the small dataset; its path."""
    return lambda name, **options: _dump(shared, tmp_path / name, **options)


@pytest.fixture
def config(shared: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A TrainConfig on the small dataset; ``cached=False`` leaves the cache out."""

    def make(*, cached: bool = True, **options: Any) -> TrainConfig:
        base: dict[str, Any] = {
            "data": f"arrays:{shared / 'data.npz'}",
            "cache": str(shared / "cache") if cached else None,
            "student": "mlp-4",
            "out": tmp_path / "run",
            "epochs": 4,
            "batch_size": 8,
            "lr": 0.02,
            "window": 2,
            "device": "cpu",
        }
        return TrainConfig(**(base | options))

    return make
