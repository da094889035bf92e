"""Run a finished file in ONNX Runtime, as whoever deploys it would: is it the same, is it stable, how fast is it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.compression.export import INPUT, OUTPUT
from pipeline.errors import ModelError
from pipeline.references import optional

Floats: TypeAlias = npt.NDArray[np.float32]
Predictor: TypeAlias = Callable[[Floats], Floats]
"""(B, ...) float32 inputs to (B, C) float32 logits."""

FLOAT_TOLERANCE = 1e-4
"""Largest difference of an exported float model from its source, relative to the largest logit."""
BATCH_TOLERANCE = 0.02
"""Largest difference between batch 1 and batch N, relative to the largest logit: one step of an 8-bit activation
may round the other way; float models stay far below it."""


def open_model(path: Path, threads: int = 1) -> Predictor:
    """A function that runs an ONNX file on the CPU. ``threads`` 0 leaves the number to ONNX Runtime.

    Raises MissingDependencyError without onnxruntime, ModelError when it cannot open the file.
    """
    runtime = optional("onnxruntime", "compress", "running an ONNX file")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime {runtime.__version__} cannot open {path.name}: {error}") from error

    def predict(inputs: Floats) -> Floats:
        return np.asarray(session.run([OUTPUT], {INPUT: inputs})[0])

    return predict


@dataclass(frozen=True)
class Check:
    """How one file behaves on the inputs it was tried with.

    ``max_difference``: largest absolute difference of a logit from the source model; ``repeat_identical``: the same
    call gives the same bits again; ``batch_difference``: the largest difference between one batch and one by one;
    ``scale``: the largest logit of the source.
    """

    max_difference: float
    repeat_identical: bool
    batch_difference: float
    scale: float

    @property
    def faithful(self) -> bool:
        """Within the tolerance of a float export."""
        return self.max_difference <= FLOAT_TOLERANCE * max(self.scale, 1.0)

    def problems(self) -> list[str]:
        """What makes the file unusable, whatever its precision."""
        found = []
        if not self.repeat_identical:
            found.append("repeated calls on the same input differ")
        if self.batch_difference > BATCH_TOLERANCE * max(self.scale, 1.0):
            found.append(f"batch 1 and batch N differ by {self.batch_difference:.3g}")
        return found


def check(predict: Predictor, inputs: Floats, source: Floats, *, calls: int = 3) -> Check:
    """Try a file on ``inputs`` (B, ...) whose logits by the source model are ``source`` (B, C).

    Raises ModelError on logits of another shape or that are not finite.
    """
    first = predict(inputs)
    if first.shape != source.shape or not np.isfinite(first).all():
        raise ModelError(f"the file should give finite {source.shape} logits; found {first.shape}, some not finite")
    repeated = all(np.array_equal(first, predict(inputs)) for _ in range(calls - 1))
    singly = np.concatenate([predict(inputs[i : i + 1]) for i in range(len(inputs))])
    again = np.array_equal(first, predict(inputs))  # after other batch sizes: a plan cached for one may harm another
    return Check(
        max_difference=float(np.abs(first - source).max()),
        repeat_identical=repeated and again,
        batch_difference=float(np.abs(first - singly).max()),
        scale=float(np.abs(source).max()),
    )


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call at one batch size: the median and the 95th percentile over ``calls`` timed calls."""

    p50: float
    p95: float
    calls: int


def measure(
    models: Mapping[str, Predictor], inputs: Floats, batch_sizes: Sequence[int], *, seconds: float = 1.0
) -> dict[str, dict[int, Latency]]:
    """Latency of every model at every batch size, the models taking turns call by call.

    Taking turns spreads whatever else the machine does over all of them, so that their ratios hold even where the
    absolute times drift. ``seconds`` is roughly the time spent per batch size.
    """
    times: dict[str, dict[int, list[float]]] = {name: {size: [] for size in batch_sizes} for name in models}
    names = list(models)
    for size in batch_sizes:
        batch = np.ascontiguousarray(np.resize(inputs, (size, *inputs.shape[1:])))
        for name in names:
            for _ in range(3):
                models[name](batch)
        end = time.perf_counter() + seconds
        turn = 0
        while turn < 20 or (time.perf_counter() < end and turn < 2000):
            for k in range(len(names)):
                name = names[(turn + k) % len(names)]
                start = time.perf_counter()
                models[name](batch)
                times[name][size].append(time.perf_counter() - start)
            turn += 1
    return {
        name: {
            size: Latency(float(np.percentile(taken, 50) * 1e3), float(np.percentile(taken, 95) * 1e3), len(taken))
            for size, taken in sizes.items()
        }
        for name, sizes in times.items()
    }


def processor_name() -> str:
    """The CPU's own name, where the platform tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
