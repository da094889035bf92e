"""Everything a dump needs, built and checked before the teacher runs: dataset, views, teacher, layout, identity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.configuration import parse_arguments
from pipeline.datasets import Dataset, knowing, load_dataset
from pipeline.devices import autocast, resolve_device, use_threads
from pipeline.dump.config import DumpConfig
from pipeline.encodings import Encoding
from pipeline.errors import ConfigError, DataError
from pipeline.identity import SPLITS, digest
from pipeline.models import FeatureTap, check_model, frozen, load_model, parse_features, state_digest
from pipeline.models.causal import split_head
from pipeline.runs import read_trained
from pipeline.store import FeatureSpec, Group, Layout, part_size_for
from pipeline.views import Views, check_views, make_views

EXAMPLES_OF_BATCH, TOKENS_OF_BATCH = 256, 8192
KEPT_GUESS = 16
"""Classes that a position keeps, where nobody knows before it is drawn; it decides how large parts are, and no more."""


@dataclass(frozen=True)
class Job:
    """Everything a dump needs, built and checked before the teacher runs; ``dataset`` has the teacher's classes."""

    config: DumpConfig
    dataset: Dataset
    views: Views
    teacher: nn.Module
    encoding: Encoding
    features: Mapping[str, str]
    feature_specs: Mapping[str, FeatureSpec]
    layout: Layout
    identity: Mapping[str, Any]
    device: torch.device

    @cached_property
    def forward(self) -> Callable[[Tensor], Any]:
        """The teacher, or what was compiled of it."""
        return self._ready(self.teacher)

    @cached_property
    def body_and_head(self) -> tuple[Callable[[Tensor], Any], nn.Linear] | None:
        """Of a teacher of token sequences, where the two can be told apart; None otherwise. The body as ``forward``."""
        parts = split_head(self.teacher) if self.dataset.discrete else None
        return None if parts is None else (self._ready(parts[0]), parts[1])

    def _ready(self, model: nn.Module) -> Callable[[Tensor], Any]:
        return torch.compile(model) if self.config.compile else model

    @property
    def digest(self) -> str:
        """The cache's identity."""
        return str(self.identity["digest"])


def prepare(config: DumpConfig) -> Job:
    """Load dataset and teacher, check them against each other, and lay the cache out.

    Raises ConfigError, DataError or ModelError, before anything has been written.
    """
    config = with_teacher(config)
    use_threads(config.threads)
    device = resolve_device(config.device)
    dataset = knowing(load_dataset(config.data, parse_arguments(config.data_args, "--data-args")), config.classes)
    if not config.batch_size:
        config = replace(config, batch_size=_batch_size(dataset))
    views = make_views(config.transform, config.views + 1, config.seed)
    if dataset.discrete and views.count > 1:
        raise ConfigError(f"--views are random transforms of inputs, and {dataset.name} has tokens: leave --views out")
    check_views(views, dataset)
    arguments = parse_arguments(config.teacher_args, "--teacher-args")
    classes, whose = len(dataset.classes), f"teacher {config.teacher}"
    teacher = frozen(load_model(config.teacher, arguments, config.weights, dataset, whose=whose)).to(device)
    example = dataset.prepare(dataset.load(0))[None].to(device)
    with torch.no_grad(), autocast(device, config.precision):
        check_model(teacher, classes=classes, example_input=example, class_names=dataset.classes, whose=whose)
    encoding = config.kept()
    features = parse_features(config.features)
    feature_specs = _feature_specs(teacher, example, features, config.precision)
    groups = tuple(_groups(dataset, views, config.splits))
    if not groups:
        raise DataError(f"{dataset.name} has no examples in --splits {', '.join(config.splits)}")
    layout = layout_of(dataset, groups, config.part_size, encoding, feature_specs)
    description = {
        "teacher": {
            "reference": config.teacher,
            "args": arguments,
            "state": state_digest(teacher),
            "precision": config.precision,
        },
        "data": {"digest": dataset.digest(), "examples": len(dataset)},
        "preprocessing": dataset.preprocessing,
        "class_names": list(dataset.classes),
        "views": {"transform": views.description, "seed": views.seed, "count": views.count},
        "splits": [split for split in SPLITS if split in config.splits],
        "encoding": encoding.describe(),
        "features": features,
        "store": config.store,
        "part_size": layout.part_size,
    }
    identity = {**description, "digest": digest(description)}
    return Job(config, dataset, views, teacher, encoding, features, feature_specs, layout, identity, device)


def with_teacher(config: DumpConfig) -> DumpConfig:
    """``config`` with the teacher that its ``run`` left behind, spelt out; the cache is the same as if it were typed.

    Raises ConfigError when ``run`` is no finished run, or names code that was not allowed.
    """
    if config.run is None:
        return config
    found = read_trained(config.run, config.run_seed, config.allow)
    return replace(
        config,
        run=None,
        run_seed=None,
        allow=(),
        teacher=found.reference,
        teacher_args=found.arguments,
        weights=found.weights,
        classes=config.classes or found.classes,
    )


def layout_of(
    dataset: Dataset,
    groups: tuple[Group, ...],
    part_size: int,
    encoding: Encoding,
    features: Mapping[str, FeatureSpec],
) -> Layout:
    """How the entries are cut into parts, of ``part_size`` or, for 0, of about 32 MiB.

    Those of sequences have as many positions as are scored. Raises EncodingError when the encoding cannot keep so many
    classes.
    """
    specs = [*encoding.specs(len(dataset.classes)).values(), *(spec.array for spec in features.values())]
    row_bytes = sum(s.row_bytes * (1 if s.axis == "position" else min(s.most, KEPT_GUESS)) for s in specs)
    if not dataset.discrete:
        return Layout(groups=groups, part_size=part_size or part_size_for(row_bytes, groups))
    lengths = {group.split: dataset.lengths[dataset.rows(group.split)] for group in groups}
    mean = sum(int(each.sum()) for each in lengths.values()) / sum(len(each) for each in lengths.values())
    size = part_size or part_size_for(row_bytes, groups, mean)
    return Layout.ragged({split: (each, 1) for split, each in lengths.items()}, size)


def _batch_size(dataset: Dataset) -> int:
    """Entries per forward pass where nobody has said: token sequences are long."""
    return max(1, TOKENS_OF_BATCH // dataset.input_shape[0]) if dataset.discrete else EXAMPLES_OF_BATCH


def _groups(dataset: Dataset, views: Views, splits: tuple[str, ...]) -> Iterator[Group]:
    for split in SPLITS:
        entries = len(dataset.rows(split)) if split in splits else 0
        for view in range(views.count if split == "train" else 1) if entries else ():
            yield Group(split, view, entries)


def _feature_specs(
    teacher: nn.Module, example: Tensor, features: Mapping[str, str], precision: str
) -> dict[str, FeatureSpec]:
    if not features:
        return {}
    with torch.inference_mode(), autocast(example.device, precision), FeatureTap(teacher, features) as tap:
        teacher(example)
        axes = 1 if example.is_floating_point() else 2  # of sequences a feature has a row for each position
        return {name: FeatureSpec(shape=tuple(v.shape[axes:]), dtype="float16") for name, v in tap.values.items()}
