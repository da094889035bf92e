"""From the caches that a run learns from to one label source: one, a mixture, a panel of specialists, or a route."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets import Dataset
from pipeline.errors import ConfigError, some
from pipeline.sources import CachedLabels, LabelSource, Member, Mixture, Panel, Route
from pipeline.sources.matching import known_classes
from pipeline.sources.panel import APART, HEADS, SEPARATE
from pipeline.sources.route import epochs_of
from pipeline.store import Cache
from pipeline.training.config import TrainConfig

Labels = npt.NDArray[np.int64]


def check_mixable(caches: Sequence[Cache], config: TrainConfig, dataset: Dataset) -> None:
    """Raise ConfigError for the same cache at two places, and for labels that ``config.mix`` cannot make one."""
    found: dict[str, str] = {}
    flag, how = ("--route", "") if config.route else ("--labels", ", with one weight")
    for cache in caches:
        if cache.digest in found:
            raise ConfigError(
                f"{flag} names one cache twice: {found[cache.digest]} and {cache.address} hold the same. Name it "
                f"once{how}"
            )
        found[cache.digest] = cache.address
        if len(caches) == 1 or config.mix == SEPARATE:
            continue
        if cache.encoding.name != "dense" and config.mix != HEADS and not config.route:
            raise ConfigError(
                f"dense labels are needed to average several: {cache.address} is {cache.encoding.name}, and what is "
                "known of a class differs from cache to cache. Weigh their losses instead (--mix losses), dump with "
                "--encoding dense, or train on it alone"
            )
        if config.route and known_classes(cache, dataset) is not None:
            raise ConfigError(
                f"--route is of a teacher that knows all classes; {cache.address} knows {some(cache.class_names, 4)} "
                "alone"
            )
        if known_classes(cache, dataset) is not None:
            raise ConfigError(
                f"{cache.address} knows {len(cache.class_names)} of the {len(dataset.classes)} classes "
                f"({some(cache.class_names, 4)}), and --mix {config.mix} is of teachers that know all. Give each a "
                "loss of its own, on the classes that it knows: --mix losses"
            )


def join(
    labels: Sequence[CachedLabels], weights: Sequence[float], config: TrainConfig, dataset: Dataset, hard: Labels
) -> LabelSource:
    """The source that a student learns from. ``hard`` (N,) are the hard labels that training may know, -1 for none.

    Raises ConfigError for options that these caches cannot serve, and where nothing would teach a class.
    """
    partly = any(one.matching.knows is not None for one in labels)
    if not partly and config.foreign != TrainConfig.foreign:
        raise ConfigError("--foreign is of caches that know some of the classes; these know all")
    if partly or (len(labels) > 1 and config.mix in APART):
        problems = [*_panel_problems(labels, config, dataset, hard)] if partly else []
        if problems:
            raise ConfigError(problems)
        members = [Member(one, weight, one.matching.knows) for one, weight in zip(labels, weights, strict=True)]
        return Panel(members, classes=len(dataset.classes), labels=hard, foreign=config.foreign)
    if len(labels) == 1:
        return labels[0]
    if config.route:
        return Route(labels, epochs=config.epochs)
    if config.mix == "correct" and not (hard >= 0).any():
        raise ConfigError(
            f"--mix correct asks who has the hard label right, and no training example of {dataset.name} has one: "
            "--mix probs averages all"
        )
    pairs = list(zip(labels, weights, strict=True))
    return Mixture(pairs, temperature=config.temperature, mix=config.mix, labels=hard)


def joint_lineage(labels: Sequence[CachedLabels], weights: Sequence[float], config: TrainConfig) -> dict[str, Any]:
    """Digest and teacher of the cache; of several lists of them, the weights, and how they are mixed. JSON values.

    Of a route: lists in its order, with the epochs that each cache serves.

    ``foreign`` where it matters: for caches that know some of the classes.
    """
    caches = [one.cache for one in labels]
    partly = any(one.matching.knows is not None for one in labels)
    extra = {"foreign": config.foreign} if partly else {}
    if len(caches) == 1:
        return {"cache": caches[0].digest, "teacher": caches[0].identity["teacher"], **extra}
    if config.route:
        served = epochs_of(len(caches), config.epochs)
        pairs = [{"digest": cache.digest, "epochs": epochs} for cache, epochs in zip(caches, served, strict=True)]
        return {"cache": pairs, "teacher": [cache.identity["teacher"] for cache in caches]}
    # 7 and 3 are the same weights as 0.7 and 0.3, whatever their quotients round to.
    rounded = [float(f"{weight:.12g}") for weight in weights]
    pairs = [{"digest": cache.digest, "weight": weight} for cache, weight in zip(caches, rounded, strict=True)]
    return {"cache": pairs, "mix": config.mix, "teacher": [cache.identity["teacher"] for cache in caches], **extra}


def _panel_problems(
    labels: Sequence[CachedLabels], config: TrainConfig, dataset: Dataset, hard: Labels
) -> Iterator[str]:
    """Why a student cannot learn all classes from these caches, some of which know some of them."""
    every = set(range(len(dataset.classes)))
    known = [every if one.matching.knows is None else set(one.matching.knows) for one in labels]
    addresses = " and ".join(one.cache.address for one in labels)
    if config.objective.response.labelled:
        yield f"--loss {config.loss} needs the hard label among the classes of each teacher: use another, such as kl"
    taught = set(np.unique(hard[hard >= 0]).tolist()) if config.objective.beta else set()
    unknown = [dataset.classes[number] for number in sorted(every - taught - set().union(*known))]
    without = "no hard term (--alpha below 1, or --beta)" if not config.objective.beta else "no such example labelled"
    if unknown:
        yield (
            f"nobody would teach the student {some(unknown, 10)}: {addresses} know other classes, and there is "
            f"{without}. Add --labels of a teacher that knows them"
        )
    groups = _tied(known)
    if len(groups) > 1 and not taught:
        first, other = ([dataset.classes[number] for number in sorted(group)] for group in groups[:2])
        yield (
            f"nothing says how likely {some(first, 3)} are against {some(other, 3)}: no chain of shared classes ties "
            f"those of {addresses} together, and there is {without}"
        )


def _tied(known: Sequence[set[int]]) -> list[set[int]]:
    """Sets of classes joined where they overlap."""
    groups: list[set[int]] = []
    for own in known:
        joined = own.union(*(group for group in groups if group & own))
        groups = [group for group in groups if not group & own] + [joined]
    return groups
