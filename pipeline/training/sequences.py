"""What of a training run cannot be done with token sequences, said before anything is read."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.datasets import Dataset
from pipeline.errors import ConfigError
from pipeline.training.options import TrainOptions


def check_sequences(config: TrainOptions, dataset: Dataset) -> None:
    """Raises ConfigError with every option that is of examples with one label each, where ``dataset`` has sequences."""
    if dataset.discrete and (problems := list(_problems(config, dataset.name))):
        raise ConfigError(problems)


def _problems(config: TrainOptions, name: str) -> Iterator[str]:
    each = f"and {name} has token sequences"
    if len(config.labels) > 1:
        yield f"several --labels mix what teachers say of examples, {each}: name one --cache"
    if config.hints:
        yield f"--hints are features of whole examples, {each}: leave them out"
    if config.exchanging:
        yield f"--peers and --peer learn from each other's logits of whole examples, {each}: leave them out"
    if config.omit_class or config.label_noise:
        yield f"--omit-class and --label-noise are of one class for each example, {each}: leave them out"
    if config.transform is not None or config.views:
        yield f"--views are random transforms of inputs that are no tokens, {each}: leave --views and --transform out"
