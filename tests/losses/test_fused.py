"""The fused output layer and losses against all logits at once in float64, and what memory they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pipeline.errors import ConfigError, EncodingError, ModelError, TemperatureError
from pipeline.losses import FusedTerms, fused_loss
from pipeline.softlabels import Dense, Sampled, SoftLabels, TopK
from pipeline.training import Objective
from pipeline.training.objective import Batch, Output
from tests.losses.references import draws64, softmax64, topk_of

POSITIONS, WIDTH, CLASSES = 23, 5, 12
KINDS = ("hard", "top-1", "top-4", "top-11", "top-12", "sampled", "dense")
every_kind = pytest.mark.parametrize("kind", KINDS)
both_temperatures = pytest.mark.parametrize("temperature", [1.0, 2.0])


def layer(positions: int = POSITIONS, seed: int = 0, scale: float = 1.5) -> list[Tensor]:
    """Hidden states, weight and bias, float64 leaves."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((positions, WIDTH), (CLASSES, WIDTH), (CLASSES,))
    return [(scale * torch.randn(s, generator=generator, dtype=torch.float64)).requires_grad_() for s in shapes]


def labels(kind: str, temperature: float, positions: int = POSITIONS, dtype: torch.dtype = torch.float64) -> Any:
    """Soft labels of one kind, None for hard labels alone."""
    teacher = np.random.default_rng(5).normal(size=(positions, CLASSES)) * 3
    if kind == "sampled":
        p = softmax64(teacher, temperature)
        return draws64(p, p**0.5, 6, temperature, np.random.default_rng(1))[0]
    if kind.startswith("top"):
        return topk_of(teacher, int(kind[4:]), (1.0, 2.0), dtype)
    return Dense(torch.from_numpy(teacher).to(dtype)) if kind == "dense" else None


def known(positions: int = POSITIONS) -> tuple[Tensor, Tensor]:
    """Targets, some of them none, and which positions have soft labels."""
    generator = torch.Generator().manual_seed(9)
    targets = torch.randint(-1, CLASSES, (positions,), generator=generator)
    return targets, torch.rand(positions, generator=generator) > 0.3


def soft_by_definition(logits: Tensor, soft: SoftLabels, temperature: float) -> Tensor:
    """T^2 KL, on the kept classes and the rest of top-k labels, or T^2 cross-entropy with draws, (P,)."""
    log_q = torch.log_softmax(logits / temperature, dim=1)
    found = []
    for row in range(len(logits)):
        if isinstance(soft, Sampled):
            own = slice(int(soft.offsets[row]), int(soft.offsets[row + 1]))
            found.append(-(soft.weights[own] * log_q[row, soft.ids[own].long()]).sum())
            continue
        if isinstance(soft, Dense):
            log_p, q = torch.log_softmax(soft.logits[row] / temperature, dim=0), log_q[row]
        else:
            kept, residual = (side[row] for side in soft.at(temperature))
            rest = torch.ones(CLASSES, dtype=torch.bool).index_fill(0, soft.ids[row], False)
            log_p, q = kept, log_q[row, soft.ids[row]]
            if rest.any():
                log_p = torch.cat([kept, residual[None]])
                q = torch.cat([q, torch.logsumexp(log_q[row, rest], dim=0)[None]])
        found.append((log_p.exp() * (log_p - q)).sum())
    return temperature**2 * torch.stack(found)


