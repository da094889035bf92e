"""What a training step minimises: soft and hard labels, each row by what it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pipeline.losses import distillation_loss, hard_loss, logit_regression_loss
from pipeline.softlabels import SoftLabels

LOSSES = ("kl", "logit-regression")


class Terms(NamedTuple):
    """Sums over the rows of a batch, scalars: the objective, and its unweighted terms (None: not used)."""

    total: Tensor
    hard: Tensor | None
    soft: Tensor | None


@dataclass(frozen=True)
class Objective:
    """``alpha`` times the soft term of rows that have soft labels, plus ``beta`` times the hard one of labelled rows.

    ``loss``: ``kl`` is T^2 * KL at ``temperature`` (Hinton et al. 2015), ``logit-regression`` has none (Ba and Caruana
    2014).
    """

    alpha: float = 0.0
    beta: float = 1.0
    temperature: float = 4.0
    loss: str = "kl"

    def __call__(self, logits: Tensor, labels: Tensor, soft: SoftLabels | None, has_soft: Tensor | None) -> Terms:
        """``logits`` (B, C), ``labels`` (B,) int64 with -1 for none, ``has_soft`` (B,) bool or None when all rows have.

        Sums, not means: the caller divides by the rows of the whole optimiser step, which makes accumulation exact.
        """
        hard_sum = hard_loss(logits, labels).sum() if self.beta else None
        soft_sum = None
        if soft is not None and self.alpha:
            rows = self._soft(logits, soft)
            soft_sum = (rows if has_soft is None else rows * has_soft).sum()
        pairs = ((self.alpha, soft_sum), (self.beta, hard_sum))
        weighed = [weight * value for weight, value in pairs if value is not None]
        return Terms(sum(weighed[1:], start=weighed[0]) if weighed else logits.sum() * 0, hard_sum, soft_sum)

    def _soft(self, logits: Tensor, soft: SoftLabels) -> Tensor:
        if self.loss == "kl":
            return distillation_loss(logits, soft, temperature=self.temperature)
        return logit_regression_loss(logits, soft)
