"""Losses that torchdistill has as well, against its values.

It is installed without its dependencies, as the Makefile does: its losses import without torchvision.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.losses import correlation_loss, distillation_loss, standardised, standardised_labels
from pipeline.softlabels import Dense
from tests.losses.references import pair

theirs: Any = pytest.importorskip("torchdistill.losses.mid_level")


def both(student: torch.Tensor, teacher: torch.Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"m": {"output": student}}, {"m": {"output": teacher}}


WHERE = {
    "student_module_path": "m",
    "student_module_io": "output",
    "teacher_module_path": "m",
    "teacher_module_io": "output",
}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_hintons_loss(temperature: float) -> None:
    student, teacher = pair(8, 10)
    # Without hard labels it leaves the factor T^2 to others.
    expected = theirs.KDLoss(**WHERE, temperature=temperature, beta=1.0)(*both(student, teacher)) * temperature**2
    found = distillation_loss(student, Dense(teacher), temperature=temperature).mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist(temperature: float) -> None:
    student, teacher = pair(8, 10)
    expected = theirs.DISTLoss(**WHERE, beta=2.0, gamma=3.0, tau=temperature)(*both(student, teacher))
    found = correlation_loss(student, Dense(teacher), temperature=temperature, inter=2.0, intra=3.0).mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_standardised_logits() -> None:
    student, teacher = pair(8, 10)
    expected = theirs.LogitStdKDLoss(**WHERE, temperature=2.0, beta=1.0)(*both(student, teacher))
    soft = standardised_labels(Dense(teacher))
    found = distillation_loss(standardised(student), soft, temperature=2.0).mean() / 4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