def reference(
    parts: list[Tensor], soft: Any, has: Tensor | None, targets: Tensor | None, temperature: float, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Sums of the hard and the soft term, from all logits at once."""
    logits = parts[0] @ parts[1].t() + (parts[2] if len(parts) > 2 else 0)
    hard = value = logits.sum() * 0
    if targets is not None:
        log_q = torch.log_softmax(logits, dim=1)
        aim = (
            torch.nn.functional.one_hot(targets.clamp_min(0), CLASSES).double() * (1 - smoothing) + smoothing / CLASSES
        )
        hard = (-(aim * log_q).sum(dim=1) * (targets >= 0)).sum()
    if soft is not None:
        rows = soft_by_definition(logits, soft, temperature)
        value = (rows if has is None else rows * has).sum()
    return hard, value


def gradients(total: Tensor, parts: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(total, parts))


@every_kind
@both_temperatures
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mask", [False, True])
def test_agrees_with_all_logits_at_once(kind: str, temperature: float, smoothing: float, mask: bool) -> None:
    targets, has = known()
    has = has if mask else None  # type: ignore[assignment]
    soft = labels(kind, temperature)
    for parts in (layer(), layer()[:2]):
        hard, value = reference(parts, soft, has, targets, temperature, smoothing)
        expected = gradients(0.3 * value + 0.7 * hard, parts)
        for chunk in (1, 8, 23, 100, None):
            found = fused_loss(
                *parts, targets_P=targets, soft=soft, has_soft=has, alpha=0.3, beta=0.7, temperature=temperature,
                smoothing=smoothing, chunk=chunk,
            )  # fmt: skip
            torch.testing.assert_close(found.total, 0.3 * value + 0.7 * hard, rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(found.hard, hard.detach(), rtol=1e-11, atol=1e-11)
            assert (found.soft is None) == (soft is None)
            if found.soft is not None:
                torch.testing.assert_close(found.soft, value.detach(), rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(gradients(found.total, parts), expected, rtol=1e-10, atol=1e-11)


@every_kind
@both_temperatures
def test_float32_is_within_1e_5_of_float64(kind: str, temperature: float) -> None:
    targets, has = known()
    parts, soft = layer(), labels(kind, temperature)
    hard, value = reference(parts, soft, has, targets, temperature, 0.0)
    total = 0.5 * value + 0.5 * hard
    low = [part.detach().float().requires_grad_() for part in parts]
    narrow = soft if soft is None else labels(kind, temperature, dtype=torch.float32)
    found = fused_loss(
        *low, targets_P=targets, soft=narrow, has_soft=has, alpha=0.5, beta=0.5, temperature=temperature, chunk=8
    )
    assert found.total.dtype == torch.float32
    assert found.total.item() == pytest.approx(total.item(), rel=1e-5)
    for one, other in zip(gradients(found.total, low), gradients(total, parts), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 1e-5 * other.norm()


@every_kind
@both_temperatures
def test_gradcheck(kind: str, temperature: float) -> None:
    targets, has = known(5)
    parts, soft = layer(5, scale=0.8), labels(kind, temperature, 5)

    def total(*parts: Tensor) -> Tensor:
        return fused_loss(
            *parts, targets_P=targets, soft=soft, has_soft=has, alpha=0.4, beta=0.6, temperature=temperature, chunk=2
        ).total

    assert torch.autograd.gradcheck(total, parts)


@pytest.mark.parametrize("kind", KINDS[1:])
@both_temperatures
def test_it_is_the_objective(kind: str, temperature: float) -> None:
    targets, has = known()
    parts, soft = layer(), labels(kind, temperature)
    for alpha, beta in ((0.9, 0.1), (1.0, 0.0), (0.0, 1.0)):
        terms = Objective(alpha, beta, temperature, smoothing=0.05)(
            Output(parts[0] @ parts[1].t() + parts[2]), Batch(targets, soft, has)
        )
        found = fused_loss(
            *parts, targets_P=targets, soft=soft, has_soft=has, alpha=alpha, beta=beta, temperature=temperature,
            smoothing=0.05, chunk=7,
        )  # fmt: skip
        for one, other in zip(found, (terms.total, terms.hard, terms.soft), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(gradients(found.total, parts), gradients(terms.total, parts), rtol=1e-10, atol=1e-11)


def test_the_backward_pass_scales_may_be_repeated_and_leaves_out_what_needs_none() -> None:
    targets, _ = known()
    parts = layer()
    first = fused_loss(*parts, targets_P=targets, chunk=8)
    expected = [3 * g for g in gradients(fused_loss(*parts, targets_P=targets, chunk=8).total, parts)]
    for _ in range(2):
        scaled = torch.autograd.grad(3 * first.total, parts, retain_graph=True)
        torch.testing.assert_close(list(scaled), expected)
    hidden, weight, bias = parts
    alone = fused_loss(hidden, weight.detach(), bias.detach(), targets_P=targets, chunk=8)
    (one,) = torch.autograd.grad(alone.total, [hidden])
    torch.testing.assert_close(3 * one, expected[0])
    with torch.no_grad():
        assert torch.equal(fused_loss(*parts, targets_P=targets, chunk=8).total, first.total)
    assert not first.hard.requires_grad  # type: ignore[union-attr]


def test_no_positions_and_nothing_to_learn_give_zeros() -> None:
    targets, _ = known()
    parts = layer(0)
    for kind in KINDS:
        found = fused_loss(
            *parts,
            targets_P=targets[:0],
            soft=labels(kind, 1.0, 0) if kind in ("sampled", "dense") else None,
            alpha=1.0,
        )
        assert float(found.total.detach()) == 0 and all(not g.any() for g in gradients(found.total, parts))
    parts = layer()
    idle = fused_loss(*parts, targets_P=targets, beta=0.0)
    assert idle[1:] == (None, None) and not gradients(idle.total, parts)[0].any()
    unlabelled = fused_loss(*parts, targets_P=torch.full_like(targets, -1), chunk=8)
    assert float(unlabelled.total.detach()) == 0 and all(not g.any() for g in gradients(unlabelled.total, parts))


def test_a_student_that_is_sure_is_still_exact() -> None:
    """The mass of the dropped classes is exp(-200) in float32: 1 - sum(q) is 0, and so is exp(-200)."""
    weight = torch.tensor([[0.0], [-200.0], [-201.0]], requires_grad=True)
    hidden = torch.ones(1, 1, requires_grad=True)
    soft = TopK(
        torch.tensor([[0]]), torch.zeros(1, 1), torch.full((1, 1), 0.6931472), torch.full((1, 1), -0.6931472), (1.0,), 3
    )
    found = fused_loss(hidden, weight, soft=soft, alpha=1.0)
    share = torch.softmax(torch.tensor([-200.0, -201.0]), 0)
    rest = 0.5 * (-0.6931472 - float(torch.logsumexp(torch.tensor([-200.0, -201.0]), 0)))
    assert float(found.total.detach()) == pytest.approx(0.5 * -0.6931472 + rest, rel=1e-6)
    (gradient,) = torch.autograd.grad(found.total, [weight])
    torch.testing.assert_close(gradient[:, 0], torch.cat([torch.tensor([0.5]), -0.5 * share]))


def test_under_autocast_products_are_narrow_and_sums_wide() -> None:
    targets, has = known()
    parts, soft = [part.detach().float().requires_grad_() for part in layer(scale=0.7)], labels("sampled", 1.0)
    kwargs: dict[str, Any] = {"targets_P": targets, "soft": soft, "has_soft": has, "alpha": 0.5, "beta": 0.5}
    exact = fused_loss(*parts, **kwargs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fused_loss(parts[0].bfloat16(), *parts[1:], **kwargs, chunk=8)
    assert found.total.dtype == torch.float32
    assert float(found.total.detach()) == pytest.approx(float(exact.total.detach()), rel=1e-2)
    for one, other in zip(gradients(found.total, parts), gradients(exact.total, parts), strict=True):
        assert one.dtype == torch.float32 and not torch.equal(one, other)
        assert (one - other).norm() <= 2e-2 * other.norm()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_compiled_chunks_agree() -> None:
    targets, has = known()
    parts, soft = layer(), labels("sampled", 2.0)
    kwargs: dict[str, Any] = {"targets_P": targets, "soft": soft, "has_soft": has, "alpha": 0.5, "temperature": 2.0}
    results = [fused_loss(*parts, **kwargs, chunk=8, compile_chunks=compiled) for compiled in (False, True)]
    torch.testing.assert_close(*(r.total for r in results))
    torch.testing.assert_close(*(gradients(r.total, parts) for r in results))


def most_held(action: Callable[[], object]) -> int:
    """The most bytes of tensors, those inside of operators too, that ``action`` holds at once beyond what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        action()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda each: each.start_ns())]).max())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["hard", "topk", "even", "sampled"])
