"""``softlabels sweep`` from the command line, and the other stages on what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stages.cli import main


def invoke(*words: str) -> Any:
    return CliRunner().invoke(main, words)


def done(*words: str) -> str:
    found = invoke(*words)
    assert found.exit_code == 0, found.output + found.stderr
    return str(found.stdout)


def test_a_sweep_and_the_stages_that_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done("fit-teacher", "--teacher", "mlp-16", "--epochs", "3", "--views", "0", "--device", "cpu", "--out", "teacher")
    words = ("--teacher", "mlp-16", "--weights", "teacher/model.safetensors", "--device", "cpu")
    done("dump", *words, "--out", "cache")
    grid = ("--grid", "temperature=1,4", "--grid", "student=mlp-4,mlp-8")
    sweep = ("sweep", "--cache", "cache", *grid, "--epochs", "2", "--seeds", "2", "--device", "cpu", "--out", "sweep")
    lines = done(*sweep).splitlines()
    assert lines[0].split()[:4] == ["temperature", "student", "seeds", "accuracy"] and len(lines) == 6
    assert lines[-1].startswith("sweep: 8 students in 4 cells, best ")
    report = json.loads(done(*sweep, "--json"))
    best = report["cells"][0]["cell"]
    assert len(report["cells"]) == 4 and Path("sweep", best, "run.json").is_file()
    done("evaluate", "--run", f"sweep/{best}", "--cache", "cache", "--device", "cpu", "--out", "evaluations/best")
    assert json.loads(Path("evaluations/best/metrics.json").read_text())
    done("report", "--runs", f"sweep/{best}", "--evaluations", "evaluations/best", "--cache", "cache", "--out", "page")
    assert Path("page/index.html").is_file()


def test_what_is_wrong_with_a_grid_is_wrong_usage() -> None:
    found = invoke("sweep", "--grid", "lrr=1", "--grid", "alpha=much", "--out", "s")
    assert found.exit_code == 2
    assert "2 problems" in found.stderr and "train has no such option" in found.stderr
    assert invoke("sweep", "--out", "s").exit_code == 2
