"""The losses on the student's output, against a float64 reference that is written from the definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, EncodingError, TemperatureError
from pipeline.losses import distillation_loss, hard_loss, logit_regression_loss
from pipeline.softlabels import Dense, TopK
from tests.losses.references import kl64, pair, partition64, softmax64, topk_of


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_dense_agrees_with_the_definition(classes: int, temperature: float) -> None:
    student, teacher = pair(7, classes)
    expected = temperature**2 * kl64(softmax64(teacher, temperature), softmax64(student, temperature))
    found = distillation_loss(student, Dense(teacher), temperature=temperature)
    assert found.dtype == torch.float32 and found.shape == (7,)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=2e-6 * temperature**2)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("classes", "k"), [(10, 1), (10, 4), (10, 9), (10, 10), (1000, 16), (2, 1), (1, 1)])
def test_topk_agrees_with_the_partition_of_the_dense_reference(classes: int, k: int, temperature: float) -> None:
    student, teacher = pair(7, classes)
    labels = topk_of(teacher.numpy(), k, (1.0, 4.0), torch.float32)
    ids = labels.ids.numpy()
    p, q = (partition64(softmax64(x, temperature), ids) for x in (teacher, student))
    if k == classes:
        p, q = p[:, :-1], q[:, :-1]
    expected = temperature**2 * kl64(p, q)
    found = distillation_loss(student, labels, temperature=temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=2e-6 * temperature**2)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_topk_of_all_classes_equals_dense_in_value_and_gradient(temperature: float) -> None:
    student, teacher = pair(5, 12)
    results = []
    for soft in (Dense(teacher), topk_of(teacher.numpy(), 12, (temperature,), torch.float32)):
        leaf = student.clone().requires_grad_()
        loss = distillation_loss(leaf, soft, temperature=temperature)
        loss.sum().backward()
        assert leaf.grad is not None
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 5, 6])
def test_gradients_are_exact_for_topk(k: int) -> None:
    student, teacher = (x.double() for x in pair(4, 6))
    labels = topk_of(teacher.numpy(), k, (1.0, 3.0), torch.float64)
    for temperature in (1.0, 3.0):
        assert torch.autograd.gradcheck(
            lambda z, t=temperature: distillation_loss(z, labels, temperature=t), student.requires_grad_()
        )


@pytest.mark.parametrize("temperature", [0.7, 1.0, 5.0])
def test_gradients_are_exact_for_dense(temperature: float) -> None:
    student, teacher = (x.double() for x in pair(4, 6))
    assert torch.autograd.gradcheck(
        lambda z: distillation_loss(z, Dense(teacher), temperature=temperature), student.requires_grad_()
    )


def test_gradients_are_exact_for_the_other_losses() -> None:
    student, teacher = (x.double() for x in pair(4, 6))
    labels = torch.tensor([0, -1, 5, 2])
    assert torch.autograd.gradcheck(lambda z: logit_regression_loss(z, Dense(teacher)), student.requires_grad_())
    assert torch.autograd.gradcheck(lambda z: hard_loss(z, labels), student.requires_grad_())


def test_each_row_has_its_own_gradient() -> None:
    student, teacher = pair(6, 5)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0, 1.0])
    for soft in (Dense(teacher), topk_of(teacher.numpy(), 2, (2.0,), torch.float32)):
        leaf = student.clone().requires_grad_()
        (distillation_loss(leaf, soft, temperature=2.0) * weights).sum().backward()
        assert leaf.grad is not None
        assert torch.equal(leaf.grad[weights == 0], torch.zeros(2, 5))
        alone = student[2:3].clone().requires_grad_()
        (2.0 * distillation_loss(alone, soft.map(lambda a: a[2:3]), temperature=2.0)).sum().backward()
        assert alone.grad is not None
        torch.testing.assert_close(leaf.grad[2:3], alone.grad)


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "kl": lambda z, v: distillation_loss(z, Dense(v), temperature=2.0),
    "topk": lambda z, v: distillation_loss(z, topk_of(v.numpy(), 3, (2.0,), torch.float64), temperature=2.0),
    "regression": lambda z, v: logit_regression_loss(z, Dense(v)),
}


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-50, 50), classes=st.integers(3, 9))
def test_shifting_or_permuting_classes_changes_nothing(name: str, seed: int, shift: float, classes: int) -> None:
    student, teacher = (x.double() for x in pair(3, classes, seed))
    loss = LOSSES[name]
    reference = loss(student, teacher)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(student + shift, teacher - 2 * shift), reference, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss(student[:, order], teacher[:, order]), reference, rtol=1e-9, atol=1e-9)
    assert (reference >= -1e-12).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_that_agrees_has_no_loss_and_no_gradient(name: str) -> None:
    teacher = pair(3, 8)[1].double()
    leaf = (teacher + 3.5).requires_grad_()
    loss = LOSSES[name](leaf, teacher)
    loss.sum().backward()
    assert leaf.grad is not None
    assert loss.abs().max() < 1e-12 and leaf.grad.abs().max() < 1e-12


def test_high_temperature_tends_to_logit_regression() -> None:
    student, teacher = (x.double() for x in pair(6, 9))
    limit = logit_regression_loss(student, Dense(teacher))
    gaps = [
        (distillation_loss(student, Dense(teacher), temperature=t) - limit).abs().max() for t in (10.0, 100.0, 1000.0)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-2 * limit.max()


def test_extreme_logits_stay_finite_and_correct() -> None:
    student = torch.tensor([[200.0, 0.0, -200.0, 0.0], [-300.0, 300.0, 0.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 200.0, 0.0, 0.0], [500.0, -500.0, 0.0, 1.0]])
    for soft in (Dense(teacher), topk_of(teacher.numpy(), 2, (1.0,), torch.float32)):
        student.grad = None
        loss = distillation_loss(student, soft, temperature=1.0)
        loss.sum().backward()
        assert student.grad is not None
        torch.testing.assert_close(loss.detach(), torch.tensor([200.0, 600.0]))
        assert torch.isfinite(student.grad).all()


def test_a_residual_on_classes_that_the_student_has_given_up_still_pulls() -> None:
    # The student's mass on the dropped classes underflows in float32 (exp(-200)); its share among them does not.
    student = torch.tensor([[0.0, -200.0, -201.0]], requires_grad=True)
    soft = TopK(
        ids=torch.tensor([[0]]),
        logits=torch.zeros(1, 1),
        log_normaliser=torch.log(torch.tensor([[2.0]])),
        log_residual=torch.log(torch.tensor([[0.5]])),
        temperatures=(1.0,),
        num_classes=3,
    )
    distillation_loss(student, soft, temperature=1.0).sum().backward()
    assert student.grad is not None
    share = torch.softmax(torch.tensor([-200.0, -201.0]), 0)
    torch.testing.assert_close(student.grad[0], torch.cat([torch.tensor([0.5]), -0.5 * share]))


def test_low_precision_students_are_summed_in_float32() -> None:
    student, teacher = pair(4, 300)
    low = student.bfloat16()
    found = distillation_loss(low, Dense(teacher), temperature=2.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, distillation_loss(low.float(), Dense(teacher), temperature=2.0))
    assert hard_loss(low, torch.zeros(4, dtype=torch.int64)).dtype == torch.float32
    assert logit_regression_loss(low, Dense(teacher)).dtype == torch.float32


def test_logit_regression_agrees_with_the_definition() -> None:
    student, teacher = pair(5, 7)
    z, v = (x.double().numpy() - x.double().numpy().mean(axis=1, keepdims=True) for x in (student, teacher))
    np.testing.assert_allclose(
        logit_regression_loss(student, Dense(teacher)).numpy(), 0.5 * ((z - v) ** 2).mean(axis=1), rtol=1e-5
    )


def test_hard_loss_agrees_with_the_definition_and_skips_rows_without_a_label() -> None:
    student = pair(4, 5)[0].requires_grad_()
    labels = torch.tensor([3, -1, 0, 4])
    loss = hard_loss(student, labels)
    expected = -np.log(softmax64(student.detach()))[[0, 2, 3], [3, 0, 4]]
    np.testing.assert_allclose(loss.detach().numpy()[[0, 2, 3]], expected, rtol=1e-5)
    loss.sum().backward()
    assert student.grad is not None
    assert loss[1] == 0 and torch.equal(student.grad[1], torch.zeros(5))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_should_be_above_zero(temperature: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        distillation_loss(torch.zeros(1, 2), Dense(torch.zeros(1, 2)), temperature=temperature)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(EncodingError, match=r"\(2, 3\).*\(2, 4\)"):
        distillation_loss(torch.zeros(2, 4), Dense(torch.zeros(2, 3)), temperature=1.0)
    with pytest.raises(EncodingError, match="another number of rows"):
        logit_regression_loss(torch.zeros(1, 3), Dense(torch.zeros(2, 3)))


def test_topk_refuses_what_it_cannot_answer() -> None:
    labels = topk_of(np.zeros((1, 4)), 2, (1.0, 4.0), torch.float32)
    with pytest.raises(TemperatureError, match="T = 1, 4"):
        distillation_loss(torch.zeros(1, 4), labels, temperature=2.0)
    with pytest.raises(EncodingError, match="--encoding dense"):
        logit_regression_loss(torch.zeros(1, 4), labels)
