"""From options to a task: dataset, caches or teacher, views and rows, checked against each other before any work."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pipeline.configuration import parse_arguments
from pipeline.datasets import Dataset, load_dataset
from pipeline.devices import resolve_device, use_threads
from pipeline.errors import ConfigError, some
from pipeline.models import check_model, load_model, state_digest
from pipeline.sampler import Rows, blocks_of
from pipeline.sources import FeatureSource, LabelSource, LiveFeatures, LiveTeacher
from pipeline.training.caches import open_caches
from pipeline.training.config import DEFAULT_BLOCK, TrainConfig
from pipeline.training.inputs import make_inputs
from pipeline.training.mixed_views import check_mixed
from pipeline.training.objective import Objective
from pipeline.training.sequences import check_sequences
from pipeline.training.task import (
    Task,
    data_lineage,
    hard_labels,
    keep_labels,
    repeated,
    view_numbers,
    without_class,
)
from pipeline.views import Views, check_views, make_views


@dataclass(frozen=True)
class Prepared:
    """A task with the dataset it is over and where everything came from (``lineage``, JSON values).

    ``unchecked``: what could not be held against the data, because a cache does not know it; ``notes``: what else
    whoever trains should know.
    """

    task: Task
    dataset: Dataset
    lineage: dict[str, Any]
    unchecked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def prepare(config: TrainConfig) -> Prepared:
    """Open and check everything that ``config`` names.

    Raises ConfigError, DataError, ModelError, or a CacheError such as CacheMismatchError.
    """
    use_threads(config.threads)
    device = resolve_device(config.device)
    dataset = load_dataset(config.data, parse_arguments(config.data_args, "--data-args"))
    check_sequences(config, dataset)
    objective = config.objective
    learnt = open_caches(config, dataset, device) if config.cached else None
    source: LabelSource | None = None
    teacher: dict[str, Any] | None = None
    if learnt is not None:
        rows, views, train_views = learnt.rows, learnt.views, learnt.train_views
    else:
        rows = dataset.rows("train")
        views = make_views(config.transform, config.views + 1, config.views_seed)
        train_views = view_numbers(config.train_views, range(views.count))
        if any(train_views):
            check_views(views, dataset)
    hints: FeatureSource | None = None
    if learnt is not None and objective.hints is not None:
        hints = learnt.hints(objective.hints, config.resident)
    if config.teacher is not None and (objective.alpha or objective.hints):
        live, hints, teacher = _live(config, dataset, device)
        source = live if objective.alpha else None
    rows = without_class(dataset, rows, config.omit_class)
    hard = keep_labels(dataset, rows, config.labelled_fraction, config.label_noise)
    if learnt is not None:
        source = learnt.source(config, dataset, hard)
    rows = rows[_useful(rows, hard, source, hints, objective)]
    if source is not None and objective.beta and not (hard[rows] >= 0).any():
        raise ConfigError(
            f"the hard labels weigh {objective.beta:.3g}, and none of the {len(rows):,} training examples of "
            f"{dataset.name} has one: train on soft labels alone (--alpha 1 --beta 0), or give some a label"
        )
    if source is not None and objective.response.labelled:
        _check_labelled(dataset, rows[source.has(rows)], hard, config.loss)
    visits = repeated(rows, config.repeat, len(without_class(dataset, dataset.rows("train"), config.omit_class)))
    if learnt is not None and not config.block:
        blocks = learnt.blocks(visits, config.window)
    else:
        positions = np.searchsorted(rows, visits) if len(rows) else visits
        blocks = blocks_of(visits, positions // (config.block or DEFAULT_BLOCK))
    task = make_task(dataset, views, blocks, hard, config, device, train_views=train_views, source=source, hints=hints)
    task = replace(task, objective=config.goal)
    lineage = {
        **data_lineage(dataset),
        **({"cache": None, "teacher": teacher} if learnt is None else learnt.lineage(config)),
        "views": {"transform": views.description, "seed": views.seed, "trained_on": list(train_views)},
        "examples": len(rows),
        "visits_per_epoch": task.examples,
        "labelled": int((hard[rows] >= 0).sum()),
    }
    if learnt is None:
        return Prepared(task, dataset, lineage)
    return Prepared(task, dataset, lineage, learnt.unchecked, learnt.notes)


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
    hints: FeatureSource | None = None,
) -> Task:
    """A task over ``blocks`` of training rows, judged on the labelled validation rows.

    ``config`` is a Recipe; a TrainConfig's objective and omitted class count too. Raises ConfigError when choices are
    to be made on a validation split that has no labels, or views are mixed that cannot be.
    """
    check_mixed(views, train_views, config)
    given = hard_labels(dataset)
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
        hints=hints,
        example=dataset.prepare(dataset.load(0))[None],
        validation=np.asarray(validation, dtype=np.int64),
        validation_inputs=make_inputs(dataset, Views(), np.asarray(validation, dtype=np.int64), 1, **kept),
        validation_labels=given,
        device=device,
        mixing=functools.partial(views.mixing, dataset) if views.mixed else None,
        sequences=dataset if dataset.discrete else None,
    )


def _live(
    config: TrainConfig, dataset: Dataset, device: torch.device
) -> tuple[LiveTeacher, LiveFeatures | None, dict[str, Any]]:
    """The teacher that runs beside the student, checked, its features where hints are asked for, and what it is."""
    arguments = parse_arguments(config.teacher_args, "--teacher-args")
    classes, whose = len(dataset.classes), f"teacher {config.teacher}"
    model = load_model(str(config.teacher), arguments, config.weights, dataset, whose=whose)
    hints = config.objective.hints
    tapped = {feature: feature for feature, _ in hints.pairs} if hints is not None else {}
    sequences = dataset if dataset.discrete else None
    teacher = LiveTeacher(model, classes, device=device, features=tapped, sequences=sequences)
    example = dataset.prepare(dataset.load(0))[None].to(device)
    check_model(teacher.model, classes=classes, example_input=example, class_names=dataset.classes, whose=whose)
    features = LiveFeatures(teacher, example) if tapped else None
    return teacher, features, {"reference": config.teacher, "args": arguments, "state": state_digest(model)}


def _check_labelled(dataset: Dataset, rows: Rows, hard: np.ndarray[Any, Any], loss: str) -> None:
    """Raise ConfigError when an example with soft labels has no hard one, and the loss needs both."""
    without = rows[hard[rows] < 0]
    if len(without):
        raise ConfigError(
            f"--loss {loss} needs the hard label of each example that has soft ones; {len(without):,} of {len(rows):,} "
            f"have none ({some([dataset.ids[int(row)] for row in without[:4]], 3)}). Use another loss, such as kl, or "
            "give them labels (--labelled-fraction 1)"
        )


def _useful(
    rows: Rows,
    hard: np.ndarray[Any, Any],
    source: LabelSource | None,
    hints: FeatureSource | None,
    objective: Objective,
) -> np.ndarray[Any, Any]:
    """Which rows have anything to learn from."""
    useful = np.zeros(len(rows), dtype=np.bool_)
    for given in (source, hints):
        if given is not None:
            useful |= given.has(rows)
    if objective.beta:
        useful |= hard[rows] >= 0
    return useful
