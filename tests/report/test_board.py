"""The same numbers elsewhere: TensorBoard's own reader and DVC read what the page shows."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from pipeline import report
from pipeline.errors import ConfigError, MissingDependencyError
from pipeline.report import ReportConfig
from pipeline.report.reading import read_findings
from pipeline.report.series import all_series
from tests.report.synthetic import World, artefact, full_world

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "world")
    made.add("mlp-8", "soft", [0.9, 0.9125])
    made.add("mlp-8", "hard", [0.8, 0.8125])
    return made


def test_events_hold_what_the_page_shows(world: World, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = [artefact("int8", size=1500, milliseconds=0.25, accuracy=0.94)]
    board = tmp_path / "board"
    made = report.run(
        ReportConfig(
            **world.options(), compressed=(world.add_compressed(rows),), tensorboard=board, out=tmp_path / "report"
        )
    )
    read = EventAccumulator(str(board / "mlp-8-soft" / "seed-1")).Reload()
    [accuracy] = read.Scalars("test/accuracy")
    assert (accuracy.step, accuracy.value) == (20, pytest.approx(0.9125))
    curve = read.Scalars("validation/accuracy")
    assert [event.step for event in curve] == list(range(1, 21))
    assert [event.value for event in curve] == pytest.approx([0.9 - 0.5 / (e + 1) for e in range(20)])
    artefacts = EventAccumulator(str(board / "compressed" / "int8")).Reload()
    assert artefacts.Scalars("artefact/bytes")[0].value == 1500
    assert artefacts.Scalars("artefact/latency/32/p50")[0].value == pytest.approx(0.25)
    folders = {path.parent for path in board.rglob("*tfevents*")}
    total = 0
    for folder in folders:
        reader = EventAccumulator(str(folder)).Reload()
        total += sum(len(reader.Scalars(tag)) for tag in reader.Tags()["scalars"])
    assert made.scalars == total and len(folders) == 5


def test_a_second_time_replaces_and_strangers_stay(world: World, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    board = tmp_path / "board"
    config = ReportConfig(**world.options(), tensorboard=board, out=tmp_path / "report")
    report.run(config)
    count = len(list(board.rglob("*tfevents*")))
    report.run(config)
    assert len(list(board.rglob("*tfevents*"))) == count
    (board / "mlp-8-soft" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"mlp-8-soft/thesis\.tex"):
        report.run(config)
    assert (board / "mlp-8-soft" / "thesis.tex").exists()


def test_without_the_package(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"needs tensorboard.*softlabels\[tensorboard\]"):
        report.run(ReportConfig(**world.options(), tensorboard=tmp_path / "board", out=tmp_path / "report"))
    assert not (tmp_path / "report").exists()


def test_plots_are_the_numbers_of_the_figures(world: World, tmp_path: Path) -> None:
    report.run(ReportConfig(**world.options(), out=tmp_path / "report"))
    with (tmp_path / "report" / "plots" / "accuracy.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["name"], int(row["seed"])): float(row["accuracy"]) for row in rows}
    assert found[("mlp-8-soft", 1)] == pytest.approx(91.25) and len(found) == 4
    findings = read_findings(teacher=None, cache=None, compressed=(), **world.options())
    named = {series.name: series for series in all_series(findings)}
    assert set(named) == {"accuracy", "mean", "curves", "reliability"}
    assert all(len(row) == len(series.columns) for series in named.values() for row in series.rows)
    curve = [row for row in named["curves"].rows if row[0] == "mlp-8-soft"]
    assert len(curve) == 20 and curve[0][2] == pytest.approx(40)


def test_what_dvc_plots_is_written_and_has_its_axes(tmp_path: Path) -> None:
    """Each of ``plots`` in dvc.yaml: a series of the report, columns of it, and a template of DVC's or of ours."""
    shipped = {"bar_horizontal", "linear", "scatter", *(path.stem for path in (ROOT / ".dvc" / "plots").glob("*.json"))}
    world = full_world(tmp_path)
    rows = [artefact("int8", size=1500, milliseconds=0.25, accuracy=0.94)]
    compressed = world.add_compressed(rows)
    findings = read_findings(teacher=None, cache=None, **{**world.options(), "compressed": (compressed,)})
    named = {f"report/plots/{series.name}.csv": series for series in all_series(findings)}
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
    assert {path for plot in plots for path in plot} == set(named)
    for plot in plots:
        for path, options in plot.items():
            assert {options["x"], options["y"]} <= set(named[path].columns), path
            assert options["template"] in shipped, path


def test_templates_name_columns_that_their_series_have() -> None:
    for path in sorted((ROOT / ".dvc" / "plots").glob("*.json")):
        template = json.loads(path.read_text(encoding="utf-8"))
        assert template["spec"]["encoding"]["color"]["field"] == "name", path
