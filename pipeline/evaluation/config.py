"""Options of ``softlabels evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.configuration import REQUIRED, Config, option
from pipeline.identity import SPLITS


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Options of ``softlabels evaluate``."""

    run: Path | None = option(None, "directory of a training run; all of its seeds are measured")
    weights: Path | None = option(None, "instead of --run: one model's weights; needs --student and --data")
    student: str | None = option(
        None, "with --weights: a built-in (cnn-WIDTH, mlp-WIDTH), module:factory, timm:NAME, hf:PATH"
    )
    student_args: tuple[str, ...] = option((), "with --weights: key=value arguments for the student's factory")
    data: str | None = option(None, "dataset; that of the run unless given")
    data_args: tuple[str, ...] = option((), "key=value arguments for the dataset")
    allow: tuple[str, ...] = option((), "module:factory that the run names and may be imported: your own code")
    cache: str | None = option(
        None,
        "cache with the teacher's labels of the split; that of the run, or its mixture, unless given; 'none' for none",
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
    temperature: float = option(
        1.0, "of the divergence from the teacher, and of the mean of several teachers' probabilities"
    )
    batch_size: int = option(256, "examples per forward pass")
    workers: int = option(0, "processes that load examples; 0 does it in this one")
    device: str = option("auto", "auto, cpu, cuda, cuda:N, mps")
    threads: int = option(0, "CPU threads; 0 leaves torch's choice")

    def problems(self) -> Iterator[str]:
        if (self.run is None) == (self.weights is None):
            yield "give either --run, a training run, or --weights with --student"
        if self.run is not None and self.weights is None and (self.student is not None or self.student_args):
            yield "--student and --student-args go with --weights; with --run, the students are those of the run"
        if self.run is None and self.weights is not None and (self.student is None or self.data is None):
            yield "--weights needs --student and --data: a file of weights does not say what they are for"
        if self.temperature <= 0:
            yield f"--temperature should be above 0; found {self.temperature:g}"
        if len(set(self.correct_class)) < len(self.correct_class):
            yield f"--correct-class names a class twice; found {', '.join(self.correct_class)}"
        yield from self.below(bins=1, top_k=1, batch_size=1, workers=0, threads=0)
