"""The caches that a run learns from: opened, held against the data and each other, and joined to one label source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.datasets import Dataset
from pipeline.errors import CacheMismatchError, ConfigError
from pipeline.losses import LOSSES
from pipeline.sampler import Rows
from pipeline.softlabels import same_temperature
from pipeline.sources import (
    CachedFeatures,
    CachedLabels,
    LabelSource,
    Matching,
    Mixture,
    check_agreement,
    match,
    replay_views,
)
from pipeline.sources.replay import recorded_views
from pipeline.sources.windows import PartTable
from pipeline.store import Cache, open_cache
from pipeline.store.copies import default_folder
from pipeline.training.config import TrainConfig
from pipeline.training.hints import Hints
from pipeline.training.task import view_numbers
from pipeline.views import Views, check_replay, check_views

MOST_READS = 4
"""Blocks that a part may lie in on average. One that is no larger than a block, in the same order, lies in 1 or 2."""


@dataclass(frozen=True)
class Learnt:
    """What is learnt from, and with which weights, which come to 1.

    - ``labels``: of each cache; ``source``: of their mixture, or of the only one; None without a soft term;
    - ``rows`` (n,): the training rows that stay, in dataset order: under ``--missing skip`` those that all have;
    - ``views``: of the cache with most of them; ``train_views``: the numbers of those that are trained on.
    """

    labels: tuple[CachedLabels, ...]
    weights: tuple[float, ...]
    source: LabelSource | None
    rows: Rows
    views: Views
    train_views: tuple[int, ...]

    def blocks(self, visits: Rows, window: int) -> tuple[Rows, ...]:
        """``visits`` cut along the largest parts: where parts differ, others are then read about once an epoch.

        Raises ConfigError when labels that are streamed lie in an order of their own, so that each ``window`` of blocks
        would have to hold all of their parts.
        """
        largest = max(self.labels, key=lambda labels: int(labels.cache.identity["part_size"]))
        blocks = largest.blocks(visits)
        for labels in self.labels if self.source is not None and len(blocks) > window else ():
            table = PartTable(labels.cache, labels.matching.split, 0)
            entries = [labels.matching.entry_of[block] for block in blocks]
            touched = sum(len(np.unique(table.part_of(found[found >= 0]))) for found in entries)
            if labels.resident == "none" and touched > MOST_READS * len(table.records):
                raise ConfigError(
                    f"{labels.cache.address} holds its examples in another order than {largest.cache.address}: each "
                    f"part of it would be read for {touched / len(table.records):.0f} blocks of an epoch, and most of "
                    "it be held in memory. Keep it there as a whole (--resident ram), or dump it in the same order"
                )
        return blocks

    def hints(self, hints: Hints, resident: str) -> CachedFeatures:
        """Features of the only cache. Raises ConfigError naming those that it holds, when it lacks one."""
        (labels,) = self.labels
        return CachedFeatures(labels, [feature for feature, _ in hints.pairs], resident=resident)

    @property
    def unchecked(self) -> tuple[str, ...]:
        """What the caches do not know of themselves, so that it could not be held against the data."""
        return tuple(f"{labels.cache.address}: {what}" for labels in self.labels for what in labels.matching.unchecked)

    def lineage(self, space: str) -> dict[str, Any]:
        """Digest and teacher of the cache; of a mixture lists of them, the weights, and the ``space`` it is in."""
        caches = [labels.cache for labels in self.labels]
        if len(caches) == 1:
            return {"cache": caches[0].digest, "teacher": caches[0].identity["teacher"]}
        # 7 and 3 are the same weights as 0.7 and 0.3, whatever their quotients round to.
        weights = [float(f"{weight:.12g}") for weight in self.weights]
        pairs = [{"digest": cache.digest, "weight": weight} for cache, weight in zip(caches, weights, strict=True)]
        return {"cache": pairs, "mix": space, "teacher": [cache.identity["teacher"] for cache in caches]}


def open_caches(config: TrainConfig, dataset: Dataset, device: torch.device) -> Learnt:
    """Open and check the caches of ``config`` (at least one).

    Raises ConfigError for a loss, temperature or mixture that they cannot serve, or a CacheError: CacheMismatchError
    when one does not belong to the data, or two do not speak of the same.
    """
    folder = config.cache_dir or default_folder()
    addresses, weights = zip(*config.caches, strict=True)
    caches = [open_cache(a, cache_dir=folder, cache_bytes=config.cache_bytes) for a in addresses]
    alpha = config.objective.alpha
    own = config.label_view == "own" and bool(alpha or config.hints)
    _check_mixable(caches)
    for cache in caches if alpha else ():
        _check_served(cache, config)
    matchings = [match(caches[0], dataset, "train", config.missing)]
    most = max(caches, key=lambda cache: len(cache.views("train")))
    train_views = view_numbers(config.train_views, most.views("train"))
    check_agreement(caches, train_views if own else (0,))
    matchings += [_match_beside(caches[0], cache, dataset, config.missing) for cache in caches[1:]]
    views = replay_views(most, config.transform)
    if any(train_views):
        check_views(views, dataset)
        for cache in caches if own else ():
            _check_replay(cache, replay_views(cache, config.transform), dataset)
    labels = tuple(
        CachedLabels(cache, found, device=device, resident=config.resident, labels_view=config.label_view)
        for cache, found in zip(caches, matchings, strict=True)
    )
    source: LabelSource | None = labels[0] if alpha else None
    if alpha and len(labels) > 1:
        pairs = list(zip(labels, weights, strict=True))
        source = Mixture(pairs, temperature=config.temperature, space=config.mix)
    return Learnt(labels, weights, source, _rows(caches, matchings, config.missing), views, train_views)


def _check_mixable(caches: Sequence[Cache]) -> None:
    """Refuse the same cache at two places, and labels that cannot be averaged."""
    found: dict[str, str] = {}
    for cache in caches:
        if cache.digest in found:
            raise ConfigError(
                f"--labels names one cache twice: {found[cache.digest]} and {cache.address} hold the same. Name it "
                "once, with one weight"
            )
        found[cache.digest] = cache.address
        if len(caches) > 1 and cache.encoding.name != "dense":
            raise ConfigError(
                f"dense labels are needed to average several: {cache.address} is {cache.encoding.name}, and what is "
                "known of a class differs from cache to cache. Dump with --encoding dense, or train on it alone"
            )


def _check_served(cache: Cache, config: TrainConfig) -> None:
    """Refuse a loss or temperature that the cache's encoding cannot serve."""
    kept, response = tuple(cache.encoding.temperatures), config.objective.response
    if kept and (config.standardise or not response.topk):
        what = "--standardise" if config.standardise else f"--loss {config.loss}"
        fitting = ", ".join(name for name, loss in LOSSES.items() if loss.topk)
        raise ConfigError(
            f"{what} needs the logits of all classes; {cache.address} keeps the largest ones ({cache.encoding.name}). "
            f"Use a loss that is defined on those ({fitting}), without --standardise, or dump with --encoding dense"
        )
    if response.softened and kept and not any(same_temperature(config.temperature, known) for known in kept):
        raise ConfigError(
            f"--temperature {config.temperature:g} was not kept by {cache.address}: it holds T = "
            f"{', '.join(f'{t:g}' for t in kept)}. Use one of those, or dump again with that one"
        )


