"""Real runs, killed with SIGKILL again and again, until a last run may finish.

A campaign runs in a process of its own, which imports everything once, starts no thread, so that forking is safe, and
forks a child for each run. Half of the kills come from the parent, at an instant drawn uniformly over the
time that an undisturbed run takes. The others are aimed: the child kills itself at the n-th entry of one phase of the
work, before, in the middle of, or after it. Memory that both share says what the child was doing when it died.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from tests.faults.counts import Counts, table
from tests.faults.dying import Aim, Watch, fork, replaced, scratch
from tests.store.small import files_of

ROOT = Path(__file__).parents[2]
Asked = np.ndarray[Any, Any]
WHERE = ("before", "in the middle of", "after")
LONGEST_CHAIN = 5
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def apart(module: str, what: str, folder: Path, times: int, seed: int) -> Counts:
    """The campaign ``what`` of ``tests.faults.MODULE``, in a process of its own."""
    options = [f"--folder={folder}", f"--times={times}", f"--seed={seed}", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", f"tests.faults.{module}", what, *options],
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


Kinds = Mapping[str, tuple[type[Any], Callable[[Path], list[dict[str, Any]]]]]
"""By name: the kind of ``Work``, and the options of each one, over sources that are made in a folder."""


def campaign(kinds: Kinds, what: str, folder: Path, times: int, seed: int) -> Counts:
    """The campaign itself, in a process that has no other thread."""
    torch.set_num_threads(1)
    folder = folder / f"{what}-kills"
    shutil.rmtree(folder, ignore_errors=True)  # an earlier campaign: nothing may be found finished
    folder.mkdir(parents=True)
    kind, options_in = kinds[what]
    options = options_in(folder)
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
            among = [phase for phase in turn if work.events[phase]]
            missing = [phase for phase in among if not counts[f"killed in: {phase}"]]
            aimed = killed % 2 == 0 or (times >= len(turn) and len(missing) >= times - killed)
            phase = (missing or among)[0] if aimed else None
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


def main(kinds: Kinds) -> None:
    """The command line of a campaign."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=sorted(kinds))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    counts = campaign(kinds, given.what, given.folder.resolve(), given.times, given.seed)
    print(json.dumps(counts) if given.json else table(f"Kills of {given.what}", counts))
