"""Pruning: channels and heads that leave, weights that become zero, and how much of either a model bears."""

from __future__ import annotations

from pipeline.compression.pruning.checks import NothingPrunedError, check_pruned, classifier_of
from pipeline.compression.pruning.graph import Group, Heads
from pipeline.compression.pruning.importance import IMPORTANCES, Importance, Losses, importances
from pipeline.compression.pruning.masks import (
    apply_masks,
    magnitude_masks,
    masks_of,
    masks_of_zeros,
    nm_masks,
    remove_masks,
)
from pipeline.compression.pruning.sensitivity import Scan, Sensed, ratios_at, ratios_from, sensitivity
from pipeline.compression.pruning.statistics import recalibrate, reinitialise
from pipeline.compression.pruning.structured import Options, Ranking, Scope, breaking, groups_of, prune
from pipeline.compression.pruning.targets import Pruned, Trial, prune_to, prune_within

__all__ = [
    "IMPORTANCES",
    "Group",
    "Heads",
    "Importance",
    "Losses",
    "NothingPrunedError",
    "Options",
    "Pruned",
    "Ranking",
    "Scan",
    "Scope",
    "Sensed",
    "Trial",
    "apply_masks",
    "breaking",
    "check_pruned",
    "classifier_of",
    "groups_of",
    "importances",
    "magnitude_masks",
    "masks_of",
    "masks_of_zeros",
    "nm_masks",
    "prune",
    "prune_to",
    "prune_within",
    "ratios_at",
    "ratios_from",
    "recalibrate",
    "reinitialise",
    "remove_masks",
    "sensitivity",
]
