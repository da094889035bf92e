"""Options of ``softlabels compress``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.compression.pruning import IMPORTANCES
from pipeline.compression.steps import fraction
from pipeline.configuration import REQUIRED, Config, option
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CompressConfig(Config):
    """Options of ``softlabels compress``."""

    runs: tuple[Path, ...] = option((), "directory of a training run; of several, the best on validation is taken")
    data: str | None = option(None, "dataset; that of the run unless given")
    data_args: tuple[str, ...] = option((), "key=value arguments for the dataset")
    allow: tuple[str, ...] = option((), "module:factory that the run names and may be imported: your own code")
    cache: str | None = option(
        None, "cache to fine-tune from; that of the run, or its mixture, unless given; 'none' for hard labels"
    )
    student_seed: int | None = option(None, "seed of the run to take; the best on validation unless given")
    out: Path = option(REQUIRED, "directory for the files, their table and their card")
    recipe: Path | None = option(
        None,
        "TOML file of steps to run, in place of those that --prune, --int8 and the like stand for (--show-recipe "
        "prints these)",
    )
    search: bool = option(False, "try many recipes, and report the front of accuracy, size and latency")
    budget: float = option(600.0, "seconds that --search may take; what is begun is finished")
    prune: tuple[float, ...] = option((), "share of the channels to remove; 0 leaves pruning out; 0.5 unless given")
    target_macs: float | None = option(None, "instead of --prune: what is left of the multiply-accumulates, 0 to 1")
    max_drop: str | None = option(
        None,
        "instead of --prune: remove as much as costs no more than this validation accuracy, as '0.5pt' or 0.005; with "
        "--search, what may be lost against the student",
    )
    importance: str = option("l2", "how channels are ranked for pruning", choices=IMPORTANCES)
    epochs: int = option(40, "epochs of fine-tuning after pruning; 0 leaves it out")
    lr: float | None = option(None, "highest learning rate of fine-tuning; that of the run unless given")
    temperature: float | None = option(None, "of the soft labels; that of the run unless given")
    alpha: float | None = option(None, "weight of the soft labels; that of the run unless given")
    controls: bool = option(
        True,
        "also train each pruned shape from scratch, fine-tune it on hard labels, and the student for the same extra "
        "epochs",
    )
    teacher: str | None = option(None, "also measure this teacher, as it is and quantised; needs --teacher-weights")
    teacher_args: tuple[str, ...] = option((), "key=value arguments for the teacher's factory")
    teacher_weights: Path | None = option(None, "the teacher's weights")
    int8: bool = option(True, "quantise to int8: statically, trained for it, and dynamically as a control")
    qat: bool = option(True, "with --int8: also train each pruned model for int8 (quantisation-aware training)")
    calibration: int = option(256, "training examples that set the ranges of int8 activations")
    reduce_range: bool = option(False, "7-bit weights, for x86 without VNNI, where 8-bit sums can saturate")
    opset: int = option(18, "ONNX operator set")
    latency_batch: tuple[int, ...] = option((1, 32), "batch sizes to time")
    latency_seconds: float = option(1.0, "roughly how long to time each batch size")
    runtime_threads: int = option(1, "threads of ONNX Runtime; 0 leaves its choice")
    batch_size: int = option(256, "examples per forward pass of evaluation")
    workers: int = option(0, "processes that load examples; 0 does it in this one")
    threads: int = option(0, "CPU threads of torch; 0 leaves torch's choice")
    device: str = option("auto", "of fine-tuning: auto, cpu, cuda, cuda:N, mps")
    seed: int = option(0, "of fine-tuning and of the choice of calibration examples")

    def problems(self) -> Iterator[str]:
        if not self.runs:
            yield "--runs should name at least one training run"
        if any(not 0 <= ratio < 1 for ratio in self.prune):
            yield f"--prune should be at least 0 and below 1; found {', '.join(f'{r:g}' for r in self.prune)}"
        if self.target_macs is not None and not 0 < self.target_macs < 1:
            yield f"--target-macs should be above 0 and below 1; found {self.target_macs:g}"
        if self.max_drop is not None:
            try:
                fraction(self.max_drop, "--max-drop")
            except ConfigError as error:
                yield from error.problems
        given = self.given("prune", "target_macs", "max_drop")
        if len(given) > 1 and not self.search:
            names = [f"--{name.replace('_', '-')}" for name in given]
            yield f"{', '.join(names)} each say how much to prune: give one"
        steps = ("prune", "target_macs", "importance", "int8", "qat")
        if self.recipe is not None and (idle := self.given(*steps, *(() if self.search else ("max_drop",)))):
            names = [f"--{name.replace('_', '-')}" for name in idle]
            yield f"{', '.join(names)} would do nothing beside --recipe: say it in the recipe"
        names = [f"--{name.replace('_', '-')}" for name in self.given("recipe", "prune", "target_macs")]
        if self.search and names:
            yield f"--search makes recipes of its own: leave out {' and '.join(names)}"
        kept = [f"{round(100 * ratio)}%" for ratio in self.prune if ratio]
        if len(set(kept)) < len(kept):
            yield f"--prune should differ by whole percents, which name the files; found {', '.join(kept)}"
        if not self.search and self.given("budget"):
            yield "--budget is of --search"
        if not self.budget > 0:
            yield f"--budget should be above 0; found {self.budget:g}"
        if (self.teacher is None) != (self.teacher_weights is None):
            yield "--teacher and --teacher-weights go together"
        if self.lr is not None and not self.lr > 0:
            yield f"--lr should be above 0; found {self.lr:g}"
        if not self.latency_seconds > 0:
            yield f"--latency-seconds should be above 0; found {self.latency_seconds:g}"
        if self.temperature is not None and self.temperature <= 0:
            yield f"--temperature should be above 0; found {self.temperature:g}"
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            yield f"--alpha should be from 0 to 1; found {self.alpha:g}"
        if not self.latency_batch or min(self.latency_batch) < 1:
            yield "--latency-batch should be at least 1"
        yield from self.below(epochs=0, calibration=1, runtime_threads=0, batch_size=1, workers=0, threads=0, seed=0)
