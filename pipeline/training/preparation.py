"""From options to a task: dataset, cache or teacher, views and rows, checked against each other before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.configuration import parse_arguments
from pipeline.datasets import Dataset, load_dataset
from pipeline.devices import resolve_device, use_threads
from pipeline.errors import CacheMismatchError, ConfigError
from pipeline.models import check_model, load_model, state_digest
from pipeline.sampler import Rows, blocks_of
from pipeline.sources import CachedLabels, LabelSource, LiveTeacher, match, replay_views
from pipeline.sources.replay import recorded_views
from pipeline.store import Cache, open_cache
from pipeline.store.copies import default_folder
from pipeline.training.config import DEFAULT_BLOCK, TrainConfig
from pipeline.training.inputs import make_inputs
from pipeline.training.task import Task, data_lineage, keep_labels, repeated, view_numbers, without_class
from pipeline.views import Views, check_replay, check_views, make_views


@dataclass(frozen=True)
class Prepared:
    """A task with the dataset it is over and where everything came from (``lineage``, JSON values)."""

    task: Task
    dataset: Dataset
    lineage: dict[str, Any]


def prepare(config: TrainConfig) -> Prepared:
    """Open and check everything that ``config`` names.

    Raises ConfigError, DataError, ModelError, or a CacheError such as CacheMismatchError.
    """
    use_threads(config.threads)
    device = resolve_device(config.device)
    dataset = load_dataset(config.data, parse_arguments(config.data_args, "--data-args"))
    copies = config.cache_dir or default_folder()
    cache = (
        open_cache(config.cache, cache_dir=copies, cache_bytes=config.cache_bytes) if config.cache is not None else None
    )
    objective = config.objective
    if cache is not None:
        _check_cache(cache, config)
        views = replay_views(cache, config.transform)
        matching = match(cache, dataset, "train", config.missing)
        labels = CachedLabels(cache, matching, device=device, resident=config.resident, labels_view=config.labels)
        rows, on_hand = matching.rows, cache.views("train")
    else:
        labels, rows = None, dataset.rows("train")
        views = make_views(config.transform, config.views + 1, config.views_seed)
        on_hand = tuple(range(views.count))
    train_views = view_numbers(config.train_views, on_hand)
    if any(train_views):
        check_views(views, dataset)
        if cache is not None and objective.alpha and config.labels == "own":
            _check_replay(cache, views, dataset)
    source: LabelSource | None = labels if objective.alpha else None
    teacher: dict[str, Any] | None = None
    if config.teacher is not None and objective.alpha:
        source, teacher = _live(config, dataset, device)
    rows = without_class(dataset, rows, config.omit_class)
    hard = keep_labels(dataset, rows, config.labelled_fraction)
    rows = rows[_useful(rows, hard, source, objective.beta)]
    visits = repeated(rows, config.repeat, len(without_class(dataset, dataset.rows("train"), config.omit_class)))
    if labels is not None and not config.block:
        blocks = labels.blocks(visits)
    else:
        positions = np.searchsorted(rows, visits) if len(rows) else visits
        blocks = blocks_of(visits, positions // (config.block or DEFAULT_BLOCK))
    task = make_task(dataset, views, blocks, hard, config, device, train_views=train_views, source=source)
    lineage = {
        **data_lineage(dataset),
        "cache": cache.digest if cache is not None else None,
        "teacher": teacher if cache is None else cache.identity["teacher"],
        "views": {"transform": views.description, "seed": views.seed, "trained_on": list(train_views)},
        "examples": len(rows),
        "visits_per_epoch": task.examples,
        "labelled": int((hard[rows] >= 0).sum()),
    }
    return Prepared(task, dataset, lineage)


def make_task(
    dataset: Dataset,
    views: Views,
    blocks: tuple[Rows, ...],
    labels: np.ndarray[Any, np.dtype[np.int64]],
    config: Any,
    device: torch.device,
    *,
    train_views: tuple[int, ...],
    source: LabelSource | None,
) -> Task:
    """A task over ``blocks`` of training rows, judged on the labelled validation rows.

    ``config`` is a Recipe; a TrainConfig's objective and omitted class count too. Raises ConfigError when choices are
    to be made on a validation split that has no labels.
    """
    given = np.asarray(dataset.labels, dtype=np.int64)
    validation = dataset.rows("validation")
    validation = without_class(dataset, validation[given[validation] >= 0], getattr(config, "omit_class", None))
    if not len(validation) and (config.patience or config.keep == "best"):
        raise ConfigError(
            f"--patience and --keep best choose on the validation split, and {dataset.name} has no labelled validation "
            "example. Leave both out"
        )
    kept = {"device": device, "resident": config.resident_inputs, "workers": config.workers}
    return Task(
        classes=len(dataset.classes),
        blocks=blocks,
        labels=labels,
        inputs=make_inputs(dataset, views, np.concatenate(blocks), len(train_views), **kept),
        train_views=train_views,
        objective=config.objective,
        source=source,
        validation=np.asarray(validation, dtype=np.int64),
        validation_inputs=make_inputs(dataset, Views(), np.asarray(validation, dtype=np.int64), 1, **kept),
        validation_labels=given,
        device=device,
    )


def _check_cache(cache: Cache, config: TrainConfig) -> None:
    """Refuse a loss or temperature that the cache's encoding cannot serve."""
    if not config.objective.alpha:
        return
    kept = tuple(cache.encoding.temperatures)
    if config.loss == "logit-regression" and kept:
        raise ConfigError(
            f"--loss logit-regression needs the logits of all classes; {cache.address} keeps the largest ones "
            f"({cache.encoding.name}). Use --loss kl, or dump with --encoding dense"
        )
    if config.loss == "kl" and kept and not any(abs(t - config.temperature) <= 1e-6 * max(1.0, t) for t in kept):
        raise ConfigError(
            f"--temperature {config.temperature:g} was not kept by {cache.address}: it holds T = "
            f"{', '.join(f'{t:g}' for t in kept)}. Use one of those, or dump again with that one"
        )


def _check_replay(cache: Cache, views: Views, dataset: Dataset) -> None:
    """Raise CacheMismatchError when views made here are not the ones that the labels were given for."""
    replay = check_replay(recorded_views(cache), views, dataset)
    if not replay.ok:
        raise CacheMismatchError(f"{cache.address}: {replay.summary}, or train with --labels plain")


def _live(config: TrainConfig, dataset: Dataset, device: torch.device) -> tuple[LiveTeacher, dict[str, Any]]:
    """The teacher that runs beside the student, checked, and what it is."""
    arguments = parse_arguments(config.teacher_args, "--teacher-args")
    classes, whose = len(dataset.classes), f"teacher {config.teacher}"
    model = load_model(str(config.teacher), arguments, config.weights, dataset, whose=whose)
    teacher = LiveTeacher(model, classes, device=device)
    example = dataset.prepare(dataset.load(0))[None].to(device)
    check_model(teacher.model, classes=classes, example_input=example, class_names=dataset.classes, whose=whose)
    return teacher, {"reference": config.teacher, "args": arguments, "state": state_digest(model)}


def _useful(rows: Rows, hard: np.ndarray[Any, Any], source: LabelSource | None, beta: float) -> np.ndarray[Any, Any]:
    """Which rows have anything to learn from."""
    useful = np.zeros(len(rows), dtype=np.bool_)
    if source is not None:
        useful |= source.has(rows)
    if beta:
        useful |= hard[rows] >= 0
    return useful
