"""The last matrix of a language model, which is fused with the loss, has the precision of the student's others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import losses
from pipeline.losses import FusedTerms
from pipeline.training import TrainConfig, fit, objective, prepare
from pipeline.training.stage import initial_student


def steps(tmp_path: Path, precision: str) -> list[float]:
    """The loss of each step of a short run from hard labels."""
    config = TrainConfig(
        data="tests.sequences:uneven", student="gpt-16", student_args=("layers=1",), alpha=0.0, beta=1.0, epochs=1,
        batch_size=16, precision=precision, device="cpu", out=tmp_path / "run",
    )  # fmt: skip
    prepared, found = prepare(config), []
    student = initial_student(config, prepared.dataset, 0)
    fit(student, prepared.task, config, seed=0, on_step=lambda _, loss: found.append(float(loss)))
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_fused_head_is_multiplied_in_the_precision_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    seen: list[bool] = []

    def looking(*given: Any, **named: Any) -> FusedTerms:
        seen.append(torch.is_autocast_enabled("cpu"))
        return losses.fused_loss(*given, **named)

    monkeypatch.setattr(objective, "fused_loss", looking)
    assert len(steps(tmp_path, precision)) == len(seen) > 2
    assert set(seen) == {precision == "bfloat16"}


def test_half_precision_stays_near(tmp_path: Path) -> None:
    exact, half = (steps(tmp_path, precision) for precision in ("float32", "bfloat16"))
    assert half != exact and half == pytest.approx(exact, rel=1e-2)
