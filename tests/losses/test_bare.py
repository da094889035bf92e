"""Losses on bare top-k labels: in float64 those of a teacher that gives the dropped classes nothing, on all classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import EncodingError
from pipeline.losses import LOSSES
from pipeline.softlabels import Dense, Opinion, Opinions, TopK
from pipeline.training import Objective
from pipeline.training.objective import Batch, Output
from tests.losses.references import Array, kl64, pair, softmax64, topk_of

ROWS, CLASSES = 5, 7
NONE = torch.full((ROWS,), -1)


def js64(p: Array, q: Array, w: float) -> Array:
    return np.asarray(w * kl64(p, w * p + (1 - w) * q) + (1 - w) * kl64(q, w * p + (1 - w) * q))


# Each of a teacher p, with zeros, and a student q on all classes.
DEFINITIONS: dict[str, Callable[..., Array]] = {
    "kl": lambda p, q: kl64(p, q),
    "jensen-shannon": lambda p, q, weight=0.5: js64(p, q, weight),
    "skewed-kl": lambda p, q, skew=0.1: kl64(p, skew * p + (1 - skew) * q),
    "skewed-reverse-kl": lambda p, q, skew=0.1: kl64(q, skew * q + (1 - skew) * p),
}
every_loss = pytest.mark.parametrize("name", DEFINITIONS)
PARAMETERS: dict[str, dict[str, float]] = {"jensen-shannon": {"weight": 0.8}, "skewed-kl": {"skew": 0.3}}


def kept(teacher: Tensor, k: int, temperatures: tuple[float, ...], dtype: torch.dtype = torch.float64) -> TopK:
    return topk_of(teacher.numpy(), k, temperatures, dtype)


def renormalised(teacher: Tensor, k: int, temperature: float) -> Array:
    """The teacher's probabilities (B, C) without those of the dropped classes, divided by their sum."""
    p = softmax64(teacher.numpy(), temperature)
    for row in p:
        row[np.argsort(-row, kind="stable")[k:]] = 0.0
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def test_the_catalogue_says_which_are_defined() -> None:
    assert {name for name, loss in LOSSES.items() if loss.bare} == set(DEFINITIONS)
    assert all(loss.topk for loss in LOSSES.values() if loss.bare)


@every_loss
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("k", [1, 3, 6, 7])
def test_values_are_those_on_all_classes(name: str, k: int, temperature: float) -> None:
    student, teacher = (z.double() for z in pair(ROWS, CLASSES))
    for parameters in ({}, PARAMETERS.get(name, {})):
        objective = Objective(1.0, 0.0, temperature, name, tuple(parameters.items()), bare=True)
        found = objective.soft_rows(student, Batch(NONE), kept(teacher, k, (1.0, 4.0)))
        p, q = renormalised(teacher, k, temperature), softmax64(student.numpy(), temperature)
        expected = temperature**2 * DEFINITIONS[name](p, q, **parameters)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_kl_is_the_sum_over_the_kept_classes_with_the_students_softmax_over_all() -> None:
    student, teacher = (z.double() for z in pair(ROWS, CLASSES, seed=4))
    labels = kept(teacher, 3, (2.0,))
    found = Objective(1.0, 0.0, 2.0, bare=True).soft_rows(student, Batch(NONE), labels)
    for row in range(ROWS):
        top = labels.ids[row]
        log_p = torch.log_softmax(teacher[row, top] / 2, dim=0)
        log_q = torch.log_softmax(student[row] / 2, dim=0)[top]
        torch.testing.assert_close(found[row], 4 * (log_p.exp() * (log_p - log_q)).sum(), rtol=1e-12, atol=1e-12)


