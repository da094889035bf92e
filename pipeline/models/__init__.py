"""Teachers and students: small built-in ones, one's own, those of timm and transformers; weights, features, checks."""

from __future__ import annotations

from pipeline.models.building import build_model, untrained
from pipeline.models.causal import Causal, generate, split_head
from pipeline.models.checks import check_causal, check_class_names, check_model, evaluating, frozen, logits_of
from pipeline.models.features import FeatureTap, parse_features
from pipeline.models.hydra import Hydra
from pipeline.models.loading import load_model
from pipeline.models.weights import load_weights, read_metadata, save_weights, state_digest

__all__ = [
    "Causal",
    "FeatureTap",
    "Hydra",
    "build_model",
    "check_causal",
    "check_class_names",
    "check_model",
    "evaluating",
    "frozen",
    "generate",
    "load_model",
    "load_weights",
    "logits_of",
    "parse_features",
    "read_metadata",
    "save_weights",
    "split_head",
    "state_digest",
    "untrained",
]
