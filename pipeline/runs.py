"""What a training run left behind, read back: its configuration, its seeds and their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.configuration import parse_arguments
from pipeline.datasets import Dataset
from pipeline.errors import ConfigError
from pipeline.models import build_model, load_weights


@dataclass(frozen=True)
class Run:
    """One training run: ``weights`` maps each seed to its file, ``histories`` to its record of epochs."""

    path: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    weights: Mapping[int, Path]

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.name

    def build(self, dataset: Dataset, seed: int) -> nn.Module:
        """The student of one seed, in eval mode, on the CPU."""
        return build_student(
            str(self.config["student"]), tuple(self.config.get("student_args") or ()), self.weights[seed], dataset
        )


def build_student(reference: str, arguments: tuple[str, ...], weights: Path, dataset: Dataset) -> nn.Module:
    """A model with its trained weights, in eval mode, on the CPU, fit for ``dataset``. Raises ModelError otherwise."""
    parsed = parse_arguments(arguments, "--student-args")
    model = build_model(reference, parsed, classes=len(dataset.classes), input_shape=dataset.input_shape)
    load_weights(model, weights)
    return model.eval()


def parameter_count(model: nn.Module) -> int:
    """Number of trainable and frozen parameters; buffers such as running statistics are not counted."""
    return sum(p.numel() for p in model.parameters())


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file. Raises ConfigError that says ``what`` was expected there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} should be {what}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} should be {what}, but it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} should be {what}; found a JSON {type(value).__name__}")
    return value


def read_run(path: Path) -> Run:
    """Read ``runs/<name>``. Raises ConfigError when it is no finished run."""
    record = read_json(path / "run.json", "the record of a training run (softlabels train writes it)")
    config = record.get("config")
    if not isinstance(config, dict) or "student" not in config:
        raise ConfigError(
            f"{path / 'run.json'} should hold the configuration of a run; it names no student. Train again"
        )
    weights = {
        int(folder.name.removeprefix("seed-")): folder / "model.safetensors"
        for folder in path.glob("seed-*")
        if folder.name.removeprefix("seed-").isdigit() and (folder / "model.safetensors").is_file()
    }
    if not weights:
        raise ConfigError(f"{path} should hold seed-*/model.safetensors; found none. Train again")
    return Run(path=path, config=config, record=record, weights=dict(sorted(weights.items())))
