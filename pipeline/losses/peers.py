"""Losses of models that learn from each other while all of them are still learning.

Logits of n peers are (n, B, C), floating; every loss is (n, B) or (B,), in nats, in float32, or in float64 for float64
logits. The side that teaches is a constant: no gradient flows into it. The factor T^2 is that of
``distillation_loss``; at T = 1, where all of these papers but Lan et al. are, it is 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import ConfigError, EncodingError
from pipeline.losses.partition import wide


def mutual_loss(logits_nBC: Tensor, *, temperature: float) -> Tensor:
    """``T^2 / (n - 1) * sum_{j != i} KL(p_j || p_i)`` of each peer i, (n, B).

    Zhang et al. 2018 (Deep Mutual Learning), for a cohort of n: each of the others is a teacher with the same weight,
    rather than their mean.

    Raises ConfigError for fewer than two peers, or a temperature that is not above 0.
    """
    if len(logits_nBC) < 2:
        raise ConfigError(f"peers learn from each other: two or more are needed; found {len(logits_nBC)}")
    log_p = _log_softmax(logits_nBC, temperature)
    p = log_p.detach().exp()
    negentropy = torch.linalg.vecdot(p, log_p.detach())
    others = len(log_p) - 1
    # KL is linear in what does not depend on p_i: the mean of the others serves as well as each of them.
    entropies, teachers = (negentropy.sum(dim=0) - negentropy) / others, (p.sum(dim=0) - p) / others
    loss: Tensor = temperature**2 * (entropies - torch.linalg.vecdot(teachers, log_p))
    return loss


def taught_loss(student_logits: Tensor, teacher_logits_BC: Tensor, *, temperature: float) -> Tensor:
    """``T^2 * KL(p || q)``, (B,) or (n, B), of a teacher's p and the q of student logits (B, C) or (n, B, C).

    Raises ConfigError for a temperature that is not above 0, EncodingError for other rows or classes.
    """
    if student_logits.shape[-2:] != teacher_logits_BC.shape:
        raise EncodingError(
            f"students and their teacher should answer for the same rows and classes; found "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits_BC.shape)}"
        )
    log_q = _log_softmax(student_logits, temperature)
    log_p = _log_softmax(teacher_logits_BC.detach().to(log_q.dtype), temperature)
    divergence: Tensor = temperature**2 * torch.linalg.vecdot(log_p.exp().expand_as(log_q), log_p - log_q)
    return divergence


def gated_logits(logits_nBC: Tensor, gate_n: Tensor) -> Tensor:
    """``sum_i g_i z_i``, (B, C), with g the softmax of ``gate_n`` (n,): an ensemble of the peers' logits.

    Lan et al. 2018 (ONE). There the gate is a layer on the features that all branches share, so that its weights
    differ from example to example; here they are the same for all. Gradients flow into both.
    """
    weights = torch.softmax(wide(gate_n), dim=0)
    return torch.einsum("n,nbc->bc", weights.to(logits_nBC.dtype), logits_nBC)


def mean_logits(logits_nBC: Tensor, *, temperature: float) -> Tensor:
    """``T * log(mean_i softmax(z_i / T))``, (B, C): logits that give the mean probability of n models at T.

    Raises ConfigError for a temperature that is not above 0.
    """
    log_p = _log_softmax(logits_nBC, temperature)
    return temperature * (torch.logsumexp(log_p, dim=0) - torch.log(log_p.new_tensor(len(log_p))))


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ConfigError(f"temperature should be above 0; found {temperature}")
    return torch.log_softmax(wide(logits) / temperature, dim=-1)
