"""Losses: pure functions on tensors. Each gives one value per row, so that the caller decides how rows are weighed."""

from pipeline.losses.attention import attention_map, attention_transfer_loss
from pipeline.losses.catalogue import LOSSES, ResponseLoss
from pipeline.losses.contrastive import contrastive_loss
from pipeline.losses.divergences import (
    jensen_shannon_loss,
    reverse_kl_loss,
    skewed_kl_loss,
    skewed_reverse_kl_loss,
)
from pipeline.losses.features import FEATURE_LOSSES, FeatureLoss
from pipeline.losses.fused import FusedTerms, fused_loss
from pipeline.losses.hints import hint_loss
from pipeline.losses.partial import opinions_loss
from pipeline.losses.peers import gated_logits, mean_logits, mutual_loss, taught_loss
from pipeline.losses.projection import Bridge, EmbeddingHeads, Projection, make_projection
from pipeline.losses.relational import angle_relation_loss, distance_relation_loss, similarity_loss
from pipeline.losses.relations import correlation_loss, decoupled_loss, standardised, standardised_labels
from pipeline.losses.response import distillation_loss, hard_loss, logit_regression_loss

__all__ = [
    "FEATURE_LOSSES",
    "LOSSES",
    "Bridge",
    "EmbeddingHeads",
    "FeatureLoss",
    "FusedTerms",
    "Projection",
    "ResponseLoss",
    "angle_relation_loss",
    "attention_map",
    "attention_transfer_loss",
    "contrastive_loss",
    "correlation_loss",
    "decoupled_loss",
    "distance_relation_loss",
    "distillation_loss",
    "fused_loss",
    "gated_logits",
    "hard_loss",
    "hint_loss",
    "jensen_shannon_loss",
    "logit_regression_loss",
    "make_projection",
    "mean_logits",
    "mutual_loss",
    "opinions_loss",
    "reverse_kl_loss",
    "similarity_loss",
    "skewed_kl_loss",
    "skewed_reverse_kl_loss",
    "standardised",
    "standardised_labels",
    "taught_loss",
]
