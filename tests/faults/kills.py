"""Real dumps and training runs, killed with SIGKILL again and again, until a last run may finish.

A campaign runs in a process of its own, which imports everything once, starts no thread, so that forking is safe, and
forks a child for each run. Half of the kills come from the parent, at an instant drawn uniformly over the
time that an undisturbed run takes. The others are aimed: the child kills itself at the n-th entry of one phase of the
work, before, in the middle of, or after it. Memory that both share says what the child was doing when it died.

    python -m tests.faults.kills dump --folder /tmp/kills --times 200 --seed 0
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pipeline import dump, training
from pipeline.dump import DumpConfig, parts, prepare
from pipeline.models import build_model, save_weights
from pipeline.store import CacheWriter, parquet_backend, writer, zarr_backend
from pipeline.training import TrainConfig, loop, stage
from pipeline.views import input_loader
from tests.faults.counts import Counts, table
from tests.faults.dying import Aim, Watch, complete, fork, replaced, scratch
from tests.store.small import files_of

ROOT = Path(__file__).parents[2]
Asked = np.ndarray[Any, Any]
WHERE = ("before", "in the middle of", "after")
LONGEST_CHAIN = 5
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def dump_kills(folder: Path, times: int = 200, seed: int = 0) -> Counts:
    """Kill dumps ``times`` times: the same bytes in the end, and no journalled entry asked about again."""
    return _apart("dump", folder, times, seed)


def training_kills(folder: Path, times: int = 50, seed: int = 0) -> Counts:
    """Kill training runs ``times`` times: the same bytes in the end, no step of a finished student done again."""
    return _apart("training", folder, times, seed)


def _apart(what: str, folder: Path, times: int, seed: int) -> Counts:
    options = [f"--folder={folder}", f"--times={times}", f"--seed={seed}", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kills", what, *options],
        cwd=ROOT,
        env={**os.environ, **dict.fromkeys(ONE_THREAD, "1")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{what} kills, {times} times, seed {seed}:\n{done.stderr[-6000:]}"
    return Counts(json.loads(done.stdout.splitlines()[-1]))


class Work:
    """A run to be killed, and what it leaves behind undisturbed; ``pieces`` are what a run does, once each."""

    phases: ClassVar[tuple[str, ...]]
    early: ClassVar[tuple[str, ...]]
    """The phases that come only as long as there is work left."""
    late: ClassVar[tuple[str, ...]] = ("fsspec", "numcodecs", "pandas", "zarr")
    """What a run imports only when it needs it: seconds that should not be most of a child's life."""

    def __init__(
        self, folder: Path, options: dict[str, Any], counts: Counts, pieces: int, before: Path | None = None
    ) -> None:
        self.options, self.counts, self.pieces, self.before = options, counts, pieces, before
        trial, began = Trial(self, folder / "whole" / "out", "undisturbed"), time.perf_counter()
        trial.run(None)
        self.seconds = time.perf_counter() - began
        self.events = dict(zip(self.phases, trial.watch.entered.tolist(), strict=True))
        self.whole, self.asked = files_of(trial.out), trial.watch.asked.copy()

    def start(self, out: Path, watch: Watch) -> None:
        """The work itself, in a child."""
        raise NotImplementedError

    def done(self, out: Path) -> set[int]:
        """What no run may do again."""
        raise NotImplementedError

    def judge(self, trial: Trial, asked: Asked, done: set[int], killed: bool) -> None:
        """Look at one run: how often it did each piece, what is done after it (before it: ``trial.done``)."""
        raise NotImplementedError

    def left(self, trial: Trial) -> float:
        """Share of the work that is still to do."""
        raise NotImplementedError

    def plan(self, trial: Trial, phase: str | None, chance: random.Random) -> Aim | float:
        """When to kill the next run of ``trial``: in a phase, or at any instant."""
        if phase is None:
            return chance.uniform(0, self.seconds)
        share = self.left(trial) if phase in self.early else 1.0
        number = chance.randint(1, max(1, int(self.events[phase] * share)))
        return Aim(phase, number, chance.choice(WHERE), chance.random())


