"""Losses on the student's output: what a student says against what the teacher said, and against the hard label.

Student logits are (B, C), floating; every loss is (B,), in float32, or in float64 for float64 logits. The two
distillation losses are autograd functions whose backward pass is the closed form: one softmax of each side per step,
and nothing kept for the backward pass but the gradient itself. Second derivatives are not defined.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pipeline.losses.partition import checked, dense_logits, same_shape, wide
from pipeline.softlabels import Dense, SoftLabels

NO_LABEL = -1


def hard_loss(student_logits_BC: Tensor, labels_B: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the hard labels, (B,); 0, with no gradient, where the label is -1 (none).

    ``smoothing`` is the share of each label that is spread evenly over all classes (Szegedy et al. 2016, section 7): a
    soft label without a teacher.
    """
    return functional.cross_entropy(
        wide(student_logits_BC), labels_B, ignore_index=NO_LABEL, reduction="none", label_smoothing=smoothing
    )


def distillation_loss(student_logits_BC: Tensor, soft: SoftLabels, *, temperature: float) -> Tensor:
    """``T^2 * KL(teacher || student)`` with both sides softened by T, (B,), in nats.

    The factor T^2 keeps the size of the gradient when T changes (Hinton, Vinyals and Dean 2015, section 2). For T to
    infinity it tends to ``logit_regression_loss`` (their section 2.1).

    Dense labels use every class. Top-k labels use the kept classes and one more that stands for all the others: the
    teacher's residual against the student's mass on the dropped classes. Nothing is renormalised, and K = C gives
    the dense value.

    Raises ConfigError when T is not above 0, EncodingError when the numbers of rows or classes differ, and
    TemperatureError when top-k labels were not kept at T.
    """
    student = checked(student_logits_BC, soft, temperature)
    if isinstance(soft, Dense):
        return _dense(student, soft.stored, float(temperature))
    logprobs, log_residual = soft.at(temperature)
    return _topk(
        student, soft.ids.long(), logprobs.to(student.dtype), log_residual.to(student.dtype), float(temperature)
    )


def logit_regression_loss(student_logits_BC: Tensor, soft: SoftLabels) -> Tensor:
    """Half the mean squared difference of the centred logits, (B,): ``1/(2C) * sum_j (z_j - v_j)^2``.

    Ba and Caruana 2014, equation 1, with both sides centred per row, since a constant added to all logits of a row
    means nothing and lossy encodings do not keep it. The scale is that of ``distillation_loss`` at high temperature.

    Raises EncodingError for top-k labels: the logits of the dropped classes are not there.
    """
    same_shape(student_logits_BC, soft)
    student = wide(student_logits_BC)
    difference = student - dense_logits(soft, "logit regression needs").to(student.dtype)
    centred = difference - difference.mean(dim=1, keepdim=True)
    loss: Tensor = 0.5 * centred.square().mean(dim=1)
    return loss


class _DenseKL(torch.autograd.Function):
    """T^2 * KL of softmax(teacher/T) and softmax(student/T); the gradient in the student's logits is T * (q - p)."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        at_one = temperature == 1.0
        log_q = torch.log_softmax(student if at_one else student / temperature, dim=1)
        wide = teacher.to(student.dtype)  # a copy of our own, where half precision was kept
        if not at_one:
            wide = wide / temperature if wide is teacher else wide.div_(temperature)
        log_p = torch.log_softmax(wide, dim=1)
        p = log_p.exp()
        divergence = torch.linalg.vecdot(p, log_p.sub_(log_q))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(log_q.exp_().sub_(p))
            ctx.temperature = temperature
        scaled: Tensor = divergence.mul_(temperature * temperature)
        return scaled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return difference * (gradient * ctx.temperature)[:, None], None, None


class _TopKKL(torch.autograd.Function):
    """The same on the partition {kept classes, one by one} and {all the others}.

    With a = student/T, q its softmax, q_o its mass on the dropped classes, p and r the teacher's kept masses and
    residual and s = sum(p) + r (1 up to rounding): the derivative in a_j is s*q_j - p_j for a kept class and
    s*q_j - r*q_j/q_o for a dropped one. q_j/q_o is taken in logs: it stays exact when q_o underflows.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, ids: Tensor, log_p: Tensor, log_residual: Tensor, temperature: float
    ) -> Tensor:
        log_q = torch.log_softmax(student / temperature, dim=1)
        p = log_p.exp()
        residual = log_residual.exp()
        dropped = log_q.scatter(1, ids, -torch.inf)
        log_others = torch.logsumexp(dropped, dim=1)
        # A residual of 0 (K = C, or one that underflowed) contributes nothing, whatever the student's mass there.
        term = torch.where(residual > 0, residual * (log_residual - log_others), torch.zeros_like(residual))
        divergence = torch.linalg.vecdot(p, log_p - log_q.gather(1, ids)) + term
        if ctx.needs_input_grad[0]:
            total = p.sum(dim=1) + residual
            gradient = log_q.exp_().mul_(total[:, None]).scatter_add_(1, ids, -p)
            # Subtracting -inf from -inf (no class dropped) would give NaN; kept classes get exp(-inf) = 0.
            safe = torch.where(torch.isfinite(log_others), log_others, torch.zeros_like(log_others))
            gradient.sub_(dropped.sub_(safe[:, None]).exp_().mul_(residual[:, None]))
            ctx.save_for_backward(gradient)
            ctx.temperature = temperature
        scaled: Tensor = divergence.mul_(temperature * temperature)
        return scaled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (difference,) = ctx.saved_tensors
        return difference * (gradient * ctx.temperature)[:, None], None, None, None, None


def _dense(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    result: Tensor = _DenseKL.apply(student, teacher, temperature)  # type: ignore[no-untyped-call]
    return result


def _topk(student: Tensor, ids: Tensor, log_p: Tensor, log_residual: Tensor, temperature: float) -> Tensor:
    result: Tensor = _TopKKL.apply(student, ids, log_p, log_residual, temperature)  # type: ignore[no-untyped-call]
    return result
