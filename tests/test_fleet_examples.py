"""The files of examples/fleet do what they say: a batch array, and a local Ray of two workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.store import open_cache, verify

ROOT = Path(__file__).resolve().parent.parent
FLEET = ROOT / "examples" / "fleet"

OPTIONS = (
    *("--data", "digits", "--teacher", "mlp-8", "--weights", "teacher.safetensors", "--part-size", "300"),
    *("--device", "cpu", "--out", "caches/digits"),
)

SCHEDULER = """#!/bin/bash
# What sbatch does with the two kinds of jobs that array.sh hands in, here and now.
tasks=0
while [ $# -gt 0 ]; do
    case "$1" in
        --array=0-*) tasks=$((${1#--array=0-} + 1)); shift ;;
        --wrap) bash -c "$2" >&2; exit ;;
        --*) shift ;;
        *) break ;;
    esac
done
for ((i = 0; i < tasks; i++)); do
    SLURM_ARRAY_TASK_ID=$i SLURM_ARRAY_TASK_COUNT=$tasks "$@" >&2 || exit
done
echo 4711
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a teacher's weights, where a user would type."""
    from pipeline.models import build_model, save_weights

    save_weights(tmp_path / "teacher.safetensors", build_model("mlp-8", {}, classes=10, input_shape=(1, 8, 8)), {})
    return tmp_path


def run(home: Path, *command: str) -> str:
    binaries = [str(home), str(Path(sys.executable).parent), os.environ["PATH"]]
    done = subprocess.run(
        command,
        cwd=home,
        env={
            **os.environ,
            "PATH": os.pathsep.join(binaries),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TASKS": "2",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def assert_whole(home: Path) -> None:
    cache = open_cache(home / "caches/digits")
    assert verify(cache).ok and len(cache.parts) > 4 and cache.manifest.counts["entries"] == 1797
    assert not list((home / "caches").glob(".digits.softlabels-[0-9a-f]*"))


def test_a_batch_array(home: Path) -> None:
    (home / "sbatch").write_text(SCHEDULER)
    (home / "sbatch").chmod(0o755)
    said = run(home, str(FLEET / "array.sh"), *OPTIONS)
    assert "are still to be made" in said and "identity" in said
    assert_whole(home)


def test_two_workers_of_ray(home: Path) -> None:
    said = run(home, sys.executable, str(FLEET / "ray_dump.py"), "--tasks", "2", *OPTIONS)
    assert "task 1 of 2 is done" in said
    assert_whole(home)


def test_each_file_is_explained() -> None:
    said = (FLEET / "README.md").read_text()
    assert [path.name for path in FLEET.iterdir() if path.name not in said and path.name != "README.md"] == []
