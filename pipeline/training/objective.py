"""What a training step minimises: soft and hard labels, each row by what it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pipeline.losses import LOSSES, ResponseLoss, hard_loss, standardised, standardised_labels
from pipeline.softlabels import SoftLabels


class Terms(NamedTuple):
    """Sums over the rows of a batch, scalars: the objective, and its unweighted terms (None: not used)."""

    total: Tensor
    hard: Tensor | None
    soft: Tensor | None


@dataclass(frozen=True)
class Objective:
    """``alpha`` times the soft term of rows that have soft labels, plus ``beta`` times the hard one of labelled rows.

    - ``loss``: a name in ``losses.LOSSES``, ``parameters``: of its own, (name, value) each; ``temperature`` of both
      sides; ``standardise``: z-scores in the place of the logits of both sides (Sun et al. 2024);
    - ``smoothing``: share of a hard label that is spread over all classes.
    """

    alpha: float = 0.0
    beta: float = 1.0
    temperature: float = 4.0
    loss: str = "kl"
    parameters: tuple[tuple[str, float], ...] = ()
    standardise: bool = False
    smoothing: float = 0.0

    @property
    def response(self) -> ResponseLoss:
        """The loss on soft labels that ``loss`` names."""
        return LOSSES[self.loss]

    def __call__(self, logits: Tensor, labels: Tensor, soft: SoftLabels | None, has_soft: Tensor | None) -> Terms:
        """``logits`` (B, C), ``labels`` (B,) int64 with -1 for none, ``has_soft`` (B,) bool or None when all rows have.

        Sums, not means: the caller divides by the rows of the whole optimiser step, which makes accumulation exact.
        """
        hard_sum = hard_loss(logits, labels, smoothing=self.smoothing).sum() if self.beta else None
        soft_sum = None
        if soft is not None and self.alpha:
            soft_sum = self._soft(logits, labels, soft, has_soft)
        pairs = ((self.alpha, soft_sum), (self.beta, hard_sum))
        weighed = [weight * value for weight, value in pairs if value is not None]
        return Terms(sum(weighed[1:], start=weighed[0]) if weighed else logits.sum() * 0, hard_sum, soft_sum)

    def _soft(self, logits: Tensor, labels: Tensor, soft: SoftLabels, has_soft: Tensor | None) -> Tensor:
        response = self.response
        if response.batch and has_soft is not None:
            # Placeholders of rows without soft labels would count in the correlations of the others.
            logits, labels, soft = logits[has_soft], labels[has_soft], soft.map(lambda array: array[has_soft])
            has_soft = None
            if not len(logits):
                return logits.sum() * 0
        if self.standardise:
            logits, soft = standardised(logits), standardised_labels(soft)
        rows = response(logits, soft, labels, self.temperature, **dict(self.parameters))
        return (rows if has_soft is None else rows * has_soft).sum()
