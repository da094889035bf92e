"""One cache made by several processes: the same bytes, whoever made which part, whoever died on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

from pipeline import dump
from pipeline.dump import DumpConfig
from pipeline.dump.claims import Claims, Share, chosen_parts
from pipeline.errors import BusyError, CacheIncompleteError, ConfigError
from pipeline.models import build_model
from pipeline.store import open_cache, verify
from pipeline.workspace import SharedWorkspace, Workspace, leftovers
from stages.cli import main
from tests.store.small import files_of

ROOT = Path(__file__).resolve().parent.parent

FACTORY = """
import os, signal, time
from pathlib import Path
import torch
from pipeline.models import build_model

class Slow(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x):
        self.calls += 1
        time.sleep(float(os.environ.get("TEACHER_SECONDS", "0")))
        victim = os.environ.get("DIES_ONCE")
        if victim and os.environ.get("RANK") == "1" and self.calls == 6 and not Path(victim).exists():
            Path(victim).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.model(x)

def teacher(classes, input_shape):
    torch.manual_seed(0)
    return Slow(build_model("mlp-8", {}, classes=classes, input_shape=input_shape))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with data, a teacher of one's own and its weights, where commands are run."""
    random = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=random.random((60, 1, 4, 4), dtype=np.float32), y=np.arange(60) % 3)
    (tmp_path / "slow_teacher.py").write_text(FACTORY)
    model = build_model("mlp-8", {}, classes=3, input_shape=(1, 4, 4))
    save_file({f"model.{name}": value for name, value in model.state_dict().items()}, tmp_path / "teacher.safetensors")
    return tmp_path


OPTIONS = (
    *("--data", "arrays:data.npz", "--teacher", "slow_teacher:teacher", "--weights", "teacher.safetensors"),
    *("--views", "2", "--transform", "affine:degrees=10", "--part-size", "8", "--batch-size", "4", "--device", "cpu"),
)


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **extra}


def start(home: Path, *arguments: str, module: tuple[str, ...] = ("stages.dump",), **extra: str) -> Any:
    return subprocess.Popen(
        [sys.executable, "-m", *module, *OPTIONS, *arguments],
        cwd=home,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: Any) -> str:
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    return str(said)


def torchrun(ranks: int, restarts: int = 0) -> tuple[str, ...]:
    return ("torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}", "-m",
            "stages.dump")  # fmt: skip


@pytest.fixture
def alone(home: Path) -> dict[str, bytes]:
    """The bytes that one process makes."""
    ended(start(home, "--out", "alone"))
    return files_of(home / "alone")


def test_tasks_of_a_batch_array_make_what_one_process_makes(home: Path, alone: dict[str, bytes]) -> None:
    tasks = [start(home, "--out", "c", "--parts", f"{i}/2", TEACHER_SECONDS="0.01") for i in range(2)]
    said = [ended(task) for task in tasks]
    assert any("parts are there" in text for text in said)
    assert not (home / "c").exists()
    found = CliRunner().invoke(main, ["cache", "finalize", str(home / "c")])
    assert found.exit_code == 0 and "identity" in found.output, found.output
    assert files_of(home / "c") == alone and verify(open_cache(home / "c")).ok
    assert not list(home.glob(".c.softlabels-*-*"))
    again = CliRunner().invoke(main, ["cache", "finalize", str(home / "c")])
    assert (again.exit_code, again.output) == (0, found.output)


def test_what_is_missing_is_named_and_a_lone_process_finishes(home: Path, alone: dict[str, bytes]) -> None:
    ended(start(home, "--out", "c", "--parts", "2:5"))
    with pytest.raises(CacheIncompleteError, match=r"parts are not written yet: 0:2, 5:\d+"):
        dump.finalize(home / "c")
    said = ended(start(home, "--out", "c"))
    assert "3 of" in said and "found finished" in said
    assert files_of(home / "c") == alone