def test_memory_is_less_than_an_eighth_of_the_logits(kind: str, temperature: float) -> None:
    """With the gradients of hidden states and weight, and a loss that is scaled before its backward pass."""
    positions, classes, width = 4096, 4096, 64
    hidden = torch.randn(positions, width, requires_grad=True)
    weight = torch.randn(classes, width, requires_grad=True)
    at, kept = torch.arange(0, 4 * positions + 1, 4), torch.arange(4).repeat(positions)
    soft: Any = Sampled(kept, torch.full((4 * positions,), 0.25), at, temperature, classes)
    if kind in ("topk", "even"):
        none = torch.zeros(positions, 1)
        soft = TopK(kept.view(-1, 4), torch.zeros(positions, 4), none + 2.0, none - 0.8, (temperature,), classes)
    targets = torch.zeros(positions, dtype=torch.int64)

    def step() -> None:
        found = fused_loss(
            hidden, weight, targets_P=targets, soft=None if kind == "hard" else soft, alpha=0.5,
            temperature=temperature, residual="even" if kind == "even" else "one",
        )  # fmt: skip
        (found.total / positions).backward()

    logits = positions * classes * 4
    assert most_held(step) <= logits / 8
    whole = most_held(lambda: torch.nn.functional.cross_entropy(hidden @ weight.t(), targets).backward())
    assert whole > 2 * logits


