"""Sampled labels: their cross-entropy by the definition in float64, unbiased, and refused where it would not be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError, EncodingError, TemperatureError
from pipeline.losses import LOSSES, distillation_loss, opinions_loss, standardised_labels
from pipeline.softlabels import Dense, Opinion, Opinions, Sampled
from pipeline.training import Objective
from pipeline.training.methods import table
from pipeline.training.objective import Batch, Output
from tests.losses.references import Array, draws64, kl64, pair, sampled_of, softmax64

ROWS, CLASSES = 6, 9
NONE = torch.full((ROWS,), -1)


def some(temperature: float, seed: int = 0, rows: int = ROWS, classes: int = CLASSES) -> tuple[Sampled, Array]:
    """Draws of a proposal that is not the teacher: their weights do not sum to 1."""
    p = softmax64(pair(rows, classes, seed)[1].numpy(), temperature)
    return draws64(p, p**0.5, 5, temperature, np.random.default_rng(seed))


def cross_entropy64(weights: Array, student: Tensor, temperature: float) -> Array:
    q = softmax64(student.detach().numpy(), temperature)
    return np.asarray(-(weights * np.log(q)).sum(axis=1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("classes", [1, 2, 9, 1000])
def test_agrees_with_the_definition(classes: int, temperature: float) -> None:
    student = pair(ROWS, classes)[0]
    soft, weights = some(temperature, classes=classes)
    found = distillation_loss(student, soft, temperature=temperature)
    assert found.dtype == torch.float32 and found.shape == (ROWS,)
    expected = temperature**2 * cross_entropy64(weights, student, temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
def test_gradients_are_exact(temperature: float) -> None:
    student = pair(ROWS, CLASSES)[0].double().requires_grad_()
    soft, weights = some(temperature)
    assert torch.autograd.gradcheck(lambda z: distillation_loss(z, soft, temperature=temperature), student)
    (found,) = torch.autograd.grad(distillation_loss(student, soft, temperature=temperature).sum(), student)
    q = softmax64(student.detach().numpy(), temperature)
    np.testing.assert_allclose(found.numpy(), temperature * (weights.sum(axis=1, keepdims=True) * q - weights))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_the_mean_over_draws_is_kl_and_entropy_and_the_gradient_that_of_kl(power: float, temperature: float) -> None:
    """20,000 rows of 4 draws each. One of these 40 means is beyond 5.5 standard errors for one seed in 600,000."""
    rows, draws = 20_000, 4
    student, teacher = (z.double() for z in pair(1, CLASSES, seed=3, scale=1.5))
    p = softmax64(teacher.numpy(), temperature)
    proposal = p**power / (p**power).sum()
    soft, _ = draws64(p.repeat(rows, 0), proposal.repeat(rows, 0), draws, temperature, np.random.default_rng(7))
    leaf = student.repeat(rows, 1).requires_grad_()
    values = distillation_loss(leaf, soft, temperature=temperature)
    (gradients,) = torch.autograd.grad(values.sum(), leaf)
    q = softmax64(student.numpy(), temperature)
    expected = temperature**2 * (kl64(p, q) - (p * np.log(p)).sum(axis=1))
    for found, mean in ((values[:, None].detach(), expected), (gradients, temperature * (q - p)[0])):
        error = found.numpy().std(axis=0) / rows**0.5
        assert (error > 0).all()
        assert (np.abs(found.numpy().mean(axis=0) - mean) < 5.5 * error).all()


def test_weights_that_are_the_distribution_itself_give_the_gradient_of_kl() -> None:
    student, teacher = (z.double() for z in pair(ROWS, CLASSES))
    whole = sampled_of(softmax64(teacher.numpy(), 2.0), 2.0)
    gradients = []
    for soft in (whole, Dense(teacher)):
        leaf = student.clone().requires_grad_()
        gradients.append(torch.autograd.grad(distillation_loss(leaf, soft, temperature=2.0).sum(), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


def test_a_constant_added_to_a_row_changes_nothing_though_weights_do_not_sum_to_one() -> None:
    student, (soft, weights) = pair(ROWS, CLASSES)[0].double(), some(2.0)
    assert abs(weights.sum(axis=1) - 1).max() > 0.1
    losses = [distillation_loss(student + shift, soft, temperature=2.0) for shift in (0.0, 40.0)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)


def test_rows_stand_alone_and_one_without_draws_has_no_loss() -> None:
    student = pair(ROWS, CLASSES)[0].double()
    weights = some(2.0)[1]
    weights[2] = 0.0
    soft = sampled_of(weights, 2.0)
    leaf = student.clone().requires_grad_()
    losses = distillation_loss(leaf, soft, temperature=2.0)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    assert losses[2] == 0 and torch.equal(gradient[2], torch.zeros(CLASSES, dtype=torch.float64))
    order = np.array([4, 0, 5])
    alone = distillation_loss(student[order], sampled_of(weights[order], 2.0), temperature=2.0)
    torch.testing.assert_close(losses[order].detach(), alone)


def test_extreme_logits_and_low_precision() -> None:
    soft = sampled_of(np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.7]]), 1.0)
    student = torch.tensor([[300.0, -300.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    losses = distillation_loss(student, soft, temperature=1.0)
    losses.sum().backward()
    torch.testing.assert_close(losses.detach(), torch.tensor([600.0, 1.2 * float(np.log(3))]))
    torch.testing.assert_close(student.grad, torch.tensor([[1.0, -1.0, 0.0], [-0.1, 0.4, -0.3]]))
    assert distillation_loss(student.detach().bfloat16(), soft, temperature=1.0).dtype == torch.float32


def test_the_catalogue_says_which_losses_take_them_and_the_others_refuse() -> None:
    student, soft = pair(ROWS, CLASSES)[0], some(2.0)[0]
    assert {name for name, loss in LOSSES.items() if loss.sampled} == {"kl"}
    for loss in LOSSES.values():
        if not loss.sampled:
            with pytest.raises(
                EncodingError, match=r"needs? (the logits of all|the teacher's).*sampled labels.*--loss kl"
            ):
                loss(student, soft, torch.zeros(ROWS, dtype=torch.int64), 2.0)
    assert "dense, top-k, sampled" in table().splitlines()[3]


def test_standardised_and_bare_labels_are_made_of_others() -> None:
    student, soft = pair(ROWS, CLASSES)[0], some(2.0)[0]
    with pytest.raises(EncodingError, match=r"standardised logits need.*sampled labels"):
        standardised_labels(soft)
    with pytest.raises(EncodingError, match="bare top-k labels are made of top-k ones; found sampled"):
        Objective(1.0, 0.0, 2.0, bare=True)(Output(student), Batch(NONE, soft))


def test_what_does_not_fit_is_named() -> None:
    soft = some(2.0)[0]
    with pytest.raises(TemperatureError, match="T = 2"):
        distillation_loss(torch.zeros(ROWS, CLASSES), soft, temperature=1.0)
    with pytest.raises(EncodingError, match=r"\(6, 9\).*\(6, 8\)"):
        distillation_loss(torch.zeros(ROWS, CLASSES - 1), soft, temperature=2.0)
    with pytest.raises(ConfigError, match="above 0"):
        distillation_loss(torch.zeros(ROWS, CLASSES), soft, temperature=0.0)


def test_the_objective_and_several_teachers_take_them() -> None:
    student = pair(ROWS, CLASSES)[0].double()
    (first, one), (second, two) = some(2.0, 1), some(2.0, 2, classes=3)
    has = torch.tensor([True, False, True, True, False, True])
    terms = Objective(0.5, 0.0, 2.0)(Output(student), Batch(NONE, first, has))
    losses = 4 * cross_entropy64(one, student, 2.0)
    assert terms.soft is not None and float(terms.soft) == pytest.approx(losses[has.numpy()].sum())
    assert float(terms.total) == pytest.approx(0.5 * float(terms.soft))
    own, share = torch.tensor([7, 0, 4]), torch.linspace(0.1, 0.9, ROWS, dtype=torch.float64)
    given = Opinions((Opinion(first, None, 1 - share), Opinion(second, own, share)))
    found = opinions_loss(student, NONE, given, lambda z, _, soft: distillation_loss(z, soft, temperature=2.0))
    expected = (1 - share.numpy()) * losses + share.numpy() * 4 * cross_entropy64(two, student[:, own], 2.0)
    np.testing.assert_allclose(found.numpy(), expected)
