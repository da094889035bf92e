"""Measure a student: on a held-out split, and against what its teacher said there.

The teacher does not run: its opinion of the split comes from the cache, that of several teachers from their mixture.
All seeds of a run are measured together, so the data is read once. Choices are made on validation, so its figures are
written beside those of the split. With ``--correct-class`` all figures are of models whose logits of some classes were
moved to fit validation (``correction``): those of validation then flatter a little. Calibration is measured before and
after temperature scaling, fitted on validation alone (``calibrating``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.configuration import parse_arguments
from pipeline.datasets import Dataset, load_dataset
from pipeline.devices import resolve_device, use_threads
from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.correction import Correction, fit_correction, known_shares
from pipeline.evaluation.describing import describe, summarise
from pipeline.evaluation.measuring import measure, rows_to_measure
from pipeline.evaluation.scoring import HELD_OUT, labelled_rows, plain_batches, score_rows, torch_predictor
from pipeline.evaluation.teachers import open_teachers
from pipeline.evaluation.uncertainty import measured
from pipeline.identity import digest
from pipeline.models import Hydra, check_model
from pipeline.outputs import json_bytes
from pipeline.progress import Progress, Silent
from pipeline.runs import Run, build_student, read_run
from pipeline.workspace import Workspace, refuse_strangers, write_atomic

__all__ = [
    "EvaluateConfig",
    "EvaluateReport",
    "labelled_rows",
    "open_dataset",
    "plain_batches",
    "run",
    "score_rows",
    "torch_predictor",
]


@dataclass(frozen=True)
class EvaluateReport:
    """``metrics`` is what metrics.json holds; ``details`` is everything else that was measured."""

    out: str
    metrics: dict[str, Any]
    details: dict[str, Any]

    @property
    def summary(self) -> str:
        """One line for people."""
        spread = (
            f" (s = {self.metrics['accuracy_std']:.4f} over {self.metrics['seeds']} seeds)"
            if self.metrics["seeds"] > 1
            else ""
        )
        teacher = f", teacher {self.metrics['teacher_accuracy']:.4f}" if "teacher_accuracy" in self.metrics else ""
        on = f"{self.details['examples']:,} {self.details['split']} examples"
        return f"{self.out}: accuracy {self.metrics['accuracy']:.4f}{spread}{teacher} on {on}"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"out": self.out, "metrics": self.metrics, "details": self.details}


def run(config: EvaluateConfig, progress: Progress | None = None) -> EvaluateReport:
    """Measure and write ``out``. Raises ConfigError, DataError, ModelError or CacheMismatchError before any work."""
    progress = progress or Silent()
    refuse_strangers(config.out, ("metrics.json", "details.json"))
    use_threads(config.threads)
    device = resolve_device(config.device)
    trained = read_run(config.run, config.allow) if config.run is not None else None
    dataset = open_dataset(config.data, config.data_args, trained)
    teachers = open_teachers(config.cache, trained)
    rows_of = rows_to_measure(config, trained, dataset, teachers)
    models = _models(config, trained, dataset)
    example = dataset.prepare(dataset.load(int(rows_of[config.split][0])))[None]
    for model in models.values():
        check_model(model, classes=len(dataset.classes), example_input=example)
    if config.correct_class:
        _check_correction(config, models, dataset)
    predictors = {seed: torch_predictor(model, device) for seed, model in models.items()}

    correction: Correction | None = None
    looked_at = sum(map(len, rows_of.values())) + (len(rows_of[HELD_OUT]) if config.correct_class else 0)
    with progress.bar("evaluate", looked_at, "examples") as bar:
        if config.correct_class:
            correction = fit_correction(
                config.correct_class, predictors, dataset,
                batch_size=config.batch_size, workers=config.workers, advance=bar.update,
            )  # fmt: skip
            predictors = correction.apply(predictors)
        found = measure(config, predictors, dataset, rows_of, teachers, bar.update)
    details = describe(config, dataset, trained, models, found, teachers)
    details |= {} if correction is None else {"correction": correction.as_dict()}
    uncertainty = measured(
        models, teachers, dataset, config.split, rows_of[config.split],
        device=device, batch_size=config.batch_size, workers=config.workers,
    )  # fmt: skip
    details |= {} if uncertainty is None else {"uncertainty": uncertainty}
    report = EvaluateReport(str(config.out), summarise(details), details)
    with Workspace(config.out, digest({"stage": "evaluate", **config.as_dict()})) as space:
        space.clear()
        write_atomic(space.path / "metrics.json", json_bytes(report.metrics))
        write_atomic(space.path / "details.json", json_bytes(report.details, indent=None))
        space.commit()
    return report


def open_dataset(data: str | None, data_args: Sequence[str], trained: Run | None) -> Dataset:
    """The dataset named, or the one the run was trained on."""
    if data is None:
        if trained is None:
            raise ConfigError("--data should name a dataset")
        data, data_args = trained.reference("data"), data_args or tuple(trained.config.get("data_args") or ())
    return load_dataset(data, parse_arguments(tuple(data_args), "--data-args"))


def _check_correction(config: EvaluateConfig, models: Mapping[int, nn.Module], dataset: Dataset) -> None:
    """Raise ConfigError or DataError for what cannot be corrected, before any work."""
    known_shares(config.correct_class, dataset)
    if any(isinstance(model, Hydra) for model in models.values()):
        raise ConfigError(
            "--correct-class is of models with one head: how far several disagree would be measured on answers that "
            "are not corrected. Leave it out"
        )


def _models(config: EvaluateConfig, trained: Run | None, dataset: Dataset) -> dict[int, nn.Module]:
    if trained is not None:
        return {seed: trained.build(dataset, seed) for seed in trained.weights}
    return {0: build_student(str(config.student), config.student_args, Path(str(config.weights)), dataset)}
