"""Training under torchrun: a dataset whose last step leaves a rank without a batch, and commands on several ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent


def save_examples(home: Path) -> str:
    """data.npz in ``home``, of 51 training examples: seven batches of eight. What ``--data`` calls it."""
    random = np.random.default_rng(0)
    split = np.array(["train"] * 51 + ["validation"] * 20)
    x, y = random.random((71, 1, 6, 6), dtype=np.float32), random.integers(0, 3, 71)
    np.savez(home / "data.npz", x=x, y=y, split=split)
    return f"arrays:{home / 'data.npz'}"


def on_ranks(ranks: int, home: Path, *words: str) -> str:
    """What ``softlabels`` with these words prints in ``home``, by so many processes; its failure fails the test."""
    several = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}") if ranks > 1 else ()
    done = subprocess.run(
        [sys.executable, *several, "-m", "stages.cli", *words],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