def test_another_cache_is_not_replaced_unasked(home: Path, alone: dict[str, bytes]) -> None:
    ended(start(home, "--out", "c", "--parts", "0:99"))
    ended(start(home, "--out", "c", "--seed", "1"))
    with pytest.raises(ConfigError, match=r"holds cache .* these parts make .*--overwrite"):
        dump.finalize(home / "c")
    found = CliRunner().invoke(main, ["cache", "finalize", str(home / "c"), "--overwrite"])
    assert found.exit_code == 0, found.output
    assert files_of(home / "c") == alone


def test_torchrun_spreads_parts_over_ranks(home: Path, alone: dict[str, bytes]) -> None:
    ended(start(home, "--out", "c", module=torchrun(2), TEACHER_SECONDS="0.01"))
    assert files_of(home / "c") == alone


def test_a_rank_that_dies_costs_its_part_in_flight_and_another_number_of_ranks_goes_on(
    home: Path, alone: dict[str, bytes]
) -> None:
    extra = {"TEACHER_SECONDS": "0.05", "DIES_ONCE": str(home / "died")}
    process = start(home, "--out", "c", module=torchrun(2), **extra)
    said = process.communicate(timeout=120)[0]
    assert process.returncode and (home / "died").exists(), said
    assert not (home / "c").exists()
    there = len(list(home.glob(".c.softlabels-*/journal/part-*.json")))
    assert there >= 1
    said = ended(start(home, "--out", "c", module=torchrun(3)))
    assert files_of(home / "c") == alone
    (home / "died").unlink()
    ended(start(home, "--out", "d", module=torchrun(2, restarts=1), **extra))
    assert (home / "died").exists() and files_of(home / "d") == alone


def test_those_who_share_and_those_who_do_not_refuse_each_other(tmp_path: Path) -> None:
    out = tmp_path / "c"
    with SharedWorkspace(out, "a" * 64) as shared:
        shared.join()
        with pytest.raises(BusyError, match=f"process {os.getpid()} on "), Workspace(out, "a" * 64):
            pass
        assert not list(leftovers(tmp_path))
    with Workspace(out, "a" * 64):
        pass
    assert not list(tmp_path.glob(".*member*"))


def test_a_lone_dump_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.workspace.JOINING_SECONDS", 0.05)
    with (
        Workspace(tmp_path / "c", "a" * 64),
        pytest.raises(BusyError, match="is being written by process"),
        SharedWorkspace(tmp_path / "c", "a" * 64),
    ):
        pass


def test_what_a_dead_member_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".c.softlabels-member-elsewhere-1").touch()
    with Workspace(tmp_path / "c", "a" * 64):
        assert not list(tmp_path.glob(".*member*"))


def test_a_part_is_claimed_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)
    job = dump.prepare(
        DumpConfig(
            data="arrays:data.npz",
            teacher="slow_teacher:teacher",
            weights=Path("teacher.safetensors"),
            part_size=8,
            out=home / "c",
            device="cpu",
        )
    )
    from pipeline.caches.plan import Plan

    plan = Plan(job.identity, job.layout, 3, job.dataset.classes, job.feature_specs, None)
    scratch = home / ".c.softlabels-x"
    scratch.mkdir()
    plan.save(scratch)
    loaded = Plan.load(scratch)
    assert (loaded.digest, loaded.layout, loaded.class_names) == (plan.digest, plan.layout, plan.class_names)
    first, second = (Claims(loaded.writer(scratch), Share(rank, 2)) for rank in range(2))
    one, other = iter(first), iter(second)
    mine = [next(one), next(one)]
    assert not {part.number for part in other} & {part.number for part in mine}
    first.release(mine[0])
    assert [part.number for part in second] == [mine[0].number]
    (scratch / "plan.json").write_text("{}")
    with pytest.raises(CacheIncompleteError, match="Run the dump again"):
        Plan.load(scratch)


@pytest.mark.parametrize("text", ["", "3", "5:5", "9:", "-1:2", "2/2", "1/0", "12:20", "a:b"])
def test_parts_that_name_nothing_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--parts should be FIRST:END"):
        chosen_parts(text, 10)


def test_ranks_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="should be those of torchrun"):
        Share.of_this_process(None)


def test_nothing_to_finish_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found none"):
        dump.finalize(tmp_path / "c")
