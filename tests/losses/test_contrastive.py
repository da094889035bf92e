"""The contrastive loss, against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, ModelError
from pipeline.losses import contrastive_loss
from tests.losses.features import check_degenerate, check_precision, random, rotation


def contrastive64(student: list[list[float]], teacher: list[list[float]], temperature: float) -> list[float]:
    sides = [
        [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in rows] for rows in (student, teacher)
    ]
    found = []
    for i in range(len(student)):
        value = 0.0
        for anchors, others in (sides, sides[::-1]):
            scores = [math.exp(sum(a * b for a, b in zip(anchors[i], o, strict=True)) / temperature) for o in others]
            value -= 0.5 * math.log(scores[i] / sum(scores))
        found.append(value)
    return found


@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_values_are_those_of_the_definition(rows: int, temperature: float) -> None:
    student, teacher = random(rows, 5), 3 * random(rows, 5, seed=1)
    expected = contrastive64(student.tolist(), teacher.tolist(), temperature)
    found = contrastive_loss(student, teacher, temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_temperature_is_a_tenth_unless_given() -> None:
    student, teacher = random(4, 3), random(4, 3, seed=1)
    assert torch.equal(contrastive_loss(student, teacher), contrastive_loss(student, teacher, 0.1))


def test_gradients_are_exact_on_both_sides() -> None:
    student, teacher = random(4, 3).requires_grad_(), random(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: contrastive_loss(s, t, 0.5), (student, teacher))
    contrastive_loss(student, teacher).sum().backward()
    assert teacher.grad is not None and teacher.grad.abs().max() > 0


def test_degenerate_embeddings_and_half_precision() -> None:
    check_degenerate(contrastive_loss, 4)
    check_precision(contrastive_loss, 6)


def test_a_row_that_says_nothing_costs_the_logarithm_of_the_batch() -> None:
    alike = random(1, 4).expand(5, 4)
    torch.testing.assert_close(contrastive_loss(alike, alike), torch.full((5,), math.log(5), dtype=torch.float64))
    assert contrastive_loss(torch.eye(5), torch.eye(5)).max() < 1e-3
    assert contrastive_loss(alike[:1], -alike[:1]).abs().max() < 1e-12, "a single row has nothing to be told from"


def test_lengths_a_common_rotation_and_the_order_of_rows_change_nothing() -> None:
    student, teacher = random(6, 4), random(6, 4, seed=1)
    reference = contrastive_loss(student, teacher)
    lengths = random(6, 1, seed=2).exp()
    turn = rotation(4)
    for s, t in ((student * lengths, 5 * teacher), (student @ turn, teacher @ turn), (teacher, student)):
        torch.testing.assert_close(contrastive_loss(s, t), reference, rtol=1e-9, atol=1e-12)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(contrastive_loss(student[order], teacher[order]), reference[order])
    assert (contrastive_loss(student @ turn, teacher) - reference).abs().max() > 1e-2


def test_weight_zero_does_not_leave_a_row_out() -> None:
    student, teacher = random(6, 4), random(6, 4, seed=1)
    assert (contrastive_loss(student, teacher)[:5] > contrastive_loss(student[:5], teacher[:5])).all()


@pytest.mark.parametrize(("one", "other"), [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((2, 3, 1), (2, 3, 1))])
def test_other_shapes_are_refused_by_name(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        contrastive_loss(torch.zeros(one), torch.zeros(other))
    assert str(one) in str(caught.value) and str(other) in str(caught.value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_should_be_above_zero(temperature: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        contrastive_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature)
