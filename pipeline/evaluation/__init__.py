"""Measure a student: on a held-out split, and against what its teacher said there.

The teacher does not run: its opinion of the split comes from the cache, that of several teachers from their mixture.
All seeds of a run are measured together, so the data is read once. Choices are made on validation, so its figures are
written beside those of the split. With ``--correct-class`` all figures are of models whose logits of some classes were
moved to fit validation (``correction``): those of validation then flatter a little. Calibration is measured before and
after temperature scaling, fitted on validation alone (``calibrating``). Corrupted examples and inputs of no class are
looked at where that is asked for (``beyond``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.configuration import command_line, parse_arguments
from pipeline.datasets import Dataset, load_dataset
from pipeline.devices import resolve_device, use_threads
from pipeline.errors import ConfigError
from pipeline.evaluation.beyond import measure_beyond
from pipeline.evaluation.candidates import (
    Candidate,
    named_models,
    of_run,
    of_weights,
    open_candidates,
    trained_run,
)
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.correction import Correction, fit_correction, known_shares
from pipeline.evaluation.describing import describe, summarise
from pipeline.evaluation.measuring import measure
from pipeline.evaluation.rendering import render, timed_on
from pipeline.evaluation.scoring import HELD_OUT, labelled_rows, plain_batches, score_rows, torch_predictor
from pipeline.evaluation.sight import Sight, look
from pipeline.evaluation.table import Row, flat
from pipeline.evaluation.tabulating import tabulate
from pipeline.evaluation.teachers import LiveTeacher, live_teacher, open_teachers
from pipeline.evaluation.uncertainty import measured
from pipeline.evaluation.writing import write_on
from pipeline.identity import digest
from pipeline.models import Hydra, check_model
from pipeline.outputs import json_bytes
from pipeline.progress import Progress, Silent
from pipeline.runs import Run, read_run
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
        """One line for people; of several models their table before it."""
        on = f"{self.details['examples']:,} {self.details['split']} examples"
        if "tokens" in self.details:
            on = f"{self.details['tokens']:,} tokens of {self.details['examples']:,} {self.details['split']} sequences"
        if "rows" in self.details:
            rows = [Row(**row) for row in self.details["rows"]]
            return "\n".join(
                [*render(rows), f"{self.out}: {len(rows)} models on {on}; {timed_on(self.details['environment'])}"]
            )
        if "tokens" in self.details:
            return f"{self.out}: {_language(self.metrics)} on {on}"
        spread = (
            f" (s = {self.metrics['accuracy_std']:.4f} over {self.metrics['seeds']} seeds)"
            if self.metrics["seeds"] > 1
            else ""
        )
        teacher = f", teacher {self.metrics['teacher_accuracy']:.4f}" if "teacher_accuracy" in self.metrics else ""
        return f"{self.out}: accuracy {self.metrics['accuracy']:.4f}{spread}{teacher} on {on}"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"out": self.out, "metrics": self.metrics, "details": self.details}


def _language(figures: Mapping[str, Any]) -> str:
    """The few figures of a language model that a line has room for."""
    several = figures["seeds"] > 1
    said = f"perplexity {figures['perplexity']:,.2f}"
    said += f" (s = {figures['perplexity_std']:,.2f} over {figures['seeds']} seeds)" if several else ""
    said += f", teacher {figures['teacher_perplexity']:,.2f}" if "teacher_perplexity" in figures else ""
    said += f", {figures['bits_per_byte']:.3f} bits per byte" if "bits_per_byte" in figures else ""
    if "acceptance" in figures:
        return f"{said}, acceptance {figures['acceptance']:.3f}"
    if "acceptance_least" in figures:
        return f"{said}, acceptance {figures['acceptance_least']:.3f} to {figures['acceptance_most']:.3f}"
    return said


def run(config: EvaluateConfig, progress: Progress | None = None) -> EvaluateReport:
    """Measure and write ``out``. Raises ConfigError, DataError, ModelError or CacheMismatchError before any work."""
    progress = progress or Silent()
    refuse_strangers(config.out, ("metrics.json", "details.json"))
    use_threads(config.threads)
    device = resolve_device(config.device)
    named = named_models(config.models)
    trained = read_run(config.run, config.allow) if config.run is not None else trained_run(named, config.allow)
    dataset = open_dataset(config.data, config.data_args, trained)
    teachers = (
        open_teachers(config.cache, trained)
        if config.teacher is None
        else live_teacher(config.teacher, dataset, device, config.allow)
    )
    sight = look(config, trained, dataset, teachers)
    if named:
        candidates = open_candidates(config, named, dataset, device, progress)
        report = _compare(config, dataset, sight, candidates, progress)
    else:
        one = of_run(trained, dataset, device) if trained is not None else of_weights(config, dataset, device)
        report = _measure(config, dataset, sight, one, device, progress)
    with Workspace(config.out, digest({"stage": "evaluate", **config.as_dict()})) as space:
        space.clear()
        write_atomic(space.path / "metrics.json", json_bytes(report.metrics))
        write_atomic(space.path / "details.json", json_bytes(report.details, indent=None))
        space.commit()
    return report


def _compare(
    config: EvaluateConfig,
    dataset: Dataset,
    sight: Sight,
    candidates: Sequence[Candidate],
    progress: Progress,
) -> EvaluateReport:
    """Several models side by side."""
    baseline = config.baseline or candidates[0].name
    if baseline not in [candidate.name for candidate in candidates]:
        raise ConfigError(f"--baseline should be one of {', '.join(c.name for c in candidates)}; found {baseline!r}")
    rows = [Row(c.name, c.what, source=c.source, control=c.control, runtime=c.runtime) for c in candidates]
    details = tabulate(config, dataset, sight, candidates, rows, baseline, progress)
    details |= _written(config, dataset, sight, candidates)
    return EvaluateReport(str(config.out), flat(rows, baseline), details | {"command": typed(config)})


def _measure(
    config: EvaluateConfig,
    dataset: Dataset,
    sight: Sight,
    candidate: Candidate,
    device: torch.device,
    progress: Progress,
) -> EvaluateReport:
    """All seeds of one run, or one file of weights."""
    rows, teachers = sight.rows_of[config.split], sight.teachers
    example = dataset.prepare(dataset.load(int(rows[0])))[None].to(device)
    for model in candidate.models.values():
        check_model(model, classes=len(dataset.classes), example_input=example)
    if config.correct_class:
        _check_correction(config, candidate.models, dataset)
    predictors = candidate.predictors
    correction: Correction | None = None
    looked_at = sight.examples + (len(sight.rows_of[HELD_OUT]) if config.correct_class else 0)
    with progress.bar("evaluate", looked_at, "examples") as bar:
        if config.correct_class:
            correction = fit_correction(
                config.correct_class, predictors, dataset,
                batch_size=config.batch_size, workers=config.workers, advance=bar.update,
            )  # fmt: skip
            predictors = correction.apply(predictors)
        keyed = {(candidate.name, seed): predict for seed, predict in predictors.items()}
        found = measure(config, keyed, dataset, sight.rows_of, teachers, bar.update).of(candidate.name)
        others = measure_beyond(
            config, sight.beyond, predictors, dataset, rows, found.scores[config.split], advance=bar.update
        )
    details = describe(config, dataset, candidate, found, teachers) | others
    details |= {} if correction is None else {"correction": correction.as_dict()}
    uncertainty = measured(
        candidate.models, teachers, dataset, config.split, rows,
        device=device, batch_size=config.batch_size, workers=config.workers,
    )  # fmt: skip
    details |= {} if uncertainty is None else {"uncertainty": uncertainty}
    details |= _written(config, dataset, sight, [candidate])
    return EvaluateReport(str(config.out), summarise(details), details | {"command": typed(config)})


def _written(config: EvaluateConfig, dataset: Dataset, sight: Sight, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """What the first seed of each language model writes, and a teacher that runs; see ``writing.write_on``."""
    return write_on(
        dataset,
        sight.rows_of[config.split],
        {c.name: next(iter(c.models.values())) for c in candidates if c.models},
        teacher=sight.teachers.predict.model if isinstance(sight.teachers, LiveTeacher) else None,
        samples=config.samples,
        left_out={c.name: "a file is run as it is deployed, not to write" for c in candidates if not c.models},
    )


def typed(config: EvaluateConfig) -> str:
    """The command of an evaluation."""
    return command_line("evaluate", EvaluateConfig, config.as_dict(), typed=("models",))


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
