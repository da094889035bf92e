"""Small models of four kinds as float ONNX files, each made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.artefacts.onnx_file import export_onnx
from tests import architectures

SHAPE = (3, 16, 16)
METADATA = {"class_names": [str(k) for k in range(architectures.CLASSES)], "preprocessing": "none"}


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


BATCHES = [images(16, seed) for seed in range(3)]


@pytest.fixture(scope="session")
def batches() -> list[np.ndarray]:
    return [batch.copy() for batch in BATCHES]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, Path]]:
    """``exported(name)``: one of tests/architectures.py and its float file."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    folder, done = tmp_path_factory.mktemp("float"), {}

    def make(name: str) -> tuple[nn.Module, Path]:
        if name not in done:
            if name.startswith("hf"):
                pytest.importorskip("transformers")
            model, _, _ = getattr(architectures, name)()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1 and len(parameter) == architectures.CLASSES:
                        parameter.mul_(4 / parameter.std() / parameter.shape[1] ** 0.5)  # logits that differ
            export_onnx(model, SHAPE, folder / f"{name}.onnx", opset=18, metadata=METADATA)
            done[name] = model, folder / f"{name}.onnx"
        return done[name]

    return make
