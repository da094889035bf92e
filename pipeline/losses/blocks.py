"""Soft and hard labels on a block of logits that is overwritten with its own gradient.

A block is (P, V): P positions, V classes. All terms of one temperature share a softmax. Nothing is as wide as V but the
block itself, a copy of it where two temperatures are used, and the teacher's side of dense labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.losses.meeting import ONE, Softmax, meet
from pipeline.softlabels import SoftLabels, TopK


class Weighing(NamedTuple):
    """``alpha`` of the soft term, ``beta`` of the hard one, T of the soft one, and ``smoothing`` of hard labels.

    ``residual``: what stands for the classes that top-k labels dropped, one of ``meeting.RESIDUALS``.
    """

    alpha: float = 1.0
    beta: float = 1.0
    temperature: float = 1.0
    smoothing: float = 0.0
    residual: str = ONE


class Values(NamedTuple):
    """Each position's hard and soft loss (P,), unweighted, 0 where it has no such label; None: without labels."""

    hard: Tensor | None
    soft: Tensor | None


def block_terms(
    z_PV: Tensor,
    soft: SoftLabels | None,
    has_P: Tensor | None,
    targets_P: Tensor | None,
    weighing: Weighing,
    *,
    spare_PV: Tensor | None = None,
    differentiate: bool = True,
) -> Values:
    """The losses of each position; ``z_PV``, contiguous logits, becomes the gradient of their weighed sum in them.

    The hard loss is ``hard_loss``, the soft one ``distillation_loss``. ``has_P`` bool says where soft labels are real
    (None: everywhere), ``targets_P`` int64 is -1 where there is no hard one. The gradient is ``beta (q_1 - onehot)``,
    q_1 the softmax of z, plus ``alpha T`` times what ``meeting`` says, of q the softmax of z / T. Without
    ``differentiate`` the block is spoilt, and the losses alone are made. ``spare_PV`` is room for another block, where
    two temperatures are used: new memory for every block costs as much as filling it.
    """
    z, temperature, smoothing = z_PV, weighing.temperature, weighing.smoothing
    place = None if targets_P is None else targets_P.clamp_min(0)[:, None]
    aims = None if place is None else _aims(z, place, smoothing)
    aside = None
    if isinstance(soft, TopK) and weighing.residual == ONE:  # the kept leave the block until its gradient is made
        ids = soft.ids.long()
        aside = z.gather(1, ids)
        z.scatter_(1, ids, -torch.inf)
    largest = z.amax(dim=1)
    if aside is not None:
        largest = largest.masked_fill(largest == -torch.inf, 0.0)  # K = C: no class is left
        aside = aside - largest[:, None]
    z.sub_(largest[:, None])

    # One softmax for both losses, unless they are of two temperatures.
    apart = soft is not None and aims is not None and temperature != 1.0
    plain = Softmax.of(torch.exp(z, out=spare_PV), aside) if apart else None
    if soft is not None and temperature != 1.0:
        z.div_(temperature)
        aside = None if aside is None else aside / temperature
    met = None if soft is None else meet(soft, z, temperature, weighing.residual)
    own = Softmax.of(z.exp_(), aside)
    hard_own = plain or own

    scale = torch.zeros_like(largest)
    push = torch.full_like(largest, weighing.alpha * temperature)
    push = push if has_P is None else push * has_P
    value = None
    if met is not None:
        terms = met.terms(own)
        value = terms.value * temperature**2
        value = value if has_P is None else torch.where(has_P, value, 0.0)
        scale = push * terms.scale
    hard = None
    pull = torch.zeros_like(largest)
    if aims is not None and targets_P is not None:
        known = targets_P >= 0
        pull = weighing.beta * known.to(z.dtype)
        hard = torch.where(known, hard_own.log_normaliser - (aims - largest), 0.0)
        scale = scale if apart else scale + pull * own.unit

    if not differentiate:
        return Values(hard, value)
    z.mul_(scale[:, None])
    if plain is not None:
        z.addcmul_(plain.exponentials, (pull * plain.unit)[:, None])
    if isinstance(soft, TopK) and hard_own.q_aside is not None:
        z.scatter_add_(1, soft.ids.long(), pull[:, None] * hard_own.q_aside)
    if met is not None:
        met.add_gradient(z, own, push)
    if place is not None:
        z.scatter_add_(1, place, (pull * (smoothing - 1.0))[:, None])
        if smoothing:
            z.sub_((pull * (smoothing / z.shape[1]))[:, None])
    return Values(hard, value)


def _aims(z_PV: Tensor, place_P1: Tensor, smoothing: float) -> Tensor:
    """(P,): the logit that the hard loss raises, of a smoothed label mixed with the mean of all."""
    at_target = z_PV.gather(1, place_P1)[:, 0]
    return torch.lerp(at_target, z_PV.mean(dim=1), smoothing) if smoothing else at_target
