"""What it takes to start: a fresh process that opens a file with its runtime alone and answers one batch."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.artefacts.kinds import ONNX, PT2
from pipeline.artefacts.opening import Artefact
from pipeline.errors import ConfigError, ModelError

_RUNTIMES = {ONNX: "onnxruntime", PT2: "torch"}

# Runs under ``python -I -c``: no folder of the user's is searched for modules, no variable of Python's is read, and
# nothing of this project is loaded, which would bring torch to where whoever deploys the file has none.
_CHILD = r"""
import json, sys, time

given = json.loads(sys.argv[1])
sys.path += given["folders"]

def peak():
    try:  # this process's own; getrusage starts a child at its parent's peak
        for line in open("/proc/self/status"):
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

path, kind, threads, shape = given["path"], given["kind"], given["threads"], given["shape"]
if kind == ".pt2":
    import hashlib
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    if digest.hexdigest() != given["sha256"]:
        sys.exit("it is not the file any more that was vouched for")
start = time.perf_counter()
import numpy as np
if kind == ".onnx":
    import onnxruntime
elif kind == ".pt2":
    import torch
    import torch.export
    import torch.export.pt2_archive._package
    torch.set_num_threads(threads or torch.get_num_threads())
else:
    import torch
    from executorch.runtime import Runtime
    if threads:
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        _unsafe_reset_threadpool(threads)
imported, baseline = time.perf_counter() - start, peak()

start = time.perf_counter()
if kind == ".onnx":
    inputs = np.zeros(shape, dtype=given["dtype"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    call = lambda: session.run(None, {name: inputs})
elif kind == ".pt2":
    model = torch.export.load(path).module()
    def call():
        with torch.inference_mode():
            return model(torch.zeros(shape, dtype=getattr(torch, given["dtype"])))
else:
    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    call = lambda: method.execute([torch.zeros(shape)])
loaded = time.perf_counter() - start
start = time.perf_counter()
call()
answered = time.perf_counter() - start
print(json.dumps([imported, loaded, answered, baseline, peak()]))
"""


@dataclass(frozen=True)
class FreshProcess:
    """Medians over ``starts`` fresh processes, each with the runtime alone.

    Seconds: ``import_seconds`` to import the runtime, ``load_seconds`` to open the file, ``first_seconds`` for the
    first batch of ``batch``. ``baseline_bytes``: largest memory (resident set) once the runtime is imported, without a
    model; ``peak_bytes``: after the first batch, everything included. None where the system does not tell (Windows).
    """

    import_seconds: float
    load_seconds: float
    first_seconds: float
    baseline_bytes: int | None
    peak_bytes: int | None
    batch: int
    threads: int
    starts: int

    @property
    def model_bytes(self) -> int | None:
        """Peak less baseline: what opening and answering add. A ``.pt2`` makes torch import more of itself."""
        if self.peak_bytes is None or self.baseline_bytes is None:
            return None
        return self.peak_bytes - self.baseline_bytes

    def as_dict(self) -> dict[str, Any]:
        """JSON values, ``model_bytes`` among them."""
        return {**asdict(self), "model_bytes": self.model_bytes}


def fresh_process(
    artefact: Artefact,
    *,
    batch: int = 1,
    threads: int = 1,
    starts: int = 5,
    limit: float = 120.0,
    input_shape: tuple[int, ...] | None = None,
) -> FreshProcess:
    """Open a file in ``starts`` fresh processes, one after the other, and let each answer ``batch`` zeros.

    The artefact is open already, so it has been looked at; a ``.pt2`` is loaded there only while it is still the file
    that was vouched for. ``batch`` gives way to the one that the file is fixed to, or to its largest. ``input_shape``
    is needed where the file leaves it open. Raises ConfigError then, ModelError when a process fails or takes over
    ``limit`` seconds.
    """
    shape = input_shape or artefact.input_shape
    if shape is None:
        raise ConfigError(f"{artefact.path} leaves its input's shape open: name one to measure a fresh process with")
    size = artefact.batch or min(batch, artefact.largest or batch)
    given = json.dumps(
        {
            "folders": _folders(_RUNTIMES.get(artefact.kind, "executorch")),
            "path": str(artefact.path.absolute()),
            "kind": artefact.kind,
            "sha256": artefact.sha256,
            "shape": [size, *shape],
            "dtype": artefact.dtype,
            "threads": threads,
        }
    )
    found = [_start(given, artefact.path, limit) for _ in range(starts)]
    imported, loaded, answered, baseline, peak = (
        statistics.median(values) if None not in values else None for values in zip(*found, strict=True)
    )
    return FreshProcess(
        import_seconds=imported or 0.0,
        load_seconds=loaded or 0.0,
        first_seconds=answered or 0.0,
        baseline_bytes=None if baseline is None else int(baseline),
        peak_bytes=None if peak is None else int(peak),
        batch=size,
        threads=threads,
        starts=starts,
    )


def _folders(package: str) -> list[str]:
    """Where this process found the runtime, for a process that looks into the standard places alone."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return sorted({str(Path(place).parent.absolute()) for place in places})


def _start(given: str, path: Path, limit: float) -> list[float | None]:
    threads = str(json.loads(given)["threads"] or "")
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **(dict.fromkeys(names, threads) if threads else {})}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-W", "ignore", "-c", _CHILD, given],
            capture_output=True,
            text=True,
            timeout=limit,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{path} was not open and answering within {limit:g} seconds in a fresh process") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise ModelError(f"{path} could not be opened in a fresh process: {last}")
    found: list[float | None] = json.loads(lines[-1])
    return found
