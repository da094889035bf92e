"""Losses on the student's output: what a student says against what the teacher said, and against the hard label.

Student logits are (B, C), floating; every loss is (B,), in float32, or in float64 for float64 logits. The
distillation losses are autograd functions whose backward pass is the closed form: one softmax of each side per step,
and nothing kept for the backward pass but the gradient itself. Second derivatives are not defined.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pipeline.losses.blocks import Weighing, block_terms
from pipeline.losses.meeting import ONE, check_residual
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


def distillation_loss(
    student_logits_BC: Tensor, soft: SoftLabels, *, temperature: float, residual: str = ONE
) -> Tensor:
    """``T^2 * KL(teacher || student)`` with both sides softened by T, (B,), in nats.

    The factor T^2 keeps the size of the gradient when T changes (Hinton, Vinyals and Dean 2015, section 2). For T to
    infinity it tends to ``logit_regression_loss`` (their section 2.1).

    Dense labels use every class. Top-k labels use the kept classes and one more that stands for all the others: the
    teacher's residual against the student's mass on the dropped classes. Nothing is renormalised, and K = C gives
    the dense value. With ``residual="even"`` each of the C - K dropped classes is given the same share of the
    residual r: ``sum_kept p log(p / q) + r log(r / (C - K)) - r / (C - K) sum_dropped log q``. That is a guess, and
    the student learns it, where ``"one"`` leaves it to the student how the dropped classes share their mass.

    Sampled labels give ``T^2 * -sum_j w_j log q_j``, q the student's softmax at T: the sampled cross-entropy of
    Anshumann et al. 2025 (RS-KD). It is linear in the weights, whose mean over the draws is the teacher's p:
    its mean is T^2 (KL + the teacher's entropy), and the mean of its gradient in the logits, ``T (s q - w)`` with
    s = sum(w), is that of KL. ``q - w`` would be unbiased as well; it is the gradient of a value that changes when a
    constant is added to a row, and it varies more but where the proposal is sharper than the teacher. Dividing by s
    is biased. (docs/decisions/0014-language-models.md has the figures.)

    Raises ConfigError when T is not above 0 or ``residual`` is unknown, EncodingError when the numbers of rows or
    classes differ or labels other than top-k have no residual to spread, and TemperatureError when top-k or sampled
    labels were not kept at T.
    """
    student = checked(student_logits_BC, soft, temperature)
    check_residual(residual, soft)
    if isinstance(soft, Dense):
        return _dense(student, soft.stored, float(temperature))
    return _sparse(student, soft, float(temperature), residual)


def logit_regression_loss(student_logits_BC: Tensor, soft: SoftLabels) -> Tensor:
    """Half the mean squared difference of the centred logits, (B,): ``1/(2C) * sum_j (z_j - v_j)^2``.

    Ba and Caruana 2014, equation 1, with both sides centred per row, since a constant added to all logits of a row
    means nothing and lossy encodings do not keep it. The scale is that of ``distillation_loss`` at high temperature.

    Raises EncodingError for top-k and sampled labels: the logits of the other classes are not there.
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


class _SparseLoss(torch.autograd.Function):
    """The same on top-k labels, and sampled cross-entropy: see ``meeting`` for the gradients."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, soft: SoftLabels, temperature: float, residual: str) -> Tensor:
        block = student.clone(memory_format=torch.contiguous_format)
        weighing = Weighing(alpha=1.0, temperature=temperature, residual=residual)
        needed = ctx.needs_input_grad[0]
        losses = block_terms(block, soft, None, None, weighing, differentiate=needed).soft
        assert losses is not None
        if needed:
            ctx.save_for_backward(block)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (own,) = ctx.saved_tensors
        return own * gradient[:, None], None, None, None


def _dense(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    result: Tensor = _DenseKL.apply(student, teacher, temperature)  # type: ignore[no-untyped-call]
    return result


def _sparse(student: Tensor, soft: SoftLabels, temperature: float, residual: str) -> Tensor:
    result: Tensor = _SparseLoss.apply(student, soft, temperature, residual)  # type: ignore[no-untyped-call]
    return result
