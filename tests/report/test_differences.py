"""Two reports: differences with their intervals, the same called the same, and no verdict that nothing supports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from pipeline import report
from pipeline.errors import ConfigError
from pipeline.metrics import half_width
from pipeline.report import ReportConfig
from pipeline.report.differences import between, lines
from pipeline.report.reading import read_findings
from pipeline.report.record import record_of
from stages.options import settings_from
from stages.report import command
from tests.report.synthetic import World, artefact, write


def draw(root: Path, soft: list[float], rows: list[dict[str, Any]] | None = None, **more: Any) -> Path:
    world = World(root / "world")
    world.add("mlp-8", "soft", soft, **more)
    world.add("mlp-8", "hard", [0.8, 0.8125, 0.8])
    return record(world, root / "report", world.add_compressed(rows) if rows else None)


def record(world: World, out: Path, compressed: Path | None = None) -> Path:
    """A report's numbers without its page and figures, which would take most of the time."""
    findings = read_findings(
        teacher=None, cache=None, compressed=(compressed,) if compressed else (), **world.options()
    )
    write(out / "report.json", record_of(findings, "A report"))
    return out


def test_a_difference_is_paired_by_seed_and_by_example(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "a", [0.8, 0.8125, 0.8]), draw(tmp_path / "b", [0.9, 0.9, 0.9125])
    found = between(first, second)
    [accuracy] = [d for d in found.cells if (d.name, d.figure) == ("mlp-8-soft", "accuracy")]
    gaps = np.array([0.9, 0.9, 0.9125]) - np.array([0.8, 0.8125, 0.8])
    assert accuracy.difference == pytest.approx(gaps.mean())
    assert accuracy.half_width > half_width(list(gaps)), "the test examples count too"
    assert (accuracy.verdict, accuracy.tone) == ("higher", "higher")
    back = between(second, first)
    [other] = [d for d in back.cells if (d.name, d.figure) == ("mlp-8-soft", "accuracy")]
    assert (other.difference, other.half_width) == (-accuracy.difference, accuracy.half_width)
    assert other.tone == "lower"


def test_the_same_is_called_the_same(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "a", [0.9, 0.9]), draw(tmp_path / "b", [0.9, 0.9])
    found = between(first, second)
    assert {d.verdict for d in found.cells} == {"the same"} and not found.changed
    assert "the same in both: 2 of 2" in "\n".join(lines(found))


def test_other_examples_are_not_tested(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "a", [0.9, 0.9]), tmp_path / "b" / "report"
    draw(tmp_path / "b", [0.5, 0.5])
    record = json.loads((second / "report.json").read_text())
    record["cells"]["mlp-8-soft"]["examples_digest"] = "f" * 64
    (second / "report.json").write_text(json.dumps(record))
    found = between(first, second)
    accuracies = {d.name: d for d in found.cells if d.figure == "accuracy"}
    assert accuracies["mlp-8-soft"].verdict == "not tested" and np.isnan(accuracies["mlp-8-soft"].half_width)
    assert accuracies["mlp-8-soft"].text == "\u221240.0" and "other examples" in found.notes[0]


def test_artefacts_counts_are_exact_and_others_need_intervals(tmp_path: Path) -> None:
    def rows(size: int, accuracy: float, **more: Any) -> list[dict[str, Any]]:
        return [artefact("int8", size=size, milliseconds=0.2, accuracy=accuracy, **more)]

    bounds = {"accuracy_interval": [0.85, 0.95]}
    first = draw(tmp_path / "a", [0.9, 0.9], rows(4000, 0.9, **bounds))
    second = draw(tmp_path / "b", [0.9, 0.9], rows(1000, 0.84, **bounds))
    found = {d.figure: d for d in between(first, second).rows}
    assert (found["Size"].verdict, found["Size"].tone) == ("exact", "higher")
    assert found["Size"].text == "\u22123.0 (0.25 times)"
    assert (
        found["Accuracy"].verdict == "within noise"
    )  # 6 points apart, and half the two intervals in quadrature is 7.1
    assert found["Accuracy"].half_width == pytest.approx(0.05 * 2**0.5)


def test_what_changed_and_what_is_only_in_one(tmp_path: Path) -> None:
    first = draw(tmp_path / "a", [0.9, 0.9])
    world = World(tmp_path / "world")
    world.add("mlp-8", "soft", [0.9, 0.9])
    world.add("mlp-8", "reverse", [0.9, 0.9])
    path = world.evaluations[0] / "details.json"
    details = json.loads(path.read_text())
    details["config"] |= {"temperature": 9.0, "out": "elsewhere"}
    path.write_text(json.dumps(details))
    record(world, tmp_path / "second")
    found = between(first, tmp_path / "second")
    [changed] = found.changed
    assert (changed.name, changed.option, changed.first, changed.second) == ("mlp-8-soft", "temperature", "4.0", "9.0")
    assert found.only_first == ("mlp-8-hard",) and found.only_second == ("mlp-8-reverse",)


def test_the_page_and_its_numbers(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "a", [0.6, 0.6125]), draw(tmp_path / "b", [0.9, 0.9])
    arguments = ["--compare", str(first), str(second), "--out", str(tmp_path / "out")]
    settings: Any = settings_from(ReportConfig, command.make_context("report", arguments).params)
    made = report.run(settings)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "Better in the second report: mlp-8-soft" in page and "What differs?" in page
    assert "--compare" in page and made.figures == ("differences",)
    assert any("mlp-8-soft" in line and "higher" in line for line in made.summary.splitlines())
    saved = json.loads((tmp_path / "out" / "comparison.json").read_text())
    [soft] = [one for one in saved["cells"] if (one["name"], one["figure"]) == ("mlp-8-soft", "accuracy")]
    assert soft["difference"] == pytest.approx(0.29375) and soft["half_width"] > 0


def test_folders_that_are_no_reports(tmp_path: Path) -> None:
    first = draw(tmp_path / "a", [0.9])
    with pytest.raises(ConfigError, match=r"report\.json should be the numbers of a report"):
        between(first, tmp_path)
    (tmp_path / "report.json").write_text('{"cells": {}}')
    with pytest.raises(ConfigError, match="another kind"):
        between(first, tmp_path)
    record = json.loads((first / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**record, "version": 99}))
    with pytest.raises(ConfigError, match="version 1; found 99"):
        between(first, tmp_path)


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--compare takes two reports and nothing else; found --evaluations"):
        ReportConfig(compare=(tmp_path, tmp_path), evaluations=(tmp_path,), out=tmp_path / "out")
    with pytest.raises(ConfigError, match="apart"):
        ReportConfig(evaluations=(tmp_path,), tensorboard=tmp_path / "out" / "board", out=tmp_path / "out")
