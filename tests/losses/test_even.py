"""KL on top-k labels whose residual is spread evenly, in float64 that on all classes with the spread written out.

The loss never makes the spread target; these tests do, from the teacher's logits and from nothing in ``pipeline``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError, EncodingError
from pipeline.losses import LOSSES, distillation_loss, fused_loss, opinions_loss
from pipeline.softlabels import Dense, Opinion, Opinions, TopK
from pipeline.trainer import token_loss
from pipeline.training import Objective
from pipeline.training.methods import table
from pipeline.training.objective import Batch, Head, Output
from tests.losses.references import kl64, pair, sampled_of, softmax64, topk_of

ROWS, CLASSES, WIDTH = 17, 11, 4
SPREAD = (("residual", "even"),)
NONE = torch.full((ROWS,), -1)
every_k = pytest.mark.parametrize("k", [1, 4, 10, 11])
both_temperatures = pytest.mark.parametrize("temperature", [1.0, 3.0])
even = partial(distillation_loss, residual="even")


def kept(teacher: Tensor, k: int, dtype: torch.dtype = torch.float64) -> TopK:
    return topk_of(teacher.numpy(), k, (1.0, 3.0), dtype)


def spread(teacher: Tensor, k: int, temperature: float) -> Tensor:
    """The teacher's probabilities (B, C) with those of the dropped classes in equal shares, float64."""
    p = softmax64(teacher.numpy(), temperature)
    for row in p:
        dropped = np.argsort(-row, kind="stable")[k:]
        if len(dropped):
            row[dropped] = row[dropped].mean()
    return torch.from_numpy(p)