class Trial:
    """One output: run after run on it killed, then one that may finish."""

    def __init__(self, work: Work, out: Path, name: str) -> None:
        self.work, self.out, self.name = work, out, name
        self.watch = Watch(work.phases, work.pieces)
        self.done: set[int] = set()
        self.history: list[str] = []
        out.parent.mkdir(parents=True, exist_ok=True)
        if work.before is not None:
            shutil.copytree(work.before, out)
        self.before = files_of(out)

    def run(self, plan: Aim | float | None) -> bool:
        """One run; whether it was killed before it finished, after ``plan`` seconds or where it aims."""
        self.history.append(f"after {plan:.4f} s" if isinstance(plan, float) else str(plan or "to its end"))
        watch, asked = self.watch, self.watch.asked.copy()
        watch.inside[:], watch.entered[:], watch.nanoseconds[:] = 0, 0, 0
        watch.aim = plan if isinstance(plan, Aim) else None
        pid = fork(lambda: self.work.start(self.out, watch))
        if isinstance(plan, float):
            time.sleep(plan)
            os.kill(pid, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        killed = plan is not None and ended == -signal.SIGKILL
        self.expect(killed or ended == 0, f"a run ended with {ended} (its error is above; below 0: a signal)")
        done = self.work.done(self.out)
        self.expect(self.done <= done, f"{sorted(self.done - done)} were done before this run and are not after it")
        self.work.judge(self, watch.asked - asked, done, killed)
        self.done = done
        if killed:
            found = files_of(self.out) or files_of(replaced(self.out))
            self.expect(found in ({}, self.before, self.work.whole), "the output is torn, or what was there before it")
            self.expect(bool(found) or not self.before, "what was there before is gone, and nothing in its place")
        return killed

    def finish(self) -> None:
        """Let a run finish, and compare."""
        self.run(None)
        found, whole = files_of(self.out), self.work.whole
        differing = sorted(path for path in {*found, *whole} if found.get(path) != whole.get(path))
        self.expect(not differing, f"other bytes than those of an undisturbed run: {differing}")
        self.expect(not scratch(self.out), "the scratch directory was left behind")

    def expect(self, good: bool, what: str) -> None:
        """Fail with all that it takes to do it again."""
        assert good, f"{self.name}: {what}. Options {self.work.options}, runs on {self.out}: {self.history}"


class DumpWork(Work):
    """A dump of a few dozen examples. Pieces are entries, and what is done are the journalled parts."""

    phases = ("teacher", "encode", "pack", "write", "rename", "journal", "finalise", "commit", "report")
    early = phases[:6]

    def __init__(self, folder: Path, options: dict[str, Any], counts: Counts) -> None:
        replacing = options.pop("replacing", None)
        job = prepare(DumpConfig(**options, out=folder))
        self.digest, self.sizes = job.digest, np.array([part.entries for part in job.layout.parts])
        self.part_of = np.repeat(np.arange(len(self.sizes)), self.sizes)
        entries = [
            [(int(row), part.view)]
            for part in job.layout.parts
            for row in job.dataset.rows(part.split)[part.first : part.first + part.entries]
        ]
        # What the teacher is shown says which entry it is, however the dump orders and batches them.
        inputs = input_loader(job.dataset, job.views, entries)
        self.known = {batch[0].numpy().tobytes(): entry for entry, batch in enumerate(inputs)}
        assert len(self.known) == len(entries), "every entry should look different to the teacher"
        before = folder / "before"
        if replacing is None:
            super().__init__(folder, options, counts, len(entries))
        else:
            complete(lambda: dump.run(DumpConfig(**{**options, **replacing}, out=before)))
            super().__init__(folder, {**options, "overwrite": True}, counts, len(entries), before)

    def start(self, out: Path, watch: Watch) -> None:
        ask, write = parts.ask, writer.write_atomic

        def counted(job: Any, inputs: torch.Tensor, *more: Any, **named: Any) -> Any:
            watch.asked[[self.known[row.numpy().tobytes()] for row in inputs]] += 1
            return ask(job, inputs, *more, **named)

        write_file, write_journal = watch.around("write", write), watch.around("journal", write, cover=True)
        writer.write_atomic = lambda path, data: (write_journal if path.parent.name == writer.JOURNAL else write_file)(
            path, data
        )
        parts.ask, parts.encode = watch.around("teacher", counted), watch.around("encode", parts.encode)
        for backend in (zarr_backend.ZarrBackend, parquet_backend.ParquetBackend):
            backend.encode = watch.around("pack", backend.encode)
        CacheWriter.finalise = watch.around("finalise", CacheWriter.finalise, cover=True)
        watch.files()
        watch.resumed[0] = dump.run(DumpConfig(**self.options, out=out)).resumed

    def done(self, out: Path) -> set[int]:
        everything = set(range(len(self.sizes)))
        for manifest in [out / "manifest.json", *(path / "manifest.json" for path in scratch(out))]:
            if manifest.is_file() and json.loads(manifest.read_bytes())["identity"]["digest"] == self.digest:
                return everything
        journals = (entry for path in scratch(out) for entry in path.glob(f"**/{writer.JOURNAL}/part-*.json"))
        return {int(entry.stem.removeprefix("part-")) for entry in journals}

    def judge(self, trial: Trial, asked: Asked, done: set[int], killed: bool) -> None:
        touched = set(self.part_of[asked > 0].tolist())
        again, lost = touched & trial.done, touched - done
        trial.expect(not again, f"the teacher was asked again about parts {sorted(again)}, which were journalled")
        trial.expect(asked.max() <= 1, "the teacher was asked twice about one entry in one run")
        trial.expect(
            len(lost) <= 2, f"a kill should lose at most one part that is written and one in hand; lost {lost}"
        )
        if not killed:
            kept, found = len(trial.done), int(trial.watch.resumed[0])
            trial.expect(found == kept, f"{kept} parts were journalled, the dump found {found} of them")
        if len(trial.history) > 1:
            self.counts["parts found finished when taken up again"] += len(trial.done)
            self.counts["teacher passes saved by that (entries)"] += int(self.sizes[sorted(trial.done)].sum())
        self.counts["teacher passes lost to kills (entries)"] += int(asked[np.isin(self.part_of, [*lost])].sum())

    def left(self, trial: Trial) -> float:
        return 1 - float(self.sizes[sorted(trial.done)].sum() / self.sizes.sum())


class TrainingWork(Work):
    """Students of a few epochs. Pieces are the optimiser steps of each seed, and what is done are whole students."""

    phases = ("state", "commit", "update", "record", "backward", "weights", "clear", "report")
    early = ("state", "update", "backward")
    late = (*Work.late, "torch._dynamo")

    def __init__(self, folder: Path, options: dict[str, Any], counts: Counts) -> None:
        self.killed_runs = 0
        super().__init__(folder, options, counts, options["seeds"])

    def start(self, out: Path, watch: Watch) -> None:
        fit, seed = stage.fit, [0]

        def fit_seed(*args: Any, **named: Any) -> Any:
            seed[0] = named["seed"]
            return fit(*args, **named)

        def counted(step: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*args: Any, **named: Any) -> Any:
                watch.asked[seed[0]] += 1
                return step(*args, **named)

            return watch.around("update", counting)

        stage.fit = fit_seed
        torch.Tensor.backward = watch.around("backward", torch.Tensor.backward)
        for optimizer in (torch.optim.AdamW, torch.optim.SGD):
            optimizer.step = counted(optimizer.step)
        loop.save_state = watch.around("state", loop.save_state, cover=True)
        stage.save_model = watch.around("weights", stage.save_model, cover=True)
        stage.write_atomic = watch.around("record", stage.write_atomic, cover=True)
        stage.clear_scratch = watch.around("clear", stage.clear_scratch, cover=True)
        watch.files()
        os.chdir(out.parent)  # run.json names --out as it was given
        training.run(TrainConfig(**self.options, out=Path(out.name)))

    def done(self, out: Path) -> set[int]:
        everything = set(range(self.options["seeds"]))
        if any((path / stage.RECORD).is_file() for path in [out, *scratch(out)]):
            return everything
        records = (record for path in scratch(out) for record in path.glob(f"seed-*/{stage.SEED_RECORD}"))
        return {int(record.parent.name.removeprefix("seed-")) for record in records}

    def judge(self, trial: Trial, asked: Asked, done: set[int], killed: bool) -> None:
        again = {seed for seed in trial.done if asked[seed]}
        trial.expect(not again, f"students {sorted(again)} were whole and were trained again")
        if len(trial.history) > 1:
            self.counts["students found finished when taken up again"] += len(trial.done)
        if not killed and trial.name != "undisturbed":
            again = int((trial.watch.asked - self.asked).sum())
            most = len(trial.history) - 1
            saved_each_step = self.options["checkpoint_every"] < 1e-6
            trial.expect(again >= 0, f"{-again} optimiser steps were left out")
            trial.expect(again <= most or not saved_each_step, f"{most} kills should lose a step each; lost {again}")
            self.counts["optimiser steps done"] += int(trial.watch.asked.sum())
            self.counts["optimiser steps done again"] += again

    def left(self, trial: Trial) -> float:
        return max(0.0, 1 - float(trial.watch.asked.sum() / self.asked.sum()))


def slow_teacher(classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """A teacher whose forward pass takes long enough to be killed in."""
    model = build_model("mlp-8", {}, classes=classes, input_shape=input_shape)
    model.register_forward_pre_hook(lambda *_: time.sleep(0.002))
    return model


def _dumps(folder: Path) -> list[dict[str, Any]]:
    chance = np.random.default_rng(0)
    np.savez(
        folder / "data.npz",
        x=chance.normal(size=(61, 1, 8, 8)).astype(np.float32),
        y=chance.integers(0, 5, 61),
        split=np.array(["train"] * 40 + ["validation"] * 10 + ["test"] * 11),
        classes=np.array([f"class {n}" for n in range(5)]),
    )
    torch.manual_seed(0)
    save_weights(folder / "teacher.safetensors", build_model("mlp-8", {}, classes=5, input_shape=(1, 8, 8)), {})
    base = {
        "data": f"arrays:{folder / 'data.npz'}",
        "teacher": "tests.faults.kills:slow_teacher",
        "weights": folder / "teacher.safetensors",
        "batch_size": 7,
        "device": "cpu",
    }
    views = {"views": 2, "transform": "affine:degrees=20"}
    half, topk, hint = {"dtype": "float16"}, {"encoding": "topk", "k": 2}, {"features": ("hint=hidden",)}
    return [
        base | views | half | {"part_size": 16},
        base | views | topk | hint | {"store": "parquet", "part_size": 24},
        base | half | {"part_size": 9, "replacing": {"part_size": 40, "dtype": "float32"}},
        base | views | topk | hint | {"part_size": 64},
        base | views | half | {"store": "parquet", "part_size": 8},
    ]


def _trainings(folder: Path) -> list[dict[str, Any]]:
    dumping = _dumps(folder)[0]
    complete(lambda: dump.run(DumpConfig(**dumping, out=folder / "cache")))
    base = {"data": dumping["data"], "student": "mlp-4", "epochs": 2, "batch_size": 8, "lr": 0.02, "device": "cpu"}
    soft = {"cache": str(folder / "cache"), "window": 2, "train_views": "all"}
    every_step, now_and_then = {"checkpoint_every": 1e-9}, {"checkpoint_every": 0.02}
    return [
        base | soft | every_step | {"seeds": 2, "student": "cnn-2", "student_args": ("dropout=0.2",)},
        base | soft | now_and_then | {"seeds": 3, "keep": "best", "resident": "none"},
        base | every_step | {"seeds": 2, "optimizer": "sgd", "accumulate": 2, "alpha": 0.0},
        base | soft | every_step | {"seeds": 3, "keep": "best", "patience": 1, "epochs": 3},
    ]


def campaign(what: str, folder: Path, times: int, seed: int) -> Counts:
    """The campaign itself, in a process that has no other thread."""
    torch.set_num_threads(1)
    folder = folder / f"{what}-kills"
    shutil.rmtree(folder, ignore_errors=True)  # an earlier campaign: nothing may be found finished
    folder.mkdir(parents=True)
    kind, options = (DumpWork, _dumps(folder)) if what == "dump" else (TrainingWork, _trainings(folder))
    for name in filter(importlib.util.find_spec, kind.late):
        importlib.import_module(name)
    chance, counts, killed = random.Random(seed), Counts(), 0
    works: dict[int, Work] = {}
    turn = deque(kind.phases)
    counts.update(dict.fromkeys(("kills", "at a random instant", "aimed at a phase"), 0))
    counts.update({f"killed in: {phase}": 0 for phase in kind.phases})
    for round_ in range(100 * times):
        if killed == times:
            return counts
        variant = round_ % len(options)
        if variant not in works:
            works[variant] = kind(folder / f"work-{variant}", options[variant], counts)
        work = works[variant]
        trial = Trial(work, folder / f"round-{round_}" / "out", f"{what} kills, seed {seed}, round {round_}")
        for _ in range(chance.randint(1, LONGEST_CHAIN)):
            missing = [phase for phase in turn if not counts[f"killed in: {phase}"]]
            aimed = killed % 2 == 0 or (times >= len(turn) and len(missing) >= times - killed)
            phase = (missing or turn)[0] if aimed else None
            if killed == times or (phase in kind.early and not work.left(trial)):
                break
            if not trial.run(work.plan(trial, phase, chance)):
                counts["runs that finished before their kill"] += 1
                break
            killed += 1
            counts["kills"] += 1
            counts["aimed at a phase" if aimed else "at a random instant"] += 1
            counts.update(f"killed in: {name}" for name in trial.watch.active() or ["none of these"])
            if aimed:
                turn.remove(phase)
                turn.append(phase)
        trial.finish()
        counts["outputs killed, taken up again, and finished in the same bytes"] += 1
        shutil.rmtree(trial.out.parent)
    raise AssertionError(f"{what} kills, seed {seed}: {killed} of {times} kills came before their run had finished")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("dump", "training"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    counts = campaign(given.what, given.folder.resolve(), given.times, given.seed)
    print(json.dumps(counts) if given.json else table(f"Kills of {given.what}", counts))


if __name__ == "__main__":
    # Under its own name, not as __main__: the teacher above is part of a cache's identity.
    from tests.faults import kills

    kills.main()
