"""The other divergences, against their definitions in float64: on all classes, and on what top-k labels tell apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, TemperatureError
from pipeline.losses import (
    distillation_loss,
    jensen_shannon_loss,
    logit_regression_loss,
    reverse_kl_loss,
    skewed_kl_loss,
    skewed_reverse_kl_loss,
)
from pipeline.softlabels import Dense, SoftLabels, TopK
from tests.losses.references import Array, kl64, pair, partition64, softmax64, topk_of

Loss = Callable[..., torch.Tensor]


def js64(p: Array, q: Array, weight: float) -> Array:
    m = weight * p + (1 - weight) * q
    return np.asarray(weight * kl64(p, m) + (1 - weight) * kl64(q, m))


# Each: the loss, its definition for teacher p and student q, and its limit over that of logit regression.
CASES: dict[str, tuple[Loss, Callable[[Array, Array], Array], float]] = {
    "reverse-kl": (reverse_kl_loss, lambda p, q: kl64(q, p), 1.0),
    "jensen-shannon": (jensen_shannon_loss, lambda p, q: js64(p, q, 0.5), 0.25),
    "jensen-shannon 0.9": (
        lambda z, s, **k: jensen_shannon_loss(z, s, weight=0.9, **k),
        lambda p, q: js64(p, q, 0.9),
        0.09,
    ),
    "skewed-kl": (skewed_kl_loss, lambda p, q: kl64(p, 0.1 * p + 0.9 * q), 0.81),
    "skewed-kl 0.5": (
        lambda z, s, **k: skewed_kl_loss(z, s, skew=0.5, **k),
        lambda p, q: kl64(p, 0.5 * p + 0.5 * q),
        0.25,
    ),
    "skewed-reverse-kl": (skewed_reverse_kl_loss, lambda p, q: kl64(q, 0.1 * q + 0.9 * p), 0.81),
}
every_loss = pytest.mark.parametrize("name", CASES)


@every_loss
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("classes", [1, 2, 10, 300])
def test_dense_labels_give_the_definition(name: str, classes: int, temperature: float) -> None:
    loss, definition, _ = CASES[name]
    student, teacher = pair(6, classes)
    found = loss(student, Dense(teacher), temperature=temperature)
    assert found.dtype == torch.float32 and found.shape == (6,)
    expected = temperature**2 * definition(softmax64(teacher, temperature), softmax64(student, temperature))
    np.testing.assert_allclose(found.numpy(), expected, rtol=5e-5, atol=3e-6 * temperature**2)


@every_loss
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("classes", "k"), [(10, 1), (10, 4), (10, 9), (10, 10), (300, 16), (2, 1)])
def test_topk_labels_give_the_definition_on_their_cells(name: str, classes: int, k: int, temperature: float) -> None:
    loss, definition, _ = CASES[name]
    student, teacher = pair(6, classes)
    labels = topk_of(teacher.numpy(), k, (1.0, 4.0), torch.float32)
    p, q = (partition64(softmax64(x, temperature), labels.ids.numpy()) for x in (teacher, student))
    if k == classes:
        p, q = p[:, :-1], q[:, :-1]
    found = loss(student, labels, temperature=temperature)
    np.testing.assert_allclose(found.numpy(), temperature**2 * definition(p, q), rtol=5e-5, atol=3e-6 * temperature**2)
    whole = loss(student, Dense(teacher), temperature=temperature)
    assert (found <= whole + 1e-4 * temperature**2).all(), "merging classes never makes a divergence larger"


@every_loss
@pytest.mark.parametrize("k", [0, 1, 3, 6])
def test_gradients_are_exact(name: str, k: int) -> None:
    student, teacher = (x.double() for x in pair(4, 6, scale=1.5))
    soft: SoftLabels = topk_of(teacher.numpy(), k, (3.0,), torch.float64) if k else Dense(teacher)
    loss = CASES[name][0]
    assert torch.autograd.gradcheck(lambda z: loss(z, soft, temperature=3.0), student.requires_grad_())


@every_loss
def test_shifts_and_the_order_of_classes_change_nothing(name: str) -> None:
    loss = CASES[name][0]
    student, teacher = (x.double() for x in pair(5, 8, seed=3))
    reference = loss(student, Dense(teacher), temperature=2.0)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    for z, v in ((student + 7, teacher - 30), (student[:, order], teacher[:, order])):
        torch.testing.assert_close(loss(z, Dense(v), temperature=2.0), reference, rtol=1e-9, atol=1e-11)
    assert (reference > 0).all()
    assert loss(teacher + 3, Dense(teacher), temperature=2.0).abs().max() < 1e-12


@every_loss
def test_a_high_temperature_tends_to_a_share_of_logit_regression(name: str) -> None:
    loss, _, share = CASES[name]
    student, teacher = (x.double() for x in pair(6, 9))
    limit = share * logit_regression_loss(student, Dense(teacher))
    gaps = [(loss(student, Dense(teacher), temperature=t) - limit).abs().max() for t in (10.0, 100.0, 1000.0)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-2 * limit.max()


def test_a_weight_near_one_tends_to_the_two_kls() -> None:
    # Agarwal et al. 2024: the divergence over its weight tends to KL(p || q), and likewise on the other side.
    student, teacher = (x.double() for x in pair(6, 9, scale=1.0))
    forward = distillation_loss(student, Dense(teacher), temperature=1.0)
    reverse = reverse_kl_loss(student, Dense(teacher), temperature=1.0)
    low = jensen_shannon_loss(student, Dense(teacher), temperature=1.0, weight=1e-5) / 1e-5
    high = jensen_shannon_loss(student, Dense(teacher), temperature=1.0, weight=1 - 1e-5) / 1e-5
    torch.testing.assert_close(low, forward, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(high, reverse, rtol=1e-3, atol=1e-4)


@every_loss
def test_extreme_logits_and_an_empty_residual_stay_finite(name: str) -> None:
    loss = CASES[name][0]
    student = torch.tensor([[200.0, 0.0, -200.0, 0.0], [-300.0, 300.0, 0.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 200.0, 0.0, 0.0], [300.0, -300.0, 0.0, 1.0]])
    kept = topk_of(teacher.numpy(), 2, (1.0,), torch.float32)
    empty = TopK(kept.ids, kept.logits, kept.log_normaliser, torch.full((2, 1), -torch.inf), (1.0,), 4)
    for soft in (Dense(teacher), kept, empty):
        found = loss(student, soft, temperature=1.0)
        (gradient,) = torch.autograd.grad(found.sum(), student)
        assert torch.isfinite(found).all() and torch.isfinite(gradient).all()


@every_loss
def test_half_precision_is_widened(name: str) -> None:
    loss = CASES[name][0]
    student, teacher = pair(4, 50)
    found = loss(student.bfloat16(), Dense(teacher.half()), temperature=2.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, loss(student.bfloat16().float(), Dense(teacher.half().float()), temperature=2.0), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_shares_lie_between_zero_and_one(share: float) -> None:
    student, teacher = pair(2, 3)
    for call in (
        lambda: skewed_kl_loss(student, Dense(teacher), temperature=1.0, skew=share),
        lambda: skewed_reverse_kl_loss(student, Dense(teacher), temperature=1.0, skew=share),
        lambda: jensen_shannon_loss(student, Dense(teacher), temperature=1.0, weight=share),
    ):
        with pytest.raises(ConfigError, match="above 0 and below 1"):
            call()


@every_loss
def test_a_temperature_that_was_not_kept_is_refused(name: str) -> None:
    labels = topk_of(np.zeros((1, 4)), 2, (1.0, 4.0), torch.float32)
    with pytest.raises(TemperatureError, match="T = 1, 4"):
        CASES[name][0](torch.zeros(1, 4), labels, temperature=2.0)
    with pytest.raises(ConfigError, match="above 0"):
        CASES[name][0](torch.zeros(1, 4), labels, temperature=0.0)
