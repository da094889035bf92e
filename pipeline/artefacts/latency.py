"""How fast files are beside each other, and on what."""

from __future__ import annotations

import platform
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.artefacts.checking import Inputs, Predictor

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call at one batch size: the median and the 95th percentile over ``calls`` timed calls."""

    p50: float
    p95: float
    calls: int


LEAST = 30
"""Calls of each model, however long they take."""


def measure(
    models: Mapping[Name, Predictor], inputs: Inputs, batch_sizes: Sequence[int], *, seconds: float = 1.0
) -> dict[Name, dict[int, Latency]]:
    """Latency of every model at every batch size, the models taking turns call by call.

    Taking turns spreads whatever else the machine does over all of them, so that their ratios hold even where the
    absolute times drift. ``seconds`` is roughly the time spent per batch size.
    """
    times: dict[Name, dict[int, list[float]]] = {name: {size: [] for size in batch_sizes} for name in models}
    names = list(models)
    for size in batch_sizes:
        batch = np.ascontiguousarray(np.resize(inputs, (size, *inputs.shape[1:])))
        for name in names:
            for _ in range(3):
                models[name](batch)
        end = time.perf_counter() + seconds
        turn = 0
        while turn < LEAST or (time.perf_counter() < end and turn < 2000):
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
