"""The central promise: training from an exact cache is training with the teacher itself, step by step.

Random views, shuffled windows and a stop in the middle, on both sides. Bit for bit with a teacher that answers for
each example alone; to float rounding with a convolutional one, whose arithmetic depends on how examples are batched.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.models import build_model, save_weights
from pipeline.sources import CachedLabels, LiveTeacher
from pipeline.training import TrainConfig, prepare
from tests.training.stopping import stopped_and_resumed

trained = partial(stopped_and_resumed, seed=11)
EPOCHS = 5
MODELS = '''
import torch
from torch import nn


class RowByRow(nn.Module):
    """A teacher whose answer for an example does not depend on its neighbours: each row is computed alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) / 4)

    def forward(self, x):
        return torch.stack([(self.weight * row.flatten()).sum(dim=1) * 3 for row in x])


def make_teacher():
    return RowByRow()


class Dropping(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, classes)
        )

    def forward(self, x):
        return self.layers(x)


def make_student(classes):
    return Dropping(classes)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = tmp_path_factory.mktemp("equal")
    random = np.random.default_rng(0)
    n = 70
    np.savez(
        made / "data.npz",
        x=random.normal(size=(n, 1, 8, 8)).astype(np.float32),
        y=random.integers(0, 5, n),
        split=np.array(["train"] * 52 + ["validation"] * 10 + ["test"] * 8),
    )
    (made / "models_of_equality.py").write_text(MODELS)
    torch.manual_seed(2)
    save_weights(made / "cnn.safetensors", build_model("cnn-4", {}, classes=5, input_shape=(1, 8, 8)), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made)
        yield made


TEACHERS: dict[str, dict[str, Any]] = {
    "row by row": {"teacher": "models_of_equality:make_teacher"},
    "convolutional": {"teacher": "cnn-4", "weights": "cnn.safetensors"},
}


def options(folder: Path, teacher: str) -> tuple[TrainConfig, TrainConfig]:
    """The same run with the teacher's labels cached, and with the teacher itself."""
    named: dict[str, Any] = dict(TEACHERS[teacher])
    if "weights" in named:
        named["weights"] = folder / named["weights"]
    data = f"arrays:{folder / 'data.npz'}"
    cache = folder / f"cache-{teacher.split()[0]}"
    views: dict[str, Any] = {"views": 3, "transform": "affine:degrees=20,translate=0.1+noise:std=0.1"}
    if not cache.exists():
        # Batches of the dump are not those of training, and parts are many.
        dump(DumpConfig(data=data, out=cache, part_size=8, batch_size=5, dtype="float32", seed=4, **views, **named))
    common: dict[str, Any] = {
        "data": data,
        "student": "models_of_equality:make_student",
        "epochs": EPOCHS,
        "batch_size": 6,
        "window": 3,
        "train_views": "all",
        "temperature": 3.0,
        "device": "cpu",
        "lr": 0.02,
    }
    return (
        TrainConfig(cache=str(cache), resident="none", out=folder / "run", **common),
        TrainConfig(out=folder / "run", views_seed=4, block=8, **views, **named, **common),
    )


def test_the_two_runs_take_their_labels_from_where_they_should(folder: Path) -> None:
    cached, live = (prepare(config).task for config in options(folder, "row by row"))
    assert isinstance(cached.source, CachedLabels) and isinstance(live.source, LiveTeacher)
    assert cached.train_views == live.train_views == (0, 1, 2, 3)


@pytest.mark.parametrize("resident", ["none", "ram", "device"])
def test_bit_for_bit_with_a_teacher_that_answers_row_by_row(folder: Path, tmp_path: Path, resident: str) -> None:
    cached, live = options(folder, "row by row")
    cached = TrainConfig(**{**vars(cached), "resident": resident})
    expected, weights, history = trained(live)
    steps = len(expected)
    assert steps == EPOCHS * 9 and len(set(expected)) == steps
    for config, stops in ((cached, ()), (cached, (4, 21)), (live, (13, steps - 2))):
        losses, found, found_history = trained(config, tmp_path / f"{stops}-{config is live}", stops)
        assert losses == expected
        assert all(torch.equal(found[name], weights[name]) for name in weights)
        assert found_history == history


def test_to_rounding_with_a_convolutional_teacher(folder: Path, tmp_path: Path) -> None:
    cached, live = options(folder, "convolutional")
    expected, weights, _ = trained(live)
    losses, found, _ = trained(cached, tmp_path / "state", (7, 30))
    np.testing.assert_allclose(losses, expected, rtol=2e-4)
    torch.testing.assert_close(dict(found), dict(weights), rtol=1e-3, atol=1e-4)


def test_the_comparison_would_notice_labels_of_another_view(folder: Path) -> None:
    cached, live = options(folder, "row by row")
    expected, *_ = trained(live)
    fixed, *_ = trained(TrainConfig(**{**vars(cached), "label_view": "plain"}))
    assert fixed[:9] == expected[:9], "the first epoch is the plain view"
    assert not np.allclose(fixed[9:], expected[9:], rtol=1e-3)