@every_loss
@pytest.mark.parametrize("k", [1, 3, 7])
def test_gradients_are_those_of_the_values_and_of_the_definition(name: str, k: int) -> None:
    student, teacher = (z.double() for z in pair(ROWS, CLASSES, scale=1.5))
    labels, objective = kept(teacher, k, (3.0,)), Objective(1.0, 0.0, 3.0, name, bare=True)

    def value(z: Tensor) -> Tensor:
        return objective.soft_rows(z, Batch(NONE), labels)

    assert torch.autograd.gradcheck(value, student.requires_grad_())
    (found,) = torch.autograd.grad(value(student).sum(), student)
    p, step = renormalised(teacher, k, 3.0), 1e-6
    for column in range(CLASSES):
        moved = [student.detach().numpy().copy() for _ in range(2)]
        for side, sign in zip(moved, (1, -1), strict=True):
            side[:, column] += sign * step
        up, down = (9 * DEFINITIONS[name](p, softmax64(side, 3.0)) for side in moved)
        np.testing.assert_allclose(found[:, column].numpy(), (up - down) / (2 * step), rtol=1e-5, atol=1e-7)


def test_the_student_is_led_to_forget_what_was_dropped() -> None:
    """At the teacher's own logits the loss with the residual has no gradient; the bare one raises the kept classes."""
    teacher = pair(ROWS, CLASSES)[1].double()
    student = teacher.clone().requires_grad_()
    labels = kept(teacher, 3, (2.0,))
    for bare in (False, True):
        rows = Objective(1.0, 0.0, 2.0, bare=bare).soft_rows(student, Batch(NONE), labels)
        (gradient,) = torch.autograd.grad(rows.sum(), student)
        if not bare:
            assert gradient.abs().max() < 1e-12
            continue
        q = torch.softmax(teacher / 2, dim=1)
        mass = q.gather(1, labels.ids).sum(dim=1, keepdim=True)
        expected = 2 * q.scatter(1, labels.ids, (q * (1 - 1 / mass)).gather(1, labels.ids))
        torch.testing.assert_close(gradient, expected)


@every_loss
def test_extreme_logits_stay_finite_in_float32(name: str) -> None:
    student = torch.tensor([[200.0, 0.0, -200.0, 0.0], [-300.0, 300.0, 0.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 200.0, 0.0, 0.0], [300.0, -300.0, 0.0, 1.0]])
    labels = kept(teacher, 2, (1.0,), torch.float32)
    rows = Objective(1.0, 0.0, 1.0, name, bare=True).soft_rows(student, Batch(NONE[:2]), labels)
    (gradient,) = torch.autograd.grad(rows.sum(), student)
    assert torch.isfinite(rows).all() and torch.isfinite(gradient).all()


def test_each_of_several_teachers_is_bare() -> None:
    student, teacher = (z.double() for z in pair(ROWS, CLASSES))
    own = torch.tensor([6, 0, 3, 1])
    whole, part = kept(teacher, 3, (2.0,)), kept(teacher[:, own], 2, (2.0,))
    weights = torch.linspace(0.1, 0.9, ROWS, dtype=torch.float64)
    given = Opinions((Opinion(whole, None, 1 - weights), Opinion(part, own, weights)))
    terms = Objective(1.0, 0.0, 2.0, bare=True)(Output(student), Batch(NONE, given))
    p, of_part = renormalised(teacher, 3, 2.0), renormalised(teacher[:, own], 2, 2.0)
    q, given_part = softmax64(student.numpy(), 2.0), softmax64(student[:, own].numpy(), 2.0)
    expected = (1 - weights.numpy()) * kl64(p, q) + weights.numpy() * kl64(of_part, given_part)
    assert float(terms.total) == pytest.approx(4 * expected.sum(), rel=1e-12)


def test_labels_of_all_classes_are_refused() -> None:
    student, teacher = pair(ROWS, CLASSES)
    objective: Any = Objective(1.0, 0.0, 2.0, bare=True)
    with pytest.raises(EncodingError, match="bare top-k labels are made of top-k ones"):
        objective(Output(student), Batch(NONE, Dense(teacher)))
