"""Other divergences of the student's and the teacher's distributions than KL(teacher || student).

Student logits are (B, C), every loss (B,), in nats, times T^2 for the reason given at ``distillation_loss``. All are
f-divergences, so top-k labels serve as well as dense ones: see ``partitioned`` for what is then compared, and for the
errors that all of these raise. Sampled labels are refused: none of these is linear in the teacher's probabilities.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.losses.partition import partitioned
from pipeline.softlabels import SoftLabels


def reverse_kl_loss(student_logits_BC: Tensor, soft: SoftLabels, *, temperature: float) -> Tensor:
    """``T^2 * KL(student || teacher)``, (B,): the student is drawn to the teacher's modes, not to cover all of it.

    Gu et al. 2024 (MiniLLM), section 2.1; here on whole distributions, without sampling.
    """
    log_p, log_q = partitioned(student_logits_BC, soft, temperature, "reverse KL needs")
    return temperature**2 * _kl(log_q, log_p)


def jensen_shannon_loss(
    student_logits_BC: Tensor, soft: SoftLabels, *, temperature: float, weight: float = 0.5
) -> Tensor:
    """``T^2 * (w KL(p || m) + (1 - w) KL(q || m))`` with ``m = w p + (1 - w) q``, (B,), p the teacher, q the student.

    The generalised Jensen-Shannon divergence of Agarwal et al. 2024 (GKD), equation 1; ``weight`` w is above 0 and
    below 1. For large T it is w (1 - w) times ``logit_regression_loss``: raise alpha to make up for the factor.
    """
    _share("weight", weight)
    log_p, log_q = partitioned(student_logits_BC, soft, temperature, "the Jensen-Shannon divergence needs")
    log_m = _mixed(log_p, log_q, weight)
    return temperature**2 * (weight * _kl(log_p, log_m) + (1 - weight) * _kl(log_q, log_m))


def skewed_kl_loss(student_logits_BC: Tensor, soft: SoftLabels, *, temperature: float, skew: float = 0.1) -> Tensor:
    """``T^2 * KL(p || s p + (1 - s) q)``, (B,): bounded where the student gives a class almost nothing.

    Ko et al. 2024 (DistiLLM), equation 3; ``skew`` s is above 0 and below 1. For large T it is (1 - s)^2 times
    ``logit_regression_loss``.
    """
    _share("skew", skew)
    log_p, log_q = partitioned(student_logits_BC, soft, temperature, "skewed KL needs")
    return temperature**2 * _kl(log_p, _mixed(log_p, log_q, skew))


def skewed_reverse_kl_loss(
    student_logits_BC: Tensor, soft: SoftLabels, *, temperature: float, skew: float = 0.1
) -> Tensor:
    """``T^2 * KL(q || s q + (1 - s) p)``, (B,): reverse KL, bounded where the teacher gives a class almost nothing.

    Ko et al. 2024 (DistiLLM), section 3.1; ``skew`` s is above 0 and below 1.
    """
    _share("skew", skew)
    log_p, log_q = partitioned(student_logits_BC, soft, temperature, "skewed reverse KL needs")
    return temperature**2 * _kl(log_q, _mixed(log_q, log_p, skew))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of rows of log-probabilities, (B,)."""
    divergence: Tensor = torch.linalg.vecdot(log_p.exp(), log_p - log_q)
    return divergence


def _mixed(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q)."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def _share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ConfigError(f"{name} should be above 0 and below 1; found {value}")
