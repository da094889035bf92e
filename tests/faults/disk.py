"""Disks that fill up under a dump, a transcode, an extend or a training run, at a random byte: an error that says how
much is needed, nothing lost, and a run that completes with the same bytes once there is room. And two dumps into one
output at once.

A campaign runs in a process of its own, which sees a small tmpfs (in a mount namespace, where that is allowed) with a
ballast on it. Elsewhere a limit on the size of files, RLIMIT_FSIZE, stands in; it is tried in any case.

    python -m tests.faults.disk --folder /tmp/disk --times 60 --seed 0
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline import dump, training
from pipeline.dump import DumpConfig
from pipeline.store import open_cache
from pipeline.training import TrainConfig
from pipeline.workspace import MARK
from tests.faults.counts import Counts, table
from tests.faults.disk_jobs import (
    DUMPS,
    REWRITES,
    ROOT,
    RUNS,
    VERBS,
    Command,
    Ended,
    dump_options,
    make,
    rewrite_options,
    run_options,
    sameness,
)
from tests.faults.small_disks import MOUNT, SIZE, Limit, Tmpfs, namespace, paged
from tests.store.small import files_of

FULL = re.compile(
    r"error: (\S+) takes ([\d,]+) bytes and cannot be written: ([^;]+); ([\d,]+) bytes are free on that disk"
)
REST = re.compile(r"The (\d+) parts? still to be written take about ([\d,]+) bytes in all")
LAST = re.compile(r"All parts are written; the files that finish the cache take ([\d,]+) bytes in all")
STUDENTS = re.compile(r"The \d+ students? still to be kept take about [\d,]+ bytes in all, besides the training state")


def disk(folder: Path, times: int = 60, seed: int = 0) -> Counts:
    """Fill the disk under ``times`` dumps and ``times`` training runs; a third as often under transcode or extend; a
    sixth as often, dump twice into one output.
    """
    space = namespace()
    place = folder / "disk"
    place.mkdir(parents=True, exist_ok=True)
    apart = [*space, "sh", "-c", MOUNT, str(SIZE), str(place)] if space else []
    options = [f"--folder={folder}", f"--times={times}", f"--seed={seed}", "--here", *["--mounted"] * bool(space)]
    done = subprocess.run(
        [*apart, sys.executable, "-m", "tests.faults.disk", *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"disk, {times} times, seed {seed}:\n{done.stdout[-500:]}\n{done.stderr[-6000:]}"
    return Counts(json.loads(done.stdout.splitlines()[-1]))


def refusal(ended: Ended, disk: Tmpfs, rounds: str) -> tuple[str, int, str]:
    """The file that an error names, within the scratch directory, the bytes it takes, and all that is said.

    AssertionError if something else is said, or less.
    """
    *logged, said = ended.said.splitlines()
    found = FULL.match(said)
    plain = "Traceback" not in ended.said and not any("error" in line for line in logged)
    assert ended.status == 1 and plain and found, f"{rounds}: {ended}"
    assert "run the same command again" in said and disk.said in found[3], f"{rounds}: {ended}"
    needed, free = (int(found[n].replace(",", "")) for n in (2, 4))
    assert disk.holds(needed, free), f"{rounds}: {disk.free()} are free: {said}"
    left = sorted(p.name for p in disk.folder.rglob("*.partial"))
    assert not left, f"{rounds}: half-written {left} stay"
    path = Path(found[1]).relative_to(disk.folder.resolve())
    within = path.parts[0].startswith(f".out{MARK}") and len(path.parts) > 1
    return path.relative_to(path.parts[0]).as_posix() if within else path.name, needed, said


def scratch(disk: Tmpfs) -> dict[str, bytes]:
    """What a run that stopped has left, by path."""
    found = list(disk.folder.glob(f".out{MARK}" + "[0-9a-f]" * 16))
    return files_of(found[0]) if found else {}


def dump_round(made: Path, disk: Tmpfs, random: random.Random, rounds: str, *, apart: bool) -> Counts:
    """A dump that finds the disk full once or more, and then room."""
    name = random.choice(sorted(DUMPS))
    command = Command("dump", DumpConfig, dump.run)
    return _parts_round(command, name, dump_options(made, name), made, disk, random, rounds, apart)


def rewrite_round(made: Path, disk: Tmpfs, random: random.Random, rounds: str, *, apart: bool) -> Counts:
    """A verb that makes a cache out of a cache, and finds the disk full."""
    verb = random.choice(sorted(REWRITES))
    source = made / REWRITES[verb]["cache"]
    before = files_of(source)
    counts = _parts_round(
        Command(verb, *VERBS[verb]), verb, rewrite_options(made, verb), made, disk, random, rounds, apart
    )
    assert files_of(source) == before, f"{rounds}: {source} has changed"
    return counts


def _parts_round(
    command: Command,
    name: str,
    options: dict[str, Any],
    made: Path,
    disk: Tmpfs,
    random: random.Random,
    rounds: str,
    apart: bool,
) -> Counts:
    """A command that makes ``made``/``name``, part by part."""
    whole, out = files_of(made / name), disk.folder / "out"
    records = open_cache(made / name).parts
    of_parts = {record.number: {p: f.size for p, f in record.files.items()} for record in records}
    closing = [len(data) for path, data in whole.items() if not any(path in files for files in of_parts.values())]
    sizes = [1, *(size for files in of_parts.values() for size in (*files.values(), 1)), *closing]
    options = earlier(made / "earlier-cache", out, random, options)
    before, counts = files_of(out), Counts()
    kept: dict[str, bytes] = {}
    for _ in range(random.choice((1, 1, 2, 3))):
        disk.leave(disk.room(random, sizes, len(closing), paged(kept)))
        ended = command(options, apart=apart)
        if ended.status == 0:
            counts[f"{command.stage}, {disk.name}: fitted"] += 1
            break
        place, needed, said = refusal(ended, disk, rounds)
        assert place not in whole or needed == len(whole[place]), f"{rounds}: {place} has {len(whole[place])}: {said}"
        now = scratch(disk)
        assert kept.items() <= now.items() and files_of(out) == before, f"{rounds}: what was there before has changed"
        done = [n for n in of_parts if f"journal/part-{n:05d}.json" in now]
        kept = {path: now[path] for n in done for path in (f"journal/part-{n:05d}.json", *of_parts[n])}
        what = "before or after it"
        if place.startswith("journal") or any(place in files for files in of_parts.values()):
            rest = REST.search(said)
            left = sum(sum(files.values()) for n, files in of_parts.items() if n not in done)
            assert rest and int(rest[1]) == len(of_parts) - len(done), f"{rounds}: {len(done)} parts are done: {said}"
            assert 0.5 < int(rest[2].replace(",", "")) / left < 2, f"{rounds}: {left} bytes are left: {said}"
            what = "in the journal" if place.startswith("journal") else "in a part"
        elif place in whole:
            last = LAST.search(said)
            assert last and int(last[1].replace(",", "")) == sum(closing), f"{rounds}: {sum(closing)} bytes: {said}"
            what = "while finishing"
        counts[f"{command.stage}, {disk.name} {what}: DiskFullError naming the need"] += 1
    disk.lift()
    finish(command, options, whole, disk, rounds)
    counts[f"{command.stage}, {disk.name}: completed with the same bytes once there was room"] += 1
    return counts


def train_round(made: Path, disk: Tmpfs, random: random.Random, rounds: str, *, apart: bool) -> Counts:
    """A training run that finds the disk full, saving its state at each step or only at the end, and then room."""
    name, saving = random.choice(sorted(RUNS)), random.choice(("each step", "each step", "never"))
    whole, out = files_of(made / name), disk.folder / "out"
    state = (made / f"{name}-state-bytes").stat().st_size
    files = [
        size for p in whole if p.startswith("seed-") for size in (len(whole[p]), *[1] * p.endswith(".safetensors"))
    ]
    command = Command("train", TrainConfig, training.run)
    options = earlier(made / "earlier-run", out, random, run_options(made, name))
    before, counts = files_of(out), Counts()
    options["checkpoint_every"] = 1e-9 if saving == "each step" else 0
    kept: dict[str, bytes] = {}
    states: dict[str, bytes] = {}
    for _ in range(random.choice((1, 1, 2, 3))):
        if options["checkpoint_every"]:
            room = disk.room(random, [1, state, state], 2, paged(states))
        else:
            room = disk.room(random, [1, *files, len(whole["run.json"])], 3, paged(kept))
        disk.leave(room)
        ended = command(options, apart=apart)
        resumed(command, states, rounds)
        if ended.status == 0:
            counts[f"train, {disk.name}: fitted"] += 1
            break
        place, needed, said = refusal(ended, disk, rounds)
        exact = place in whole and place != "run.json"
        assert not exact or needed == len(whole[place]), f"{rounds}: {place} has {len(whole[place])}: {said}"
        assert STUDENTS.search(said) or not place.startswith("seed-"), f"{rounds}: {said}"
        now = scratch(disk)
        assert kept.items() <= now.items() and files_of(out) == before, f"{rounds}: what was there before has changed"
        done = {path.partition("/")[0] for path in now if path.endswith("seed.json")}
        changed = [p for p, data in states.items() if p.partition("/")[0] not in done and now.get(p) != data]
        assert options["checkpoint_every"] or not changed, f"{rounds}: {changed} have changed: {said}"
        kept = {
            p: data for p, data in now.items() if p.partition("/")[0] in done and not p.endswith("state.safetensors")
        }
        states = {p: data for p, data in now.items() if p.endswith("state.safetensors")} if not apart else {}
        what = {
            "state.safetensors": "in the state",
            "model.safetensors": "in a model",
            "run.json": "in its record",
        }.get(Path(place).name, "in a small file of a student" if place.startswith("seed-") else "before or after it")
        counts[f"train, {disk.name} {what}: DiskFullError naming the need"] += 1
        # Now and then the model is what does not fit, while the state of some step is there.
        options["checkpoint_every"] = random.choice((options["checkpoint_every"], 0))
    disk.lift()
    finish(command, options, whole, disk, rounds)
    resumed(command, states, rounds)
    counts[f"train, {disk.name}: completed with the same bytes once there was room"] += 1
    counts["train: went on from a saved state"] += bool(states)
    return counts


def resumed(command: Command, states: dict[str, bytes], rounds: str) -> None:
    """AssertionError when a run started from nothing although a state was there."""
    for path in states:
        seed = path.partition("/")[0].removeprefix("seed-")
        begun = {d: done for d, done in command.begun.items() if d.endswith(f"seed {seed}")}
        assert all(begun.values()), f"{rounds}: {path} was there, and {begun} is where it went on"


def earlier(result: Path, out: Path, random: random.Random, options: dict[str, Any]) -> dict[str, Any]:
    """``options`` into ``out``; now and then another result stands there, which is to be replaced."""
    if random.random() < 0.25:
        shutil.copytree(result, out)
        return {**options, "out": out, "overwrite": True}
    return {**options, "out": out}


def finish(command: Command, options: dict[str, Any], whole: dict[str, bytes], disk: Tmpfs, rounds: str) -> None:
    """The same command again, with room: it completes, and nothing tells that it was ever stopped."""
    ended = command(options)
    assert ended.status == 0, f"{rounds}: with room again: {ended}"
    found, whole = sameness(files_of(options["out"])), sameness(whole)
    differ = sorted(path for path in {*whole, *found} if whole.get(path) != found.get(path))
    assert not differ, f"{rounds}: other bytes in {differ}"
    others = {p.name for p in disk.folder.iterdir()} - {"out", "out.report.json", f".out{MARK}lock"}
    assert not others, f"{rounds}: {others} stay behind"


def busy_round(made: Path, place: Path, rounds: str, *, apart: bool) -> Counts:
    """A dump into what another process is dumping into: refused, and the first one completes."""
    name, out = sorted(DUMPS)[0], place / "out"
    options, signs = {**dump_options(made, name), "out": str(out)}, (place / "begun", place / "go")
    words = [sys.executable, "-m", "tests.faults.disk_jobs", json.dumps(options, default=str), *map(str, signs)]
    first = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        while not signs[0].exists():
            assert first.poll() is None, f"{rounds}: the first dump ended: {first.communicate()[1]}"
            time.sleep(0.02)
        second = Command("dump", DumpConfig, dump.run)(options, apart=apart)
        said = f"error: {out} is being written by process {first.pid} on {socket.gethostname()}. "
        assert second.status == 1 and second.said.startswith(said), f"{rounds}: {second}"
        assert second.said.count("\n") == 1, f"{rounds}: {second}"
    finally:
        signs[1].touch()
        errors = first.communicate(timeout=60)[1]
    assert first.returncode == 0 and files_of(out) == files_of(made / name), (
        f"{rounds}: the first dump was harmed: {errors}"
    )
    return Counts(
        {"two dumps: the second refused, naming pid and host": 1, "two dumps: the first done, the same bytes": 1}
    )


def all_rounds(folder: Path, times: int, seed: int, *, mounted: bool) -> Counts:
    """The rounds of a campaign, in this process; ``mounted``: ``folder``/disk is a small tmpfs."""
    torch.set_num_threads(1)
    made, plain = folder / "made", folder / "plain"
    make(made)
    kinds: list[tuple[str, int, Callable[..., Counts]]] = []
    for disk, often in (
        (Tmpfs(folder / "disk"), times * mounted),
        (Limit(plain), times if not mounted else times // 4),
    ):
        for what, share, round_of in (
            ("dump", 1, dump_round),
            ("rewrite", 3, rewrite_round),
            ("train", 1, train_round),
        ):
            kinds.append((f"{what}, {disk.name}", -(-often // share), functools.partial(round_of, made, disk)))
    counts = Counts()
    for kind, often, round_of in kinds:
        for number in range(often):
            place = folder / "disk" if "limit" not in kind else plain
            rounds = f"{kind}, round {number}, seed {seed}"
            counts += round_of(random.Random(f"{kind} {number} {seed}"), rounds, apart=number % 10 == 9)
            clear(place)
    for number in range(-(-times // 6)):
        counts += busy_round(made, clear(plain), f"two dumps, round {number}", apart=number % 2 == 1)
    return counts


def clear(place: Path) -> Path:
    """An empty folder."""
    place.mkdir(exist_ok=True)
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return place


def main() -> None:
    """Run a campaign, in this process or one that sees a small disk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--times", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--here", action="store_true", help="in this process; prints JSON")
    parser.add_argument("--mounted", action="store_true", help="with --here: FOLDER/disk is a small tmpfs")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(all_rounds(given.folder, given.times, given.seed, mounted=given.mounted)))
    else:
        print(table("Full disks", disk(given.folder, given.times, given.seed)))


if __name__ == "__main__":
    main()