def widened(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(target || student), (B,), by autograd."""
    log_q = torch.log_softmax(logits / temperature, dim=1)
    return temperature**2 * (target * (target.log() - log_q)).sum(dim=1)


def doubles(rows: int = ROWS, classes: int = CLASSES, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    student, teacher = (each.double() for each in pair(rows, classes, seed, scale))
    return student.requires_grad_(), teacher


@every_k
@both_temperatures
def test_it_is_kl_to_the_spread_distribution(k: int, temperature: float) -> None:
    student, teacher = doubles()
    found = even(student, kept(teacher, k), temperature=temperature)
    target = spread(teacher, k, temperature)
    by_numpy = temperature**2 * kl64(target.numpy(), softmax64(student.detach().numpy(), temperature))
    np.testing.assert_allclose(found.detach().numpy(), by_numpy, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(0, 2, ROWS, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found * weights).sum(), student)
    (expected,) = torch.autograd.grad((widened(student, target, temperature) * weights).sum(), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)
    low = student.detach().float().requires_grad_()
    narrow = even(low, kept(teacher, k, torch.float32), temperature=temperature)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), found, rtol=1e-5, atol=2e-6 * temperature**2)
    (rough,) = torch.autograd.grad((narrow * weights.float()).sum(), low)
    assert (rough - expected).norm() <= 1e-5 * expected.norm()


@every_k
@both_temperatures
def test_gradcheck(k: int, temperature: float) -> None:
    student, teacher = doubles(4)
    labels = kept(teacher, k)
    assert torch.autograd.gradcheck(lambda z: even(z, labels, temperature=temperature), student)


@both_temperatures
def test_without_a_residual_it_is_the_loss_on_one_outcome(temperature: float) -> None:
    student, teacher = doubles()
    bare = kept(teacher, 4).bare()
    sure = teacher.clone()
    sure[:, 3] += 4000.0  # the dropped mass underflows
    for labels in (kept(teacher, CLASSES), bare, kept(sure, 2)):
        assert not labels.log_residual.exp().any()
        found = [f(student, labels, temperature=temperature) for f in (even, distillation_loss)]
        torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
        slopes = [torch.autograd.grad(each.sum(), student)[0] for each in found]
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-12, atol=1e-12)
    dense = distillation_loss(student, Dense(teacher), temperature=temperature)
    torch.testing.assert_close(even(student, kept(teacher, CLASSES), temperature=temperature), dense)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_at_least_the_loss_on_one_outcome_and_0_at_the_spread_alone(seed: int) -> None:
    """Merging cells takes from a divergence; nothing where the student spreads its own mass evenly too."""
    student, teacher = doubles(seed=seed)
    labels = kept(teacher, 4)
    assert (even(student, labels, temperature=3.0) >= distillation_loss(student, labels, temperature=3.0)).all()
    own = (3.0 * spread(teacher, 4, 3.0).log() + 7.0).requires_grad_()
    at_target = even(own, labels, temperature=3.0)
    (gradient,) = torch.autograd.grad(at_target.sum(), own)
    assert at_target.abs().max() < 1e-12 and gradient.abs().max() < 1e-12
    flat = spread(student.detach(), 0, 1.0).log()
    torch.testing.assert_close(even(flat, labels, temperature=3.0), distillation_loss(flat, labels, temperature=3.0))


@pytest.mark.parametrize("dropped", [1, 3, 20_000])
def test_float32_over_many_classes_loses_nothing_to_the_difference_of_sums(dropped: int) -> None:
    student, teacher = doubles(3, 20_003, scale=8.0)
    k = 20_003 - dropped
    target = spread(teacher, k, 1.0)
    exact = widened(student, target, 1.0)
    (slope,) = torch.autograd.grad(exact.sum(), student)
    low = student.detach().float().requires_grad_()
    found = even(low, kept(teacher, k, torch.float32), temperature=1.0)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    (rough,) = torch.autograd.grad(found.sum(), low)
    assert (rough - slope).norm() <= 1e-5 * slope.norm()


def test_extreme_logits_stay_finite_and_correct() -> None:
    student = torch.tensor([[200.0, 0.0, -200.0, 0.0], [-300.0, 300.0, 0.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 200.0, 0.0, 0.0], [500.0, -500.0, 0.0, 1.0]])
    loss = even(student, kept(teacher, 2, torch.float32), temperature=1.0)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([200.0, 600.0]))
    assert torch.isfinite(student.grad).all()  # type: ignore[arg-type]
    # A student that gives up classes which have a share is pulled by that share.
    half = torch.log(torch.tensor([[0.5]]))
    labels = TopK(torch.tensor([[0]]), torch.zeros(1, 1), -half, half, (1.0,), 3)
    given_up = torch.tensor([[0.0, -200.0, -201.0]], requires_grad=True)
    even(given_up, labels, temperature=1.0).sum().backward()
    torch.testing.assert_close(given_up.grad, torch.tensor([[0.5, -0.25, -0.25]]))
    assert even(given_up.detach().bfloat16(), labels, temperature=1.0).dtype == torch.float32


def layer(positions: int = ROWS) -> list[Tensor]:
    """Hidden states, weight and bias, float64 leaves."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((positions, WIDTH), (CLASSES, WIDTH), (CLASSES,))
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def known() -> tuple[Tensor, Tensor]:
    """Targets, some of them none, and which positions have soft labels."""
    generator = torch.Generator().manual_seed(9)
    targets = torch.randint(-1, CLASSES, (ROWS,), generator=generator)
    return targets, torch.rand(ROWS, generator=generator) > 0.3


def mixed(parts: list[Tensor], target: Tensor, has: Tensor, targets: Tensor, at: float, smoothing: float) -> Tensor:
    """0.3 of the soft and 0.7 of the hard loss, from all logits at once."""
    logits = parts[0] @ parts[1].t() + parts[2]
    aim = torch.nn.functional.one_hot(targets.clamp_min(0), CLASSES).double() * (1 - smoothing) + smoothing / CLASSES
    hard = -(aim * torch.log_softmax(logits, dim=1)).sum(dim=1) * (targets >= 0)
    return (0.3 * widened(logits, target, at) * has + 0.7 * hard).sum()


@every_k
@both_temperatures
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_fused_and_not_with_hard_labels_masks_and_smoothing(k: int, temperature: float, smoothing: float) -> None:
    teacher, (targets, has), parts = doubles(scale=3.0)[1], known(), layer()
    soft = kept(teacher, k)
    expected = mixed(parts, spread(teacher, k, temperature), has, targets, temperature, smoothing)
    slopes = torch.autograd.grad(expected, parts)
    objective = Objective(0.3, 0.7, temperature, parameters=SPREAD, smoothing=smoothing)
    assert objective.fusible and objective.even
    batch = Batch(targets, soft, has)
    whole = objective(Output(parts[0] @ parts[1].t() + parts[2]), batch)
    fused = objective(Output(parts[0], head=Head(parts[1], parts[2])), batch)
    chunked = [
        fused_loss(
            *parts, targets_P=targets, soft=soft, has_soft=has, alpha=0.3, beta=0.7, temperature=temperature,
            smoothing=smoothing, residual="even", chunk=chunk,
        )
        for chunk in (1, 5, 100)
    ]  # fmt: skip
    for terms in (whole, fused, *chunked):
        torch.testing.assert_close(terms.total, expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(torch.autograd.grad(terms.total, parts), slopes, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(terms.soft.detach(), whole.soft.detach(), rtol=1e-11, atol=1e-11)  # type: ignore[union-attr]


@both_temperatures
def test_fused_gradcheck(temperature: float) -> None:
    teacher, (targets, has), parts = doubles(scale=1.0)[1], known(), layer(5)
    soft = kept(teacher[:5], 4)

    def total(*parts: Tensor) -> Tensor:
        return fused_loss(
            *parts, targets_P=targets[:5], soft=soft, has_soft=has[:5], alpha=0.4, beta=0.6, temperature=temperature,
            residual="even", chunk=2,
        ).total  # fmt: skip

    assert torch.autograd.gradcheck(total, parts)


def agree_compiled(device: str, compiled: bool, temperature: float) -> None:
    teacher, (targets, has), parts = doubles(scale=3.0)[1], known(), layer()
    expected = mixed(parts, spread(teacher, 4, temperature), has, targets, temperature, 0.0)
    there = [part.detach().to(device).requires_grad_() for part in parts]
    found = fused_loss(
        *there, targets_P=targets.to(device), soft=kept(teacher, 4).map(lambda a: a.to(device)),
        has_soft=has.to(device), alpha=0.3, beta=0.7, temperature=temperature, residual="even", chunk=5,
        compile_chunks=compiled,
    )  # fmt: skip
    torch.testing.assert_close(found.total.cpu(), expected)
    for one, other in zip(torch.autograd.grad(found.total, there), torch.autograd.grad(expected, parts), strict=True):
        torch.testing.assert_close(one.cpu(), other)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
@both_temperatures
def test_compiled_chunks_agree(temperature: float) -> None:
    agree_compiled("cpu", True, temperature)


@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@both_temperatures
def test_on_a_gpu(compiled: bool, temperature: float) -> None:
    agree_compiled("cuda", compiled, temperature)


def test_each_of_several_teachers_is_spread_over_the_classes_that_it_knows() -> None:
    student, teacher = doubles()
    own = torch.tensor([6, 0, 3, 1])
    weights = torch.linspace(0.1, 0.9, ROWS, dtype=torch.float64)
    whole, part = kept(teacher, 3), kept(teacher[:, own], 2)
    given = Opinions((Opinion(whole, None, 1 - weights), Opinion(part, own, weights)))
    targets = spread(teacher, 3, 3.0), spread(teacher[:, own], 2, 3.0)
    expected = (1 - weights) * widened(student, targets[0], 3.0) + weights * widened(student[:, own], targets[1], 3.0)
    found = opinions_loss(student, NONE, given, lambda z, _, soft: even(z, soft, temperature=3.0))
    torch.testing.assert_close(found, expected)
    terms = Objective(1.0, 0.0, 3.0, parameters=SPREAD)(Output(student), Batch(NONE, given))
    torch.testing.assert_close(terms.total, expected.sum())


def test_it_drops_into_the_trainers_loss() -> None:
    student, teacher = doubles()
    targets = torch.where(torch.arange(ROWS) % 5 == 0, -100, torch.arange(ROWS) % CLASSES)
    scored = targets >= 0
    soft = kept(teacher[scored], 3)
    found = token_loss(student[None], soft, targets[None], alpha=0.4, temperature=3.0, items=10.0, loss=even)
    hard = torch.nn.functional.cross_entropy(student[scored], targets[scored], reduction="sum")
    value = widened(student[scored], spread(teacher[scored], 3, 3.0), 3.0).sum()
    torch.testing.assert_close(found, (0.4 * value + 0.6 * hard) / 10)


UNFIT: dict[str, Callable[[Tensor], Any]] = {
    "labels of all classes": Dense,
    "sampled ones": lambda teacher: sampled_of(softmax64(teacher.numpy()), 1.0),
}


@pytest.mark.parametrize("found", UNFIT)
def test_labels_without_a_residual_are_refused_by_name(found: str) -> None:
    student, teacher = doubles()
    soft, parts = UNFIT[found](teacher), layer()
    calls: list[Callable[[], object]] = [
        lambda: even(student, soft, temperature=1.0),
        lambda: fused_loss(*parts, soft=soft, alpha=1.0, residual="even"),
        lambda: Objective(1.0, 0.0, 1.0, parameters=SPREAD)(Output(student), Batch(NONE, soft)),
    ]
    for call in calls:
        with pytest.raises(EncodingError, match=f"spreads what top-k labels dropped; found {found}.*--encoding topk"):
            call()
    assert torch.isfinite(distillation_loss(student, soft, temperature=1.0, residual="one")).all()


def test_what_is_no_residual_and_other_losses_are_refused_by_name() -> None:
    student, teacher = doubles()
    with pytest.raises(ConfigError, match="residual should be one of one, even; found 'flat'"):
        distillation_loss(student, kept(teacher, 3), temperature=1.0, residual="flat")
    with pytest.raises(ConfigError, match="residual should be one of one, even; found 'flat'"):
        fused_loss(*layer(), targets_P=NONE, residual="flat")
    for name, loss in LOSSES.items():
        problems = loss.problems(name, {"residual": "even"})
        assert problems == [] if name == "kl" else f"--loss {name} has no parameter 'residual'" in problems[0]
    assert LOSSES["kl"].problems("kl", {"residual": 1}) == [
        "--loss-args: residual of kl should be one of one, even; found 1"
    ]
    (row,) = [line for line in table().splitlines() if "residual=even" in line]
    assert row.split("--loss-args residual=even")[1].split()[0] == "top-k"
