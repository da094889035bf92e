"""A dump on a Ray cluster: `python ray_dump.py --tasks 8 --gpus 1 --teacher ... --out /shared/cache`.

Options that are not listed below are those of `softlabels dump`. A task that dies is started again and goes on from the
parts that are there.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import ray

from pipeline import dump
from stages.dump import command


def make(arguments: list[str], task: int, tasks: int, folder: str) -> str:
    """One task's share of the parts."""
    os.chdir(folder)  # relative paths mean what they meant to the driver
    command.main([*arguments, "--parts", f"{task}/{tasks}"], standalone_mode=False)
    return f"task {task} of {tasks} is done"


def main() -> None:
    """Start the tasks, wait for them, finish the cache."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=2, help="processes that share the dump")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each")
    parser.add_argument("--cpus", type=float, default=1, help="processor cores of each")
    parser.add_argument("--out", required=True, help="directory of the cache, on a filesystem that all nodes share")
    given, options = parser.parse_known_args()
    out = Path(given.out).absolute()
    ray.init(include_dashboard=False, log_to_driver=True)
    remote = ray.remote(num_cpus=given.cpus, num_gpus=given.gpus, max_retries=3)(make)
    waiting = [remote.remote([*options, "--out", str(out)], i, given.tasks, os.getcwd()) for i in range(given.tasks)]
    for said in ray.get(waiting):
        print(said)
    cache = dump.finalize(out)
    print(f"{out}: {cache.manifest.counts['entries']:,} entries in {len(cache.parts)} parts; {cache.digest[:12]}")


if __name__ == "__main__":
    main()
