"""Options of ``softlabels compress``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.configuration import REQUIRED, Config, option


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
    out: Path = option(REQUIRED, "directory for the ONNX files and the table")
    prune: tuple[float, ...] = option((0.5,), "share of the channels to remove; 0 leaves pruning out")
    norm: int = option(2, "channels are ranked by the L1 or L2 norm of their weights")
    epochs: int = option(40, "epochs of fine-tuning after pruning; 0 leaves it out")
    lr: float | None = option(None, "highest learning rate of fine-tuning; that of the run unless given")
    temperature: float | None = option(None, "of the soft labels; that of the run unless given")
    alpha: float | None = option(None, "weight of the soft labels; that of the run unless given")
    controls: bool = option(True, "also train the pruned shape from scratch, and the student for the same extra epochs")
    teacher: str | None = option(None, "also measure this teacher, as it is and quantised; needs --teacher-weights")
    teacher_args: tuple[str, ...] = option((), "key=value arguments for the teacher's factory")
    teacher_weights: Path | None = option(None, "the teacher's weights")
    int8: bool = option(True, "quantise to int8, statically and dynamically")
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
        if self.norm not in (1, 2):
            yield f"--norm should be 1 or 2; found {self.norm}"
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
