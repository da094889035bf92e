"""How far an encoding turns the gradient: the angle between those from all logits and from what is kept.

The gradient is that of ``distillation_loss`` at the training temperature, in the student's logits, by autograd. A
gradient in the parameters is this one times the student's Jacobian, which the encoding does not touch. It depends on
where the student stands, so two students stand in, neither of which is trained:

- ``untrained``: the same logit for every class;
- ``half_trained``: half the teacher's logits, centred, plus Gaussian noise of half their row's standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encodings.base import row_slices
from pipeline.losses import distillation_loss
from pipeline.softlabels import Dense, SoftLabels

STUDENTS = ("untrained", "half_trained")
ELEMENTS = 1 << 21
"""Logits looked at together: 16 MiB in float64."""


@dataclass(frozen=True)
class Angles:
    """In degrees: ``rows``, the mean over rows; ``batch``, between the two gradients averaged over all rows.

    An error that is another in every row cancels in ``batch``; a bias does not.
    """

    rows: float
    batch: float


def stand_in(student: str, logits_NC: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float64]:
    """Logits (N, C) of a student that stands in; see the module."""
    if student == "untrained":
        return np.zeros(logits_NC.shape)
    if student != "half_trained":
        raise ValueError(f"students that stand in are {', '.join(STUDENTS)}; found {student!r}")
    wide = logits_NC.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    noise = np.random.default_rng([seed & (2**63 - 1), 1]).standard_normal(logits_NC.shape)
    return np.asarray(0.5 * (centred + centred.std(axis=1, keepdims=True) * noise))


def gradient_angles(
    logits_NC: npt.NDArray[np.float32], kept: SoftLabels, student_NC: npt.NDArray[np.float64], temperature: float
) -> Angles:
    """The angles between the gradients from ``logits_NC`` and from ``kept``, numpy soft labels of the same N rows.

    Rows where both gradients are 0 count as 0 degrees, those where one of them is as 90.
    """
    rows, classes = logits_NC.shape
    angles = np.empty(rows)
    sums = np.zeros((2, classes))
    for part in row_slices(rows, classes, ELEMENTS):
        student = torch.from_numpy(student_NC[part])
        full = _gradient(student, Dense(torch.from_numpy(logits_NC[part])), temperature)
        found = _gradient(student, kept.select(part).map(torch.from_numpy), temperature)
        angles[part] = angle(full, found)
        sums += np.stack([full.sum(axis=0), found.sum(axis=0)])
    return Angles(float(angles.mean()), float(angle(sums[:1], sums[1:])[0]))


def _gradient(student: Tensor, soft: SoftLabels, temperature: float) -> npt.NDArray[np.float64]:
    leaf = student.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(distillation_loss(leaf, soft, temperature=temperature).sum(), leaf)
    return np.asarray(found.numpy())


def angle(one_NC: npt.NDArray[np.float64], other_NC: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Degrees (N,) between the rows of two arrays, exact for small angles, where a cosine has no digits left.

    >>> angle(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])).round(6).tolist()
    [45.0, 0.0]
    """
    lengths = [np.linalg.norm(each, axis=1, keepdims=True) for each in (one_NC, other_NC)]
    units = [each / np.where(length > 0, length, 1.0) for each, length in zip((one_NC, other_NC), lengths, strict=True)]
    apart, along = (np.linalg.norm(each, axis=1) for each in (units[0] - units[1], units[0] + units[1]))
    return np.asarray(np.degrees(2 * np.arctan2(apart, along)))
