"""Students by the size of their tutor: digests tell who learnt from whom; without tutors a page is as it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from pipeline import report
from pipeline.report import ReportConfig
from pipeline.report.reading import Findings, read_findings
from pipeline.report.tutors import Gap, figure, gaps, rows
from tests.report.synthetic import World, write

TEACHER = "f" * 64


def add(
    world: World, name: str, student: str, by: Sequence[str], accuracies: Sequence[float], parameters: int, **more: Any
) -> None:
    """A run called ``name`` that learnt from models of the digests ``by``; seed k of it has the digest NAME-k."""
    made = world.add(student, "soft", accuracies, parameters=parameters)
    run = world.runs[-1]
    evaluation = made.rename(made.with_name(name))
    run = run.rename(run.with_name(name))
    world.evaluations[-1], world.runs[-1] = evaluation, run
    details = json.loads((evaluation / "details.json").read_text())
    config = {**details["config"], "cache": f"caches/{name}", **more}
    if len(by) > 1:
        config |= {"cache": None, "labels": [f"caches/{one}" for one in by]}
    write(evaluation / "details.json", {**details, "run": name, "config": config})
    teachers: Any = [{"state": one} for one in by]
    lineage = {"cache": f"digest of {name}", "teacher": teachers if len(by) > 1 else teachers[0]}
    seeds = [{"epochs": 20, "state": f"{name}-{seed}"} for seed in range(len(accuracies))]
    write(run / "run.json", {"config": config, "lineage": lineage, "seeds": seeds})


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A teacher, tutors large and small, and a student of each; names say nothing of who learnt from whom."""
    made = World(tmp_path)
    write(tmp_path / "teacher" / "report.json", {"state": TEACHER, "parameters": 90_000})
    add(made, "x1", "mlp-64", [TEACHER], [0.9625], 5000)
    add(made, "x2", "mlp-16", [TEACHER], [0.9, 0.9125], 1200)
    add(made, "x3", "mlp-8", [TEACHER], [0.80, 0.8125, 0.825], 600)
    add(made, "x4", "mlp-8", ["x1-0"], [0.85, 0.8625, 0.875], 600)
    add(made, "x5", "mlp-8", ["x2-1"], [0.75, 0.7625, 0.775], 600)
    add(made, "x6", "mlp-8", ["x1-0", TEACHER], [0.80, 0.8125, 0.8375], 600)
    add(made, "x7", "mlp-8", ["x5-0"], [0.70, 0.7125, 0.725], 600)  # of a student of a tutor: not of a tutor
    add(made, "x8", "mlp-8", [TEACHER], [0.5, 0.5, 0.5], 600, alpha=0.0)
    return made


def read(world: World) -> Findings:
    return read_findings(teacher=world.root / "teacher", cache=None, compressed=(), **world.options())


def only(world: World) -> Gap:
    [gap] = gaps(read(world))
    return gap


def test_who_learnt_from_whom(world: World) -> None:
    gap = only(world)
    assert gap.student == "mlp-8" and gap.teacher and gap.teacher.name == "x3"
    assert gap.hard and gap.hard.name == "x8"
    found = [(s.tutor.name, s.alone and s.alone.name, s.both and s.both.name) for s in gap.steps]
    assert found == [("x2", "x5", None), ("x1", "x4", "x6")]  # the smallest tutor first


def test_figures_of_the_table(world: World) -> None:
    first, second = rows(only(world))
    assert first == {
        "tutor": "x2", "parameters": "1,200", "own": "90.6", "alone": "76.2", "alone_spread": "1.2",
        "alone_points": first["alone_points"], "both": "", "both_spread": "", "both_points": "",
    }  # fmt: skip
    assert first["alone_points"].startswith("\u22125.0 ±") and second["alone_points"].startswith("+5.0 ±")
    assert second["both"] == f"{np.mean([80, 81.25, 83.75]):.1f}"
    assert second["both_spread"] == f"{np.std([80, 81.25, 83.75], ddof=1):.1f}"


def test_the_page_shows_them(world: World) -> None:
    out = world.root / "report"
    report.run(ReportConfig(teacher=world.root / "teacher", **world.options(), out=out))
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<h2>Tutors</h2>" in page and "81.2% by the teacher alone, 50.0% on hard labels" in page
    assert (out / "tutors.png").stat().st_size > 1000


def test_without_a_teacher_or_with_one_tutor_there_is_none(world: World) -> None:
    assert not gaps(read_findings(teacher=None, cache=None, compressed=(), **world.options()))
    del world.evaluations[4], world.runs[4]  # x5, the student of one of the two tutors
    findings = read(world)
    assert not gaps(findings) and figure(findings) is None
