"""The caches that a run learns from: opened, held against the data and each other, and joined to one label source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.datasets import Dataset
from pipeline.errors import CacheMismatchError, ConfigError, some
from pipeline.losses import LOSSES
from pipeline.sampler import Rows
from pipeline.softlabels import is_kept
from pipeline.sources import (
    CachedFeatures,
    CachedLabels,
    LabelSource,
    Matching,
    check_agreement,
    match,
    replay_views,
)
from pipeline.sources.panel import APART
from pipeline.sources.replay import recorded_views
from pipeline.sources.windows import PartTable
from pipeline.store import Cache, open_cache
from pipeline.store.copies import default_folder
from pipeline.training.checks import SPREAD
from pipeline.training.config import TrainConfig
from pipeline.training.hints import Hints
from pipeline.training.several import check_mixable, join, joint_lineage
from pipeline.training.task import view_numbers
from pipeline.views import Views, check_replay, check_views

MOST_READS = 4
"""Blocks that a part may lie in on average. One that is no larger than a block, in the same order, lies in 1 or 2."""


@dataclass(frozen=True)
class Learnt:
    """What is learnt from, and with which weights, which come to 1.

    - ``labels``: of each cache; ``soft``: whether there is a soft term;
    - ``rows`` (n,): the training rows that stay, in dataset order: under ``--missing skip`` those that all have (with
      a loss for each cache: those that any has);
    - ``views``: of the cache with most of them; ``train_views``: the numbers of those that are trained on.
    """

    labels: tuple[CachedLabels, ...]
    weights: tuple[float, ...]
    soft: bool
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
        for labels in self.labels if self.soft and len(blocks) > window else ():
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

    def source(self, config: TrainConfig, dataset: Dataset, hard: npt.NDArray[np.int64]) -> LabelSource | None:
        """What the student learns from; None without a soft term. ``hard`` (N,): labels that training may know."""
        return join(self.labels, self.weights, config, dataset, hard) if self.soft else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever trains should know: which caches know some of the classes alone."""
        partly = [labels.cache for labels in self.labels if labels.matching.knows is not None]
        return tuple(f"{cache.address} knows {some(cache.class_names, 10)} alone" for cache in partly)

    def lineage(self, config: TrainConfig) -> dict[str, Any]:
        """Which caches and teachers, and how they are mixed, as JSON values."""
        return joint_lineage(self.labels, self.weights, config)


def open_caches(config: TrainConfig, dataset: Dataset, device: torch.device) -> Learnt:
    """Open and check the caches of ``config`` (at least one).

    Raises ConfigError for a loss, temperature or mixture that they cannot serve, or a CacheError: CacheMismatchError
    when one does not belong to the data, or two do not speak of the same.
    """
    folder = config.cache_dir or default_folder()
    addresses, weights = zip(*config.caches, strict=True)
    caches = [open_cache(a, cache_dir=folder, cache_bytes=config.cache_bytes) for a in addresses]
    alpha = config.objective.alpha
    own = config.label_view == "own" and bool(alpha or config.objective.hints)
    check_mixable(caches, config, dataset)
    apart = config.mix in APART
    for cache in caches if alpha else ():
        _check_served(cache, config)
    matchings = [match(caches[0], dataset, "train", config.missing, partly=True)]
    most = max(caches, key=lambda cache: len(cache.views("train")))
    train_views = view_numbers(config.train_views, most.views("train"))
    check_agreement(caches, train_views if own else (0,), partly=apart)
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
    rows = _rows(caches, matchings, config.missing, apart=apart)
    return Learnt(labels, weights, bool(alpha), rows, views, train_views)


def _check_served(cache: Cache, config: TrainConfig) -> None:
    """Refuse a loss or temperature that the cache's encoding cannot serve."""
    kept, response = tuple(cache.encoding.temperatures), config.objective.response
    of_topk = "--bare-topk" if config.bare_topk else SPREAD if config.objective.even else ""
    if cache.encoding.draws and (config.standardise or of_topk or not response.sampled):
        what = "--standardise" if config.standardise else of_topk or f"--loss {config.loss}"
        fitting = ", ".join(name for name, loss in LOSSES.items() if loss.sampled)
        raise ConfigError(
            f"{what} needs more of each distribution than draws from it, and {cache.address} keeps those "
            f"({cache.encoding.name}). Use a loss that is defined on them ({fitting}), or dump with another --encoding"
        )
    if kept and (config.standardise or not response.topk):
        what = "--standardise" if config.standardise else f"--loss {config.loss}"
        fitting = ", ".join(name for name, loss in LOSSES.items() if loss.topk)
        raise ConfigError(
            f"{what} needs the logits of all classes; {cache.address} keeps the largest ones ({cache.encoding.name}). "
            f"Use a loss that is defined on those ({fitting}), without --standardise, or dump with --encoding dense"
        )
    if of_topk and not kept:
        raise ConfigError(
            f"{of_topk} is of top-k labels; {cache.address} keeps the logits of all classes ({cache.encoding.name}). "
            "Leave it out, or make top-k labels of it (softlabels cache transcode --encoding topk)"
        )
    if response.softened and kept and not is_kept(config.temperature, kept):
        raise ConfigError(
            f"--temperature {config.temperature:g} was not kept by {cache.address}: it holds T = "
            f"{', '.join(f'{t:g}' for t in kept)}. Use one of those, or dump again with that one"
        )


def _match_beside(first: Cache, cache: Cache, dataset: Dataset, missing: str) -> Matching:
    """``match``, whose error names both caches."""
    try:
        return match(cache, dataset, "train", missing, partly=True)
    except CacheMismatchError as error:
        raise CacheMismatchError(
            f"{first.address} belongs to {dataset.name} and {cache.address} does not, so they cannot be mixed: {error}"
        ) from error


def _rows(caches: Sequence[Cache], matchings: Sequence[Matching], missing: str, *, apart: bool) -> Rows:
    """The training rows that stay. Raises CacheMismatchError when no row has labels in all, or ``apart`` in any."""
    rows = np.unique(np.concatenate([matching.rows for matching in matchings]))
    reduce = np.logical_or.reduce if apart else np.logical_and.reduce
    has = reduce([matching.entry_of[rows] >= 0 for matching in matchings])
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
