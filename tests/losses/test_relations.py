"""Decoupled KD, DIST and standardised logits, against their papers in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import EncodingError
from pipeline.losses import (
    correlation_loss,
    decoupled_loss,
    distillation_loss,
    standardised,
    standardised_labels,
)
from pipeline.softlabels import Dense
from tests.losses.references import Array, kl64, pair, softmax64, topk_of


def decoupled64(teacher: Array, student: Array, labels: list[int], t: float, target: float, others: float) -> Array:
    found = []
    for v, z, label in zip(softmax64(teacher, t), softmax64(student, t), labels, strict=True):
        two = [np.array([[side[label], 1 - side[label]]]) for side in (v, z)]
        rest = [np.delete(side, label)[None] / np.delete(side, label).sum() for side in (v, z)]
        found.append(t**2 * (target * kl64(*two)[0] + others * kl64(*rest)[0]))
    return np.array(found)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("classes", [2, 10, 300])
def test_decoupled_kd_gives_the_definition(classes: int, temperature: float) -> None:
    student, teacher = pair(5, classes, scale=2.0)
    labels = [0, 1, classes - 1, 1, 0]
    found = decoupled_loss(student, Dense(teacher), torch.tensor(labels), temperature=temperature)
    expected = decoupled64(teacher.numpy(), student.numpy(), labels, temperature, 1.0, 8.0)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=2e-5 * temperature**2)


def test_with_the_weights_that_hinton_gives_the_parts_decoupled_kd_is_his_loss() -> None:
    # Zhao et al. 2022, equation 5: KL = TCKD + (1 - p_t) NCKD.
    student, teacher = (x.double() for x in pair(6, 7))
    labels = torch.tensor([0, 1, 2, 3, 4, 6])
    target = decoupled_loss(student, Dense(teacher), labels, temperature=3.0, target=1.0, others=0.0)
    others = decoupled_loss(student, Dense(teacher), labels, temperature=3.0, target=0.0, others=1.0)
    mass = torch.softmax(teacher / 3.0, dim=1).gather(1, labels[:, None])[:, 0]
    whole = distillation_loss(student, Dense(teacher), temperature=3.0)
    torch.testing.assert_close(target + (1 - mass) * others, whole, rtol=1e-9, atol=1e-9)


def test_rows_without_a_hard_label_weigh_nothing_in_decoupled_kd() -> None:
    student, teacher = pair(3, 5)
    leaf = student.requires_grad_()
    found = decoupled_loss(leaf, Dense(teacher), torch.tensor([2, -1, 0]), temperature=2.0)
    found.sum().backward()
    assert leaf.grad is not None
    assert found[1] == 0 and torch.equal(leaf.grad[1], torch.zeros(5)) and leaf.grad[0].abs().sum() > 0


def test_decoupled_kd_is_exact_where_the_teacher_is_sure() -> None:
    # 1 - p_t underflows in float32; the distribution over the other classes does not.
    student = torch.zeros(1, 4)
    teacher = torch.tensor([[120.0, 0.0, 1.0, 2.0]])
    found = decoupled_loss(student, Dense(teacher), torch.tensor([0]), temperature=1.0, target=0.0, others=1.0)
    np.testing.assert_allclose(
        found.numpy(), kl64(softmax64(np.array([[0.0, 1.0, 2.0]])), np.full((1, 3), 1 / 3)), rtol=1e-5
    )


def pearson64(a: Array, b: Array) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_gives_the_definition(temperature: float) -> None:
    student, teacher = pair(7, 5, scale=2.0)
    p, q = softmax64(teacher, temperature), softmax64(student, temperature)
    rows = np.array([1 - pearson64(a, b) for a, b in zip(p, q, strict=True)])
    columns = np.mean([1 - pearson64(a, b) for a, b in zip(p.T, q.T, strict=True)])
    found = correlation_loss(student, Dense(teacher), temperature=temperature, inter=2.0, intra=3.0)
    np.testing.assert_allclose(found.numpy(), temperature**2 * (2 * rows + 3 * columns), rtol=1e-4, atol=1e-4)


def test_dist_does_not_mind_scale_and_shift_of_probabilities_but_kl_does() -> None:
    teacher = torch.log(torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6]], dtype=torch.float64))
    # Half way to uniform: another distribution, perfectly correlated.
    student = torch.log(0.5 * teacher.exp() + 0.5 / 3)
    assert correlation_loss(student, Dense(teacher), temperature=1.0).abs().max() < 1e-9
    assert distillation_loss(student, Dense(teacher), temperature=1.0).min() > 0.01


def test_dist_of_a_single_row_or_of_equal_rows_has_a_finite_gradient() -> None:
    for rows in (torch.zeros(1, 4), torch.zeros(3, 4), torch.ones(2, 1)):
        leaf = rows.clone().requires_grad_()
        found = correlation_loss(leaf, Dense(torch.zeros_like(rows)), temperature=1.0)
        found.sum().backward()
        assert leaf.grad is not None
        assert torch.isfinite(found).all() and torch.isfinite(leaf.grad).all()


def test_standardised_logits_have_mean_zero_and_deviation_one() -> None:
    logits = pair(6, 9)[0].double() * 5 + 40
    found = standardised(logits).numpy()
    expected = (logits.numpy() - logits.numpy().mean(1, keepdims=True)) / logits.numpy().std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    scaled = standardised(3 * logits - 7)
    torch.testing.assert_close(scaled, standardised(logits), rtol=1e-6, atol=1e-6)


def test_standardised_logits_that_are_all_alike_are_zeros_with_a_finite_gradient() -> None:
    for shape in ((2, 4), (2, 1)):
        leaf = torch.full(shape, 3.0, requires_grad=True)
        found = standardised(leaf)
        found.sum().backward()
        assert leaf.grad is not None
        assert torch.equal(found, torch.zeros(shape)) and torch.isfinite(leaf.grad).all()


def test_gradients_are_exact() -> None:
    student, teacher = (x.double() for x in pair(4, 6, scale=1.5))
    labels = torch.tensor([0, -1, 5, 2])
    for function in (
        lambda z: decoupled_loss(z, Dense(teacher), labels, temperature=2.0),
        lambda z: correlation_loss(z, Dense(teacher), temperature=2.0),
        standardised,
    ):
        assert torch.autograd.gradcheck(function, student.requires_grad_())


def test_the_order_of_classes_and_shifts_change_nothing() -> None:
    student, teacher = (x.double() for x in pair(5, 6))
    labels = torch.tensor([0, 1, 2, 3, 5])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    moved = torch.argsort(order)[labels]
    for before, after in (
        (
            decoupled_loss(student, Dense(teacher), labels, temperature=2.0),
            decoupled_loss(student[:, order] + 4, Dense(teacher[:, order] - 9), moved, temperature=2.0),
        ),
        (
            correlation_loss(student, Dense(teacher), temperature=2.0),
            correlation_loss(student[:, order] + 4, Dense(teacher[:, order] - 9), temperature=2.0),
        ),
    ):
        torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)


def test_topk_labels_are_refused_by_name() -> None:
    soft = topk_of(np.zeros((2, 5)), 2, (1.0,), torch.float32)
    zeros, labels = torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(EncodingError, match=r"decoupled KD needs .* top-2 labels"):
        decoupled_loss(zeros, soft, labels, temperature=1.0)
    with pytest.raises(EncodingError, match=r"DIST needs .* top-2 labels"):
        correlation_loss(zeros, soft, temperature=1.0)
    with pytest.raises(EncodingError, match=r"standardised logits need .* top-2 labels"):
        standardised_labels(soft)
    with pytest.raises(EncodingError, match=r"labels should have shape \(2,\), found \(3,\)"):
        decoupled_loss(zeros, Dense(zeros), torch.zeros(3, dtype=torch.int64), temperature=1.0)
