"""Training on several ranks: the losses of one process with more accumulation, and a stop anywhere between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline import dump
from pipeline.models import build_model, save_weights

ROOT = Path(__file__).resolve().parent.parent.parent

STUDENT = """
import os, time
import torch
from pipeline.models import build_model

class Slow(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        time.sleep(float(os.environ.get("STUDENT_SECONDS", "0")))
        return self.model(x)

def student(classes, input_shape, kind="mlp-8"):
    return Slow(build_model(kind, {}, classes=classes, input_shape=input_shape))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache over 83 training examples in batches of 8: eleven batches, the last one short."""
    folder = tmp_path_factory.mktemp("ranks")
    random = np.random.default_rng(0)
    split = np.array(["train"] * 83 + ["validation"] * 20)
    x, y = random.random((103, 1, 6, 6), dtype=np.float32), random.integers(0, 3, 103)
    np.savez(folder / "data.npz", x=x, y=y, split=split)
    torch.manual_seed(0)
    weights = folder / "teacher.safetensors"
    save_weights(weights, build_model("mlp-8", {}, classes=3, input_shape=(1, 6, 6)), {})
    data = f"arrays:{folder / 'data.npz'}"
    kept = {"part_size": 16, "features": ("code=hidden",)}
    dump.run(dump.DumpConfig(data=data, teacher="mlp-8", weights=weights, out=folder / "cache", **kept))
    (folder / "slow_student.py").write_text(STUDENT)
    return folder


def train(home: Path, out: str, ranks: int, *options: str, **extra: str) -> subprocess.Popen[str]:
    alone = ["stages.train"]
    module = alone if ranks == 1 else [
        "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", *alone
    ]  # fmt: skip
    return subprocess.Popen(
        [
            *(sys.executable, "-m", *module, "--data", "arrays:data.npz", "--cache", "cache", "--out", out),
            *("--student", "slow_student:student", "--epochs", "3", "--batch-size", "8", "--lr", "0.05"),
            *("--device", "cpu", "--resident", "none", "--optimizer", "sgd", *options),
        ],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    return said


def history(home: Path, out: str, seed: int = 0) -> list[dict[str, Any]]:
    return list(json.loads((home / out / f"seed-{seed}" / "history.json").read_text()))


def assert_same_course(home: Path, one: str, other: str, seed: int = 0, *, statistics: bool = True) -> None:
    """The same losses, validation and weights, to rounding; without ``statistics`` all but what depends on those.

    Batch norm's running statistics are those of rank 0's batches, as everywhere with DistributedDataParallel.
    """
    for a, b in zip(history(home, one, seed), history(home, other, seed), strict=True):
        assert a.keys() == b.keys()
        for name in a if statistics else ("loss", "hard", "soft", "lr"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), name
    weights = [load_file(home / run / f"seed-{seed}" / "model.safetensors") for run in (one, other)]
    for name, value in weights[0].items():
        if statistics or not ("running" in name or "num_batches" in name):
            torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("ranks", "accumulate"), [(2, 1), (3, 1), (2, 2)])
def test_ranks_take_the_steps_of_one_process_with_more_accumulation(home: Path, ranks: int, accumulate: int) -> None:
    """Eleven batches: with two or three ranks the last step of an epoch leaves ranks without one."""
    alone, shared = f"alone-{ranks}-{accumulate}", f"shared-{ranks}-{accumulate}"
    seeds = ("--seeds", "2") if ranks == 2 and accumulate == 1 else ()
    done(train(home, alone, 1, "--accumulate", str(ranks * accumulate), *seeds))
    said = done(train(home, shared, ranks, "--accumulate", str(accumulate), *seeds))
    assert f"took part as rank 1 of {ranks}" in said
    for seed in range(2 if seeds else 1):
        assert_same_course(home, alone, shared, seed)
    one, other = (json.loads((home / run / "run.json").read_text()) for run in (alone, shared))
    assert one["identity"] == other["identity"]
    assert "found finished" in done(train(home, shared, 1, "--accumulate", str(ranks * accumulate), *seeds))


def test_batch_norm_changes_the_running_statistics_alone(home: Path) -> None:
    kind = ("--student-args", "kind=cnn-4")
    done(train(home, "alone-cnn", 1, "--accumulate", "2", *kind))
    done(train(home, "shared-cnn", 2, *kind))
    assert_same_course(home, "alone-cnn", "shared-cnn", statistics=False)


def test_a_model_whose_weights_are_whole_at_the_end_of_training_is_kept_whole(home: Path) -> None:
    """The last forward pass of either rank is one of validation: FSDP has the weights whole then."""
    kind = ("--student", "mlp-8", "--batch-size", "4", "--epochs", "1")
    done(train(home, "alone-whole", 1, "--accumulate", "2", *kind))
    done(train(home, "shared-whole", 2, "--parallel", "fsdp", *kind))
    assert_same_course(home, "alone-whole", "shared-whole")


@pytest.mark.parametrize(("ranks", "accumulate"), [(2, 2), (3, 1)])
def test_ranks_that_share_the_weights_take_the_same_steps(home: Path, ranks: int, accumulate: int) -> None:
    options = ("--optimizer", "adamw", "--keep", "best")
    done(train(home, f"alone-fsdp-{ranks}", 1, "--accumulate", str(ranks * accumulate), *options))
    shared = ("--parallel", "fsdp", "--accumulate", str(accumulate), *options)
    done(train(home, f"fsdp-{ranks}", ranks, *shared))
    assert_same_course(home, f"alone-fsdp-{ranks}", f"fsdp-{ranks}")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_hints_are_learnt_on_ranks_as_on_one(home: Path, parallel: str) -> None:
    """Hints alone in the first epoch, labels alone in the others: in each, some weights get no gradient."""
    options = ("--hints", "code=model.hidden", "--hint-epochs", "1")
    done(train(home, f"alone-hints-{parallel}", 1, "--accumulate", "3", *options))
    done(train(home, f"hints-{parallel}", 3, "--parallel", parallel, *options))
    assert_same_course(home, f"alone-hints-{parallel}", f"hints-{parallel}")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_goes_on_with_another_number_of_ranks(home: Path, parallel: str) -> None:
    options = ("--epochs", "12", "--optimizer", "adamw")
    whole, moved = f"whole-{parallel}", f"moved-{parallel}"
    done(train(home, whole, 1, *options, "--accumulate", "2"))
    shared = ("--parallel", parallel, "--checkpoint-every", "0.2")
    process = train(home, moved, 2, *options, *shared, STUDENT_SECONDS="0.05")
    deadline = time.monotonic() + 60
    while not (saved := list(home.glob(f".{moved}.softlabels-*/seed-0/state.safetensors"))):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = saved[0].stat().st_mtime_ns
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode != 0 and not (home / moved).exists(), said
    assert saved[0].stat().st_mtime_ns > before, "both ranks stopped after the same step, and rank 0 saved"
    done(train(home, moved, 1, *options, "--accumulate", "2"))
    assert_same_course(home, whole, moved)
