"""Energy per example, where the machine counts it; a reason in words where it does not. Never a guess from a TDP.

Intel's and AMD's processors count joules of each package (RAPL: Linux's powercap, ``intel-rapl``, which AMD shares);
NVIDIA's GPUs count theirs (NVML). Both count everything that runs there, so the machine at rest is measured too.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefacts.checking import Floats, Predictor

POWERCAP = Path("/sys/class/powercap")
_SHORTEST = 0.05
"""Seconds of work below which a counter that moves every millisecond says little."""


@dataclass(frozen=True)
class Energy:
    """What a counter counted while a model answered.

    ``joules``: per example, everything on the chip included; ``above_rest``: less what the same time takes at rest
    (``rest_watts``), None when it cannot be told from noise. ``examples`` in ``seconds``, ``batch`` at a time.
    """

    joules: float
    above_rest: float | None
    rest_watts: float
    counter: str
    batch: int
    examples: int
    seconds: float


@dataclass(frozen=True)
class Counter:
    """A meter of joules since some moment: ``read`` gives one value for each of its parts, ``wraps`` where they end."""

    name: str
    read: Callable[[], list[float]]
    wraps: tuple[float | None, ...]

    def since(self, before: list[float]) -> float:
        """Joules since ``before``; a part that has begun again at zero did so once."""
        used = 0.0
        for old, new, wrap in zip(before, self.read(), self.wraps, strict=True):
            used += new - old if new >= old or wrap is None else new - old + wrap
        return used


def energy(
    predict: Predictor, inputs: Floats, batch: int, *, seconds: float = 2.0, counter: Counter | str | None = None
) -> Energy | str:
    """Joules per example of ``predict`` at ``batch``, over ``seconds`` of work and as much rest before it.

    ``counter`` is that of ``rapl()`` by default; ``nvml()`` for a model on a GPU. Where nothing counts, the result is
    the reason: "not available: ...".
    """
    counter = rapl() if counter is None else counter
    if isinstance(counter, str):
        return counter
    examples = np.ascontiguousarray(np.resize(inputs, (batch, *inputs.shape[1:])))
    for _ in range(3):
        predict(examples)
    start, before = time.perf_counter(), counter.read()
    time.sleep(seconds)
    rest = counter.since(before) / (time.perf_counter() - start)
    calls, start, before = 0, time.perf_counter(), counter.read()
    while calls < 3 or time.perf_counter() - start < max(seconds, _SHORTEST):
        predict(examples)
        calls += 1
    joules, took = counter.since(before), time.perf_counter() - start
    if joules <= 0:
        return f"not available: {counter.name} did not move in {took:.2g} seconds of work"
    above = joules - rest * took
    return Energy(
        joules=joules / (calls * batch),
        above_rest=above / (calls * batch) if above > 0 else None,
        rest_watts=rest,
        counter=counter.name,
        batch=batch,
        examples=calls * batch,
        seconds=took,
    )


def rapl(root: Path = POWERCAP) -> Counter | str:
    """The processors' packages together, or "not available: ..." with the reason.

    Parts of a package (cores, memory) and ``psys``, which holds the packages, are left out: they would count twice.
    """
    if not root.is_dir():
        return f"not available: there is no {root} (Linux on real hardware has it; most virtual machines do not)"
    zones = sorted(zone for zone in root.glob("intel-rapl:*") if zone.name.count(":") == 1)
    packages = [zone for zone in zones if _text(zone / "name").startswith("package")]
    if not packages:
        return f"not available: {root} counts no processor package (intel-rapl:N)"
    try:
        for zone in packages:
            int((zone / "energy_uj").read_text())
    except PermissionError:
        return f"not available: {packages[0] / 'energy_uj'} is for root alone (sudo chmod a+r lets others read it)"
    except (OSError, ValueError) as error:
        return f"not available: {packages[0] / 'energy_uj'} cannot be read ({error})"
    ends = tuple(_joules(zone / "max_energy_range_uj") for zone in packages)
    names = "+".join(_text(zone / "name") for zone in packages)
    return Counter(f"RAPL {names}", lambda: [int((zone / "energy_uj").read_text()) / 1e6 for zone in packages], ends)


def nvml(index: int = 0) -> Counter | str:
    """GPU ``index``, or "not available: ..." with the reason."""
    try:
        library: Any = importlib.import_module("pynvml")
    except ImportError:
        return "not available: reading a GPU's counter needs pynvml (pip install nvidia-ml-py)"
    try:
        library.nvmlInit()
        device = library.nvmlDeviceGetHandleByIndex(index)
        library.nvmlDeviceGetTotalEnergyConsumption(device)
    except library.NVMLError as error:
        return f"not available: GPU {index} counts no energy ({error})"
    read = library.nvmlDeviceGetTotalEnergyConsumption
    return Counter(f"NVML GPU {index}", lambda: [read(device) / 1e3], (None,))  # millijoules


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _joules(path: Path) -> float | None:
    text = _text(path)
    return int(text) / 1e6 if text.isdecimal() else None
