"""Hints, against the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.losses import hint_loss
from tests.losses.features import check_degenerate, check_precision, check_teacher_is_constant, random

SHAPES = [(7,), (3, 4, 2), (5, 6), (2, 3, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_hints_give_the_definition(shape: tuple[int, ...]) -> None:
    student, teacher = random(4, *shape), random(4, *shape, seed=1)
    expected = []
    for row in range(4):
        pairs = zip(student[row].reshape(-1).tolist(), teacher[row].reshape(-1).tolist(), strict=True)
        squares = [(s - t) ** 2 for s, t in pairs]
        expected.append(sum(squares) / len(squares))
    np.testing.assert_allclose(hint_loss(student, teacher).numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(hint_loss(student, teacher).mean(), torch.nn.functional.mse_loss(student, teacher))


def test_gradients_are_exact_and_each_row_has_its_own() -> None:
    student, teacher = random(3, 2, 3).requires_grad_(), random(3, 2, 3, seed=1)
    assert torch.autograd.gradcheck(lambda s: hint_loss(s, teacher), student)
    (gradient,) = torch.autograd.grad(hint_loss(student, teacher)[1], student)
    assert gradient[1].abs().min() > 0 and gradient[[0, 2]].abs().max() == 0


def test_degenerate_features_and_half_precision() -> None:
    check_degenerate(hint_loss, 4)
    check_precision(hint_loss, 2, 3)
    check_teacher_is_constant(hint_loss, 5)


@pytest.mark.parametrize(("one", "other"), [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((2, 3), (2, 3, 1))])
def test_other_shapes_are_refused_by_name(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        hint_loss(torch.zeros(one), torch.zeros(other))
    assert str(one) in str(caught.value) and str(other) in str(caught.value)
