"""Losses: pure functions on tensors. Each gives one value per row, so that the caller decides how rows are weighed."""

from pipeline.losses.response import distillation_loss, hard_loss, logit_regression_loss

__all__ = ["distillation_loss", "hard_loss", "logit_regression_loss"]