def _match_beside(first: Cache, cache: Cache, dataset: Dataset, missing: str) -> Matching:
    """``match``, whose error names both caches."""
    try:
        return match(cache, dataset, "train", missing)
    except CacheMismatchError as error:
        raise CacheMismatchError(
            f"{first.address} belongs to {dataset.name} and {cache.address} does not, so they cannot be mixed: {error}"
        ) from error


def _rows(caches: Sequence[Cache], matchings: Sequence[Matching], missing: str) -> Rows:
    """The training rows that stay. Raises CacheMismatchError when no row has labels in all caches."""
    rows = matchings[0].rows
    has = np.logical_and.reduce([matching.entry_of[rows] >= 0 for matching in matchings])
    if not has.any():
        raise CacheMismatchError(
            f"{' and '.join(cache.address for cache in caches)} have labels for no training example in common: each "
            "speaks of others. Dump them from the same examples, or train on one of them"
        )
    return rows[has] if missing == "skip" else rows


def _check_replay(cache: Cache, views: Views, dataset: Dataset) -> None:
    """Raise CacheMismatchError when views made here are not the ones that the labels were given for."""
    replay = check_replay(recorded_views(cache), views, dataset)
    if not replay.ok:
        raise CacheMismatchError(f"{cache.address}: {replay.summary}, or train with --label-view plain")
