"""The central promise for language models: uneven sequences, prompts that are not scored, packing, and a stop between.

To float rounding: a teacher's matrix products depend on how sequences are batched.
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
from pipeline.training import TrainConfig, fit, prepare
from pipeline.training.stage import initial_student
from tests.sequences import VOCABULARY
from tests.training.stopping import Trained, stopped_and_resumed

SEED, EPOCHS = 5, 4
trained = partial(stopped_and_resumed, seed=SEED)
DATA = {"uneven": "tests.sequences:uneven", "packed": "tests.sequences:even"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sequences") / "teacher.safetensors"
    torch.manual_seed(1)
    model = build_model("gpt-16", {"layers": 1}, classes=VOCABULARY, input_shape=(12,), discrete=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # a teacher that is sure of something
    save_weights(path, model, {})
    return path


def options(teacher: Path, data: str, **changes: Any) -> tuple[TrainConfig, TrainConfig]:
    """The same run with the teacher's labels cached, and with the teacher itself."""
    named: dict[str, Any] = {"teacher": "gpt-16", "teacher_args": ("layers=1",), "weights": teacher}
    cache = teacher.parent / f"cache-{data}"
    if not cache.exists():
        dump(DumpConfig(data=DATA[data], out=cache, part_size=8, batch_size=5, device="cpu", **named))
    common: dict[str, Any] = {
        "data": DATA[data],
        "student": "gpt-16",
        "student_args": ("layers=1", "dropout=0.1"),
        "epochs": EPOCHS,
        "batch_size": 3,
        "accumulate": 2,
        "window": 2,
        "temperature": 2.0,
        "alpha": 0.7,
        "device": "cpu",
        "lr": 0.01,
        "out": teacher.parent / "run",
        **changes,
    }
    return TrainConfig(cache=str(cache), resident="none", **common), TrainConfig(block=8, **named, **common)


def alike(found: Trained, wanted: Trained) -> None:
    np.testing.assert_allclose(found[0], wanted[0], rtol=2e-5)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-3, atol=2e-5)


def test_the_two_runs_take_their_labels_from_where_they_should(teacher: Path) -> None:
    cached, live = (prepare(config).task for config in options(teacher, "uneven"))
    assert isinstance(cached.source, CachedLabels) and isinstance(live.source, LiveTeacher)


@pytest.mark.parametrize("data", DATA)
def test_step_by_step_and_across_a_resume(teacher: Path, tmp_path: Path, data: str) -> None:
    cached, live = options(teacher, data)
    expected = trained(live)
    assert len(set(expected[0])) == len(expected[0]) > 8
    alike(trained(cached), expected)
    found = trained(cached, tmp_path / "state", (2, 9))
    alike(found, expected)
    assert found[0] == trained(cached)[0], "a resume changes no bit"


@pytest.mark.parametrize("resident", ["ram", "device"])
def test_wherever_the_labels_are_kept(teacher: Path, resident: str) -> None:
    cached, _ = options(teacher, "uneven")
    assert trained(TrainConfig(**{**vars(cached), "resident": resident}))[0] == trained(cached)[0]


@pytest.mark.parametrize("data", DATA)
def test_with_the_fused_loss_and_without(teacher: Path, data: str) -> None:
    (fused, _), (whole, _) = (options(teacher, data, fused_loss=fused) for fused in (True, False))
    alike(trained(fused), trained(whole))


def test_batches_of_a_step_weigh_by_their_positions(teacher: Path) -> None:
    """Two batches of three are a step of six sequences, however uneven they are."""
    changes = {"student_args": ("layers=1",)}
    two, _ = options(teacher, "uneven", **changes)
    one, _ = options(teacher, "uneven", **changes, batch_size=6, accumulate=1)
    alike(trained(two), trained(one))


def test_the_comparison_would_notice_labels_of_another_place(teacher: Path) -> None:
    cached, live = options(teacher, "packed")
    prepared = prepare(cached)
    source = prepared.task.source
    assert isinstance(source, CachedLabels)
    source.matching.entry_of[source.rows] = np.roll(source.matching.entry_of[source.rows], 1)
    student = initial_student(cached, prepared.dataset, SEED)
    found = [record["loss"] for record in fit(student, prepared.task, cached, seed=SEED).history]
    assert not np.allclose(found, [record["loss"] for record in trained(live)[2]], rtol=1e-3)
