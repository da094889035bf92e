"""The steps of compression in order, each leaving a row; and the choice of the student they start from."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.artefacts.checking import Floats, Predictor, check
from pipeline.artefacts.latency import measure
from pipeline.artefacts.onnx_file import export_onnx, size_of
from pipeline.artefacts.onnx_runtime import open_model
from pipeline.compression import pruning, quantisation
from pipeline.compression.config import CompressConfig
from pipeline.compression.finetuning import Tuning
from pipeline.compression.table import Row, compare_scores, warn
from pipeline.configuration import parse_arguments
from pipeline.datasets import Dataset
from pipeline.errors import DataError, MissingDependencyError, ModelError
from pipeline.evaluation import labelled_rows, plain_batches, score_rows, torch_predictor
from pipeline.metrics import spread
from pipeline.models import load_model
from pipeline.progress import Progress
from pipeline.runs import Run, parameter_count

TRIED = 64
"""Inputs that each file is checked on, one by one and together."""
BASELINE = "baseline"


@dataclass(frozen=True)
class Chosen:
    """The run that is best on validation on average, and the seed of it that is best there."""

    run: Run
    seed: int
    accuracy: float
    considered: tuple[tuple[Run, float], ...]


def choose(runs: Sequence[Run], dataset: Dataset, *, batch_size: int, workers: int = 0) -> Chosen:
    """Choose by validation accuracy: the run by its mean over seeds, then the seed. The test split is not touched.

    Ties go to the smaller model, then to the lower loss. Raises DataError without a validation split.
    """
    rows = labelled_rows(dataset, "validation")
    models = {(r, seed): run.build(dataset, seed) for r, run in enumerate(runs) for seed in run.weights}
    cpu = torch.device("cpu")
    scores = score_rows(
        {key: torch_predictor(model, cpu) for key, model in models.items()},
        dataset, rows, batch_size=batch_size, workers=workers,
    )  # fmt: skip

    def rank(key: tuple[int, int]) -> tuple[float, int, float]:
        return scores[key].accuracy, -parameter_count(models[key]), -scores[key].nll

    def rank_run(r: int) -> tuple[float, int, float]:
        ranks = [rank((r, seed)) for seed in runs[r].weights]
        return spread([a for a, _, _ in ranks])[0], ranks[0][1], spread([loss for _, _, loss in ranks])[0]

    best = max(range(len(runs)), key=rank_run)
    seed = max(runs[best].weights, key=lambda s: rank((best, s)))
    considered = tuple((run, rank_run(r)[0]) for r, run in enumerate(runs))
    return Chosen(runs[best], seed, scores[best, seed].accuracy, considered)


class Maker:
    """Makes the rows. ``predictors`` holds what each row's figures will be computed with."""

    def __init__(
        self, config: CompressConfig, dataset: Dataset, chosen: Chosen, folder: Path, progress: Progress
    ) -> None:
        self.config, self.dataset, self.chosen, self.folder, self.progress = config, dataset, chosen, folder, progress
        self.tuning = Tuning(config, chosen.run, progress)
        self.rows: list[Row] = []
        self.predictors: dict[str, Predictor] = {}
        self.classes = len(dataset.classes)
        self.test = labelled_rows(dataset, "test")
        self.validation = labelled_rows(dataset, "validation")
        train = dataset.rows("train")
        if not len(train):
            raise DataError(f"{dataset.name} should have a train split: fine-tuning and calibration use it; found none")
        order = np.random.default_rng(config.seed).permutation(train)
        self.calibration = np.sort(order[: config.calibration])
        self.example = next(plain_batches(dataset, self.calibration[[0, 0]], batch_size=2))[1]
        self.tried = next(plain_batches(dataset, self.validation[:TRIED], batch_size=TRIED))[1].numpy()

    @property
    def test_examples(self) -> int:
        return len(self.test)

    @property
    def validation_examples(self) -> int:
        return len(self.validation)

    @property
    def calibration_examples(self) -> int:
        return len(self.calibration)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that shaped the files."""
        found = {}
        for package in ("torch", "onnx", "onnxscript", "onnxruntime", "torch-pruning"):
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return found

    def make(self) -> list[Row]:
        """Every row, made, tried, scored and timed."""
        steps = self._steps()
        with self.progress.bar("compress", len(steps) + 2, "steps") as bar:
            for step in steps:
                step()
                bar.update(1)
            self._score()
            bar.update(1)
            self._time()
            bar.update(1)
        warn(self.rows)
        return self.rows

    def _steps(self) -> list[Callable[[], None]]:
        config = self.config
        student = self.chosen.run.build(self.dataset, self.chosen.seed)
        steps: list[Callable[[], None]] = []
        if config.teacher is not None:
            steps.append(lambda: self._float("teacher", "the teacher as it is", self._teacher, control=True))
            if config.int8:
                steps.append(lambda: self._static("teacher", "just quantise the teacher", control=True))
        steps.append(lambda: self._float(BASELINE, "the student, float32", lambda: student))
        if config.int8:
            steps.append(lambda: self._static(BASELINE, "the student, int8 weights and activations", name="int8"))
            steps.append(self._dynamic)
        ratios = [ratio for ratio in config.prune if ratio > 0]
        for ratio in ratios:
            steps.extend(
                self._pruning_steps(student, ratio, "pruned" if len(ratios) == 1 else f"pruned-{round(100 * ratio)}")
            )
        if config.controls and config.epochs:
            what = f"the student with the same {config.epochs} extra epochs, not pruned"
            steps.append(
                lambda: self._float(
                    "finetuned", what, lambda: self.tuning.finetune(student), control=True, source=BASELINE, file=False
                )
            )
        return steps

    def _pruning_steps(self, student: nn.Module, ratio: float, name: str) -> list[Callable[[], None]]:
        config = self.config
        shapes: dict[str, nn.Module] = {}

        def pruned() -> nn.Module:
            shapes[name] = pruning.prune(student, self.example, ratio=ratio, classes=self.classes, norm=config.norm)
            recalibrated = shapes[name]
            pruning.recalibrate(recalibrated, self.tuning.batches())
            return self.tuning.finetune(recalibrated) if config.epochs else recalibrated

        def scratch() -> nn.Module:
            if name not in shapes:
                raise ModelError(f"needs {name}, which was skipped")
            return self.tuning.from_scratch(pruning.reinitialise(shapes[name], config.seed))

        tuned = f", {config.epochs} epochs on {self.tuning.labels}" if config.epochs else ""
        steps = [lambda: self._float(name, f"{ratio:.0%} of the channels removed{tuned}", pruned, source=BASELINE)]
        if config.int8:
            steps.append(lambda: self._static(name, f"{name}, int8 weights and activations"))
        if config.controls:
            what = f"the pruned shape from random weights, {self.tuning.labels}"
            steps.append(lambda: self._float(f"{name}-scratch", what, scratch, control=True, source=name, file=False))
        return steps

    def _teacher(self) -> nn.Module:
        arguments = parse_arguments(self.config.teacher_args, "--teacher-args")
        reference, weights = str(self.config.teacher), self.config.teacher_weights
        return load_model(reference, arguments, weights, self.dataset, whose=f"teacher {reference}").eval()

    def _attempt(self, row: Row, make: Callable[[Row], None]) -> None:
        """Run one step; an expected failure becomes the row's reason."""
        started = time.perf_counter()
        self.rows.append(row)
        try:
            make(row)
        except (MissingDependencyError, ModelError) as error:
            row.skipped = str(error)
            self.progress.log(f"{row.name} skipped: {error}")
        row.seconds = round(time.perf_counter() - started, 2)

    def _float(
        self,
        name: str,
        what: str,
        build: Callable[[], nn.Module],
        *,
        control: bool = False,
        source: str | None = None,
        file: bool = True,
    ) -> None:
        """A float model: exported and compared with its own torch logits; without ONNX its figures come from torch."""

        def make(row: Row) -> None:
            model = build().cpu().eval()
            row.parameters = parameter_count(model)
            predict = torch_predictor(model, torch.device("cpu"))
            self.predictors[name] = lambda inputs: predict(torch.from_numpy(inputs))
            row.runtime = "torch"
            if file:
                path = self.folder / f"{name}.onnx"
                export_onnx(model, self.dataset.input_shape, path, opset=self.config.opset, metadata=self._metadata())
                self._take(row, path, self.predictors[name](self.tried), exact=True)

        self._attempt(Row(name=name, what=what, control=control, source=source), make)

    def _static(self, source: str, what: str, *, control: bool = False, name: str | None = None) -> None:
        def make(row: Row) -> None:
            path = self.folder / f"{row.name}.onnx"
            batches = (x.numpy() for _, x in plain_batches(self.dataset, self.calibration, batch_size=32))
            quantisation.quantise_static(self._source(source), path, batches, reduce_range=self.config.reduce_range)
            self._take(row, path, self.predictors[source](self.tried))

        self._attempt(Row(name=name or f"{source}-int8", what=what, control=control, source=source), make)

    def _dynamic(self) -> None:
        def make(row: Row) -> None:
            path = self.folder / f"{row.name}.onnx"
            quantisation.quantise_dynamic(self._source(BASELINE), path)
            self._take(row, path, self.predictors[BASELINE](self.tried))

        what = "the student, int8 weights, activation ranges found at every call"
        self._attempt(Row(name="int8-dynamic", what=what, control=True, source=BASELINE), make)

    def _source(self, name: str) -> Path:
        path = self.folder / f"{name}.onnx"
        if not path.is_file():
            raise ModelError(f"needs {name}.onnx, which was skipped")
        return path

    def _take(self, row: Row, path: Path, source_logits: Floats, *, exact: bool = False) -> None:
        """Open a finished file, try it against its source, and let it compute the row's figures."""
        row.file, row.bytes = path.name, size_of(path)
        predict = open_model(path, self.config.runtime_threads)
        tried = check(predict, self.tried, source_logits)
        row.tried(tried)
        if exact and not tried.faithful:
            path.unlink()
            row.file = row.bytes = None
            raise ModelError(
                f"{path.name} should give the logits of its model; they differ by {tried.max_difference:.3g} at a "
                f"largest logit of {tried.scale:.3g}. Try another --opset"
            )
        self.predictors[row.name], row.runtime = predict, "onnxruntime"

    def _metadata(self) -> dict[str, Any]:
        return {"class_names": list(self.dataset.classes), "preprocessing": self.dataset.preprocessing}

    def _score(self) -> None:
        """Score every row on test and on validation, reading the data once each."""
        wrapped = {name: _on_tensors(predict) for name, predict in self.predictors.items()}
        size = self.config.batch_size
        test = score_rows(wrapped, self.dataset, self.test, batch_size=size, workers=self.config.workers)
        validation = score_rows(wrapped, self.dataset, self.validation, batch_size=size, workers=self.config.workers)
        for row in self.rows:
            if row.name in test:
                row.scored(test[row.name], validation[row.name])
        compare_scores(self.rows, test, BASELINE)

    def _time(self) -> None:
        """Time every file, in turns."""
        files = {row.name: self.predictors[row.name] for row in self.rows if row.runtime == "onnxruntime"}
        if not files:
            return
        sizes = self.config.latency_batch
        found = measure(files, self.tried, sizes, seconds=self.config.latency_seconds)
        for row in self.rows:
            if row.name in found:
                row.timed(found[row.name])


def _on_tensors(predict: Predictor) -> Callable[[Tensor], npt.NDArray[Any]]:
    return lambda inputs: predict(np.ascontiguousarray(inputs.numpy()))
