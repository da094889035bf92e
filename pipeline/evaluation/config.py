"""Options of ``softlabels evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.configuration import REQUIRED, Config, option
from pipeline.corruptions import ALL, CORRUPTIONS, SEVERITIES
from pipeline.identity import SPLITS


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Options of ``softlabels evaluate``."""

    models: tuple[str, ...] = option(
        (),
        "what to measure side by side, in one table: directories of train (all seeds), fit-teacher or compress (all "
        "files), .safetensors, .onnx, .pt2; NAME=PATH names a row",
        metavar="[NAME=]PATH",
        paths=True,
    )
    run: Path | None = option(None, "instead: directory of a training run; all of its seeds are measured")
    weights: Path | None = option(None, "instead of --run: one model's weights; needs --student and --data")
    student: str | None = option(
        None,
        "with --weights, and for .safetensors that do not say what builds them: a built-in (cnn-WIDTH, resnet-WIDTH, "
        "mlp-WIDTH), module:factory, timm:NAME, hf:PATH",
    )
    student_args: tuple[str, ...] = option((), "with --student: key=value arguments for its factory")
    data: str | None = option(None, "dataset; that of the run unless given")
    data_args: tuple[str, ...] = option((), "key=value arguments for the dataset")
    allow: tuple[str, ...] = option((), "module:factory that the run names and may be imported: your own code")
    cache: str | None = option(
        None,
        "cache with the teacher's labels of the split; that of the run, or its mixture, unless given; 'none' for none",
    )
    teacher: Path | None = option(
        None,
        "instead of --cache: directory of fit-teacher (or train) whose model runs beside those measured, on the same "
        "batches: exact figures where a cache holds samples or the first few tokens",
    )
    split: str = option("test", "what to measure on", choices=SPLITS)
    correct_class: tuple[str, ...] = option(
        (),
        "class whose logits get the constant that fits validation best, where its mean probability is its share there: "
        "for a class that was left out of training",
        metavar="NAME",
    )
    out: Path = option(REQUIRED, "directory for metrics.json and details.json")
    bins: int = option(15, "bins of confidence, for calibration: of equal width, and of equal mass")
    top_k: int = option(
        5, "also the share whose true label is among the first K; left out unless there are more classes"
    )
    calibrate: bool = option(
        True, "also fit a temperature to each model on validation, where that is not the split, and measure it scaled"
    )
    fidelity_on_train: bool = option(
        False, "also agreement with the teacher, and divergence, on train: a pass over all of it, and its cached labels"
    )
    corruptions: tuple[str, ...] = option(
        (),
        "also on the split's images with a common corruption; --list-corruptions says what each is",
        choices=(ALL, *CORRUPTIONS),
        metavar="NAME|all",
    )
    severities: tuple[int, ...] = option(SEVERITIES, "with --corruptions: how strong, 1 to 5")
    outliers: str | None = option(
        None,
        "also how sure models are of what is of no class, and how well confidence and energy tell it from the split: "
        "noise, normal-noise, scrambled (the split's own pixels in random order), or a dataset as --data takes it",
        metavar="NAME|DATASET",
    )
    outlier_args: tuple[str, ...] = option((), "key=value arguments for the dataset of --outliers")
    temperature: float = option(
        1.0, "of the divergence from the teacher, and of the mean of several teachers' probabilities"
    )
    baseline: str | None = option(None, "with several models: the row that the others are held against; the first")
    samples: int | None = option(
        None, "of language models: how many beginnings of sequences of the split each continues; 3 unless given"
    )
    cost: bool = option(True, "with several models: also latency, and load time and memory of artefacts")
    latency_batch: tuple[int, ...] = option((1, 32), "batch sizes to time")
    latency_seconds: float = option(1.0, "roughly how long to time each batch size")
    runtime_threads: int = option(1, "threads of the artefacts' runtime; 0 leaves its choice")
    trust: tuple[str, ...] = option(
        (), "sha256 of a .pt2 that you know: such files run what they carry when opened", metavar="SHA256"
    )
    batch_size: int = option(256, "examples per forward pass; of token sequences at most 32,768 tokens")
    workers: int = option(0, "processes that load examples; 0 does it in this one")
    device: str = option("auto", "auto, cpu, cuda, cuda:N, mps")
    threads: int = option(0, "CPU threads; 0 leaves torch's choice")

    def problems(self) -> Iterator[str]:
        if sum((self.run is not None, self.weights is not None, bool(self.models))) != 1:
            yield "give models to compare, or --run, a training run, or --weights with --student"
        if self.run is not None and self.weights is None and (self.student is not None or self.student_args):
            yield "--student and --student-args go with --weights; with --run, the students are those of the run"
        if self.run is None and self.weights is not None and (self.student is None or self.data is None):
            yield "--weights needs --student and --data: a file of weights does not say what they are for"
        if self.models and self.correct_class:
            yield "--correct-class is of one run: name it by --run"
        if self.teacher is not None and self.cache not in (None, "none"):
            yield "--teacher and --cache both say what models are compared with: name one"
        if self.baseline is not None and not self.models:
            yield "--baseline names one of several models"
        if not self.latency_batch or min(self.latency_batch) < 1:
            yield "--latency-batch should be at least 1"
        if not self.latency_seconds > 0:
            yield f"--latency-seconds should be above 0; found {self.latency_seconds:g}"
        if self.temperature <= 0:
            yield f"--temperature should be above 0; found {self.temperature:g}"
        if len(set(self.correct_class)) < len(self.correct_class):
            yield f"--correct-class names a class twice; found {', '.join(self.correct_class)}"
        if self.given("severities") and not self.corruptions:
            yield "--severities are of --corruptions: name some, or all"
        wrong = [level for level in self.severities if level not in SEVERITIES]
        if wrong or not self.severities:
            yield f"--severities should be one or more of 1 to 5; found {', '.join(map(str, wrong)) or 'none'}"
        if self.samples is not None and self.samples < 0:
            yield f"--samples should be at least 0; found {self.samples}"
        if self.outlier_args and self.outliers is None:
            yield "--outlier-args are of the dataset that --outliers names"
        yield from self.below(bins=1, top_k=1, batch_size=1, runtime_threads=0, workers=0, threads=0)
