"""Losses: pure functions on tensors. Each gives one value per row, so that the caller decides how rows are weighed."""

from pipeline.losses.catalogue import LOSSES, ResponseLoss
from pipeline.losses.divergences import (
    jensen_shannon_loss,
    reverse_kl_loss,
    skewed_kl_loss,
    skewed_reverse_kl_loss,
)
from pipeline.losses.relations import correlation_loss, decoupled_loss, standardised, standardised_labels
from pipeline.losses.response import distillation_loss, hard_loss, logit_regression_loss

__all__ = [
    "LOSSES",
    "ResponseLoss",
    "correlation_loss",
    "decoupled_loss",
    "distillation_loss",
    "hard_loss",
    "jensen_shannon_loss",
    "logit_regression_loss",
    "reverse_kl_loss",
    "skewed_kl_loss",
    "skewed_reverse_kl_loss",
    "standardised",
    "standardised_labels",
]
