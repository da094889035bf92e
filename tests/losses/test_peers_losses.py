"""Losses of peers against their definitions in float64, and what no gradient may reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError, EncodingError
from pipeline.losses import gated_logits, mean_logits, mutual_loss, taught_loss
from tests.losses.references import kl64, softmax64

N, B, C = 3, 5, 4


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("count", [2, N])
def test_mutual_is_the_mean_of_kl_from_each_of_the_others(count: int, temperature: float) -> None:
    given = logits(count, B, C)
    p = [softmax64(each.numpy(), temperature) for each in given]
    found = mutual_loss(given, temperature=temperature)
    for i in range(count):
        others = [kl64(p[j], p[i]) for j in range(count) if j != i]
        np.testing.assert_allclose(found[i].numpy(), temperature**2 * np.mean(others, axis=0), rtol=1e-11)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_taught_is_kl_from_one_teacher_to_each(temperature: float) -> None:
    students, teacher = logits(N, B, C), logits(B, C, seed=1)
    p = softmax64(teacher.numpy(), temperature)
    found = taught_loss(students, teacher, temperature=temperature)
    for each, values in zip(students, found, strict=True):
        expected = temperature**2 * kl64(p, softmax64(each.numpy(), temperature))
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-11)
        torch.testing.assert_close(taught_loss(each, teacher, temperature=temperature), values)


def test_the_mean_probability_and_the_gated_mean_of_logits() -> None:
    given, gate = logits(N, B, C), logits(N, seed=2)
    mean = np.mean([softmax64(each.numpy(), 3.0) for each in given], axis=0)
    np.testing.assert_allclose(softmax64(mean_logits(given, temperature=3.0).numpy(), 3.0), mean, rtol=1e-11)
    weights = softmax64(gate.numpy()[None])[0]
    expected = sum(w * each.numpy() for w, each in zip(weights, given, strict=True))
    np.testing.assert_allclose(gated_logits(given, gate).numpy(), expected, rtol=1e-11)
    torch.testing.assert_close(gated_logits(given, torch.zeros(N, dtype=torch.float64)), given.mean(dim=0))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradients_of_the_side_that_learns_are_exact(temperature: float) -> None:
    others, teacher = logits(2, B, C, seed=1), logits(B, C, seed=2)

    def mutual(own: Tensor) -> Tensor:
        return mutual_loss(torch.cat([own[None], others]), temperature=temperature)[0]

    own = logits(B, C).requires_grad_()
    assert torch.autograd.gradcheck(mutual, own)
    assert torch.autograd.gradcheck(lambda own: taught_loss(own, teacher, temperature=temperature), own)
    assert torch.autograd.gradcheck(lambda z: mean_logits(z, temperature=temperature), logits(N, B, C).requires_grad_())
    assert torch.autograd.gradcheck(gated_logits, (logits(N, B, C).requires_grad_(), logits(N).requires_grad_()))


def test_no_gradient_reaches_the_side_that_teaches() -> None:
    given = logits(N, B, C).requires_grad_()
    mutual_loss(given, temperature=2.0)[1].sum().backward()
    assert given.grad is not None
    assert given.grad[1].abs().sum() > 0 and not given.grad[[0, 2]].any()
    student, teacher = logits(B, C).requires_grad_(), logits(B, C, seed=1).requires_grad_()
    taught_loss(student, teacher, temperature=2.0).sum().backward()
    assert student.grad is not None and teacher.grad is None


def test_peers_that_agree_lose_nothing_and_order_does_not_count() -> None:
    given = logits(N, B, C)
    same = given[:1].expand(N, B, C) + torch.arange(N, dtype=torch.float64)[:, None, None]
    assert mutual_loss(same, temperature=3.0).abs().max() < 1e-12
    found = mutual_loss(given, temperature=3.0)
    torch.testing.assert_close(mutual_loss(given.flip(0), temperature=3.0).flip(0), found)


def test_half_precision_is_widened_and_extreme_logits_stay_finite() -> None:
    given = logits(N, B, C)
    found = mutual_loss(given.half(), temperature=1.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, mutual_loss(given.half().double(), temperature=1.0).float(), rtol=1e-3, atol=1e-3)
    far = (given.float() * 1000).requires_grad_()
    mutual_loss(far, temperature=1.0).sum().backward()
    assert far.grad is not None and bool(torch.isfinite(far.grad).all())


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="two or more are needed; found 1"):
        mutual_loss(logits(1, B, C), temperature=1.0)
    with pytest.raises(ConfigError, match="temperature should be above 0"):
        mean_logits(logits(N, B, C), temperature=0.0)
    with pytest.raises(EncodingError, match="same rows and classes"):
        taught_loss(logits(N, B, C), logits(B, C + 1), temperature=1.0)
