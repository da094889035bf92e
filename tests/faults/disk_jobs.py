"""What the campaign of full disks dumps and trains, by which commands, and how each result looks when undisturbed.

python -m tests.faults.disk_jobs OPTIONS BEGUN GO    a dump that waits, once it has begun, until the file GO is there
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from click.testing import CliRunner

from pipeline import dump, training
from pipeline.caches import transcode
from pipeline.dump import DumpConfig, extend
from pipeline.models import build_model, save_weights
from pipeline.progress import Silent
from pipeline.training import TrainConfig
from pipeline.workspace import MARK
from stages.options import stage_command

ROOT = Path(__file__).parents[2]
CLASSES = 40
COUNTS = {"train": 300, "validation": 60, "test": 40}
YOUNGER = 330
"""Rows that the data had before it grew."""

LONGEST_SECONDS = 60
DUMPS: dict[str, dict[str, Any]] = {
    "zarr": {"part_size": 96},
    "zarr-features": {"part_size": 70, "features": "hint=hidden"},
    "parquet": {"part_size": 128, "store": "parquet"},
    "parquet-topk": {"part_size": 128, "store": "parquet", "encoding": "topk", "k": 5, "features": "hint=hidden"},
}
REWRITES: dict[str, dict[str, Any]] = {
    "transcode": {"cache": "zarr-features", "encoding": "topk", "k": 5, "store": "parquet", "part_size": 70},
    "extend": {"cache": "younger", "batch_size": 50, "device": "cpu", "threads": 1},
}
"""By verb; ``cache`` is one of those that are made here."""

RUNS: dict[str, dict[str, Any]] = {
    "mlp": {"student": "mlp-16", "keep": "best"},
    "cnn": {"student": "cnn-4", "student_args": "dropout=0.1"},
}


VERBS: dict[str, tuple[type[Any], Callable[..., Any]]] = {
    "transcode": (transcode.TranscodeConfig, transcode.run),
    "extend": (extend.ExtendConfig, extend.run),
}


def dump_options(made: Path, name: str) -> dict[str, Any]:
    """Options of one of ``DUMPS``, but for ``out``."""
    base = {"data": f"arrays:{made / 'data.npz'}", "teacher": "mlp-64", "weights": made / "teacher.safetensors"}
    views = {"views": 1, "transform": "affine:degrees=20", "batch_size": 50, "device": "cpu", "threads": 1}
    return {**base, **views, **DUMPS[name]}


def rewrite_options(made: Path, verb: str) -> dict[str, Any]:
    """Options of one of ``REWRITES``, but for ``out``."""
    grown = {
        name: value for name, value in dump_options(made, "zarr").items() if name in ("data", "teacher", "weights")
    }
    options = {**REWRITES[verb], "cache": made / REWRITES[verb]["cache"]}
    return {**options, **grown} if verb == "extend" else options


def run_options(made: Path, name: str) -> dict[str, Any]:
    """Options of one of ``RUNS``, but for ``out``."""
    base = {"data": f"arrays:{made / 'data.npz'}", "cache": made / "zarr", "seeds": 2, "epochs": 2, "batch_size": 64}
    return {**base, "lr": 0.02, "device": "cpu", "threads": 1, **RUNS[name]}


def make(made: Path) -> None:
    """Data, teacher and every result, undisturbed; NAME-state-bytes is as long as a training state of that run."""
    made.mkdir()
    random = np.random.default_rng(0)
    n = sum(COUNTS.values())
    np.savez(
        made / "data.npz",
        x=random.normal(size=(n, 1, 8, 8)).astype(np.float32),
        y=np.arange(n) % CLASSES,
        split=np.repeat(list(COUNTS), list(COUNTS.values())),
        classes=np.array([f"c{i}" for i in range(CLASSES)]),
    )
    torch.manual_seed(0)
    teacher = build_model("mlp-64", {}, classes=CLASSES, input_shape=(1, 8, 8))
    save_weights(made / "teacher.safetensors", teacher, {})
    for name in DUMPS:
        dump.run(_config(DumpConfig, {**dump_options(made, name), "out": made / name}))
    dump.run(_config(DumpConfig, {**dump_options(made, "zarr"), "seed": 1, "out": made / "earlier-cache"}))
    held = np.load(made / "data.npz")
    np.savez(made / "younger.npz", **{key: held[key] if key == "classes" else held[key][:YOUNGER] for key in held})
    younger = {**dump_options(made, "zarr"), "data": f"arrays:{made / 'younger.npz'}", "out": made / "younger"}
    dump.run(_config(DumpConfig, younger))
    for verb in REWRITES:
        config, run = VERBS[verb]
        run(_config(config, {**rewrite_options(made, verb), "out": made / verb}))
    for name in RUNS:
        options = {**run_options(made, name), "out": made / name}
        try:
            training.run(_config(TrainConfig, {**options, "checkpoint_every": 1e-9}), _Crash())
        except MemoryError:
            (state,) = made.glob(f".{name}{MARK}*/seed-0/state.safetensors")
            (made / f"{name}-state-bytes").write_bytes(state.read_bytes())
        training.run(_config(TrainConfig, options))
    training.run(_config(TrainConfig, {**run_options(made, "mlp"), "seed": 7, "out": made / "earlier-run"}))


def _config(kind: Any, options: dict[str, Any]) -> Any:
    """A configuration from options as they are typed."""
    lists = ("features", "student_args")
    options = {name: (value,) if name in lists else value for name, value in options.items()}
    return kind(**{name: str(value) if name == "cache" else value for name, value in options.items()})


class _Crash(Silent):
    """Stops a run in the last of its steps before the end."""

    @contextmanager
    def bar(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Any]:
        self.left = total - done - 1
        yield self

    def update(self, n: int = 1) -> None:
        self.left -= 1
        if not self.left:
            raise MemoryError


class _Waiting(Silent):
    """Says that a dump has begun, and lets it go on when it is told to."""

    def __init__(self, begun: Path, go: Path) -> None:
        self.begun, self.go = begun, go

    @contextmanager
    def bar(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Any]:
        self.begun.touch()
        until = time.monotonic() + LONGEST_SECONDS
        while not self.go.exists() and time.monotonic() < until:
            time.sleep(0.01)
        with super().bar(description, total, unit, done) as bar:
            yield bar


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    said: str


class Command:
    """The command of a stage or a verb, in this process or its own; ``begun`` is how far each of its bars started."""

    def __init__(self, stage: str, config: Any, run: Callable[..., Any]) -> None:
        self.stage, self.begun = stage, {}
        self.words = ["stages.cli", "cache", stage] if stage in VERBS else [f"stages.{stage}"]
        self._here = stage_command(stage, config, lambda settings, _: run(settings, _Bars(self.begun)), "")

    def __call__(self, options: dict[str, Any], *, apart: bool = False) -> Ended:
        values = [(f"--{name.replace('_', '-')}", value) for name, value in options.items()]
        words = [name if value is True else f"{name}={value}" for name, value in values]
        self.begun.clear()
        if apart:
            if self.stage in VERBS:
                words = [str(options["cache"]), *(word for word in words if not word.startswith("--cache="))]
            done = subprocess.run([sys.executable, "-m", *self.words, *words], cwd=ROOT, capture_output=True, text=True)
            return Ended(done.returncode, done.stderr)
        result = CliRunner().invoke(self._here, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return Ended(result.exit_code, result.stderr)


class _Bars(Silent):
    def __init__(self, begun: dict[str, int]) -> None:
        self.begun = begun

    def bar(self, description: str, total: int, unit: str, done: int = 0) -> Any:
        self.begun[description] = done
        return super().bar(description, total, unit, done)


def sameness(files: dict[str, bytes]) -> dict[str, bytes]:
    """``files`` without the options of run.json that say where and how often a run wrote, and not what."""
    if "run.json" not in files:
        return files
    record = json.loads(files["run.json"])
    record["config"] = {k: v for k, v in record["config"].items() if k not in ("out", "checkpoint_every", "overwrite")}
    return {**files, "run.json": json.dumps(record).encode()}


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    wanted = {name: Path(value) if name in ("out", "weights") else value for name, value in wanted.items()}
    dump.run(_config(DumpConfig, wanted), _Waiting(Path(sys.argv[2]), Path(sys.argv[3])))
