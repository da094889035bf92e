"""Everything a dump needs, built and checked before the teacher runs: dataset, views, teacher, layout, identity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import encodings
from pipeline.configuration import parse_arguments
from pipeline.datasets import Dataset, knowing, load_dataset
from pipeline.devices import autocast, resolve_device, use_threads
from pipeline.dump.config import DumpConfig
from pipeline.encodings import Encoding
from pipeline.errors import DataError
from pipeline.identity import SPLITS, digest
from pipeline.models import FeatureTap, check_model, frozen, load_model, parse_features, state_digest
from pipeline.runs import read_trained
from pipeline.store import FeatureSpec, Group, Layout, part_size_for
from pipeline.views import Views, check_views, make_views


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
    views = make_views(config.transform, config.views + 1, config.seed)
    check_views(views, dataset)
    arguments = parse_arguments(config.teacher_args, "--teacher-args")
    classes, whose = len(dataset.classes), f"teacher {config.teacher}"
    teacher = frozen(load_model(config.teacher, arguments, config.weights, dataset, whose=whose)).to(device)
    example = dataset.prepare(dataset.load(0))[None].to(device)
    with torch.no_grad(), autocast(device, config.precision):
        check_model(teacher, classes=classes, example_input=example, class_names=dataset.classes, whose=whose)
    encoding = encodings.make(config.encoding, dtype=config.dtype, k=config.k, temperatures=config.temperature)
    specs = encoding.specs(classes)
    features = parse_features(config.features)
    feature_specs = _feature_specs(teacher, example, features, config.precision)
    groups = tuple(_groups(dataset, views, config.splits))
    if not groups:
        raise DataError(f"{dataset.name} has no examples in --splits {', '.join(config.splits)}")
    row_bytes = sum(spec.row_bytes for spec in (*specs.values(), *(f.array for f in feature_specs.values())))
    layout = Layout(groups=groups, part_size=config.part_size or part_size_for(row_bytes, groups))
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
        return {name: FeatureSpec(shape=tuple(v.shape[1:]), dtype="float16") for name, v in tap.values.items()}
