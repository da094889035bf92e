"""Softlabels: run a large teacher once, keep what it said, train students from it as often as one likes.

Everything that the stages are made of, for people with a training loop of their own. Names are imported when they
are first used, so that opening or verifying a cache does not import torch::

    from pipeline import CachedLabels, load_dataset, open_cache

    labels = CachedLabels(open_cache("caches/digits"), load_dataset("digits"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.datasets import Dataset, load_dataset
    from pipeline.losses import (
        FEATURE_LOSSES,
        LOSSES,
        distillation_loss,
        hard_loss,
        logit_regression_loss,
        opinions_loss,
    )
    from pipeline.models import FeatureTap, build_model, load_weights, save_weights
    from pipeline.sampler import Order
    from pipeline.softlabels import Dense, SoftLabels, TopK
    from pipeline.sources import (
        CachedFeatures,
        CachedLabels,
        LabelSource,
        LiveFeatures,
        LiveTeacher,
        Member,
        Mixture,
        Panel,
        Route,
        match,
        replay_views,
    )
    from pipeline.store import Cache, open_cache
    from pipeline.store.verify import verify
    from pipeline.views import EntryDataset, Views, input_loader, make_views

_HOME = {
    "pipeline.datasets": ("Dataset", "load_dataset"),
    "pipeline.losses": (
        *("FEATURE_LOSSES", "LOSSES"),
        *("distillation_loss", "hard_loss", "logit_regression_loss", "opinions_loss"),
    ),
    "pipeline.models": ("FeatureTap", "build_model", "load_weights", "save_weights"),
    "pipeline.sampler": ("Order",),
    "pipeline.softlabels": ("Dense", "SoftLabels", "TopK"),
    "pipeline.sources": (
        *("CachedFeatures", "CachedLabels", "LabelSource", "LiveFeatures", "LiveTeacher", "Member", "Mixture"),
        *("Panel", "Route", "match", "replay_views"),
    ),
    "pipeline.store": ("Cache", "open_cache", "verify"),
    "pipeline.views": ("EntryDataset", "Views", "input_loader", "make_views"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [  # noqa: RUF022 - grouped as a reader meets them
    "load_dataset",
    "Dataset",
    "Views",
    "make_views",
    "EntryDataset",
    "input_loader",
    "build_model",
    "load_weights",
    "save_weights",
    "FeatureTap",
    "open_cache",
    "Cache",
    "verify",
    "Dense",
    "TopK",
    "SoftLabels",
    "Order",
    "LabelSource",
    "CachedLabels",
    "LiveTeacher",
    "Mixture",
    "Panel",
    "Member",
    "Route",
    "CachedFeatures",
    "LiveFeatures",
    "match",
    "replay_views",
    "distillation_loss",
    "logit_regression_loss",
    "hard_loss",
    "opinions_loss",
    "LOSSES",
    "FEATURE_LOSSES",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