@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(kind: str, compiled: bool) -> None:
    targets, has = known()
    parts, soft = layer(), labels(kind, 2.0)
    hard, value = reference(parts, soft, has, targets, 2.0, 0.0)
    there = [part.detach().cuda().requires_grad_() for part in parts]
    found = fused_loss(
        *there, targets_P=targets.cuda(), soft=None if soft is None else soft.map(lambda a: a.cuda()),
        has_soft=has.cuda(), alpha=0.5, beta=0.5, temperature=2.0, chunk=8, compile_chunks=compiled,
    )  # fmt: skip
    torch.testing.assert_close(found.total.cpu(), 0.5 * value + 0.5 * hard)
    for one, other in zip(gradients(found.total, there), gradients(0.5 * value + 0.5 * hard, parts), strict=True):
        torch.testing.assert_close(one.cpu(), other)


@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_on_a_gpu_in_half_precision() -> None:
    positions, classes, width = 8192, 32768, 256
    hidden = torch.randn(positions, width, device="cuda", requires_grad=True)
    weight = torch.randn(classes, width, device="cuda", requires_grad=True)
    targets = torch.zeros(positions, dtype=torch.int64, device="cuda")
    for _ in range(2):  # the first compiles
        hidden.grad = weight.grad = None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            fused_loss(hidden, weight, targets_P=targets).total.backward()
    assert torch.cuda.max_memory_allocated() - before <= positions * classes * 4 / 8


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"temperature": 0.0}, ConfigError, "above 0"),
        ({"chunk": 0}, ConfigError, "1 or more"),
        ({"weight_VD": torch.zeros(CLASSES, WIDTH + 1)}, ModelError, r"\(23, 5\) and \(12, 6\)"),
        ({"bias_V": torch.zeros(3)}, ModelError, r"\(12,\), found \(3,\)"),
        ({"targets_P": torch.zeros(4, dtype=torch.int64)}, EncodingError, r"targets.*\(23,\), found \(4,\)"),
        ({"has_soft": torch.ones(4, dtype=torch.bool)}, EncodingError, "has_soft"),
        ({"soft": labels("sampled", 1.0, 4)}, EncodingError, "23 positions and 12 classes.*found 4 and 12"),
        ({"soft": labels("sampled", 2.0)}, TemperatureError, "T = 2"),
        ({"soft": labels("top-4", 1.0), "temperature": 3.0}, TemperatureError, "T = 1, 2"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, Any], error: type[Exception], match: str) -> None:
    hidden, weight, bias = layer()
    given = {"hidden_PD": hidden, "weight_VD": weight, "bias_V": bias, "targets_P": known()[0], "alpha": 0.5}
    with pytest.raises(error, match=match):
        fused_loss(**{**given, **changed})


def test_terms_are_sums() -> None:
    targets, _ = known()
    found = fused_loss(*layer(), targets_P=targets)
    assert isinstance(found, FusedTerms) and found.soft is None and found.total.ndim == 0
