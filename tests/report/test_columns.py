"""Tables of artefacts: a figure is shown when a row has it, sorts by its value, and its command can be typed."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from pipeline import report
from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.table import Row
from pipeline.report import ReportConfig, commands
from pipeline.report.columns import COLUMNS, columns_of, rows_table
from pipeline.report.reading import read_findings
from pipeline.report.search import front
from pipeline.report.series import front_commands, front_table
from pipeline.report.tables import Entry, table
from pipeline.training import TrainConfig
from stages.evaluate import command as evaluate_command
from stages.options import settings_from
from stages.train import command as train_command
from tests.report.synthetic import World, artefact, write

POINTS: list[dict[str, Any]] = [
    {"name": "a", "accuracy": 0.9, "bytes": 1000, "latency": 0.1, "on_front": True, "command": "softlabels compress a"},
    {
        "name": "b",
        "accuracy": 0.8,
        "bytes": 2000,
        "latency": 0.2,
        "on_front": False,
        "command": "softlabels compress b",
    },
    {"name": "c", "accuracy": 0.95, "bytes": 3000, "latency": {"1": {"p50": 0.4}}, "on_front": True, "command": "c"},
]


def heads(rows: list[dict[str, Any]]) -> list[str]:
    made = rows_table("rows", rows)
    assert made is not None
    return [head.title for head in made.heads]


def test_a_column_is_there_when_a_row_has_it() -> None:
    plain = artefact("a", size=1000, milliseconds=0.1, accuracy=0.9)
    assert "Multiply-adds, millions" not in heads([plain])
    assert "Multiply-adds, millions" in heads([plain, {**plain, "name": "b", "macs": 1_500_000}])


def test_batch_sizes_and_ranks_become_columns_in_order() -> None:
    row = artefact("a", size=1000, milliseconds=0.1, accuracy=0.9)
    row["latency"]["8"] = {"p50": 0.3, "p95": 0.4}
    row |= {"top_5_accuracy": 0.99, "top_10_accuracy": 1.0}
    found = heads([row])
    batches = [title for title in found if title.startswith("Batch")]
    assert [title.split(",")[0] for title in batches] == ["Batch 1", "Batch 8", "Batch 32"]
    assert found.index("Top 5, %") < found.index("Top 10, %")


def test_the_best_that_is_no_control_stands_out() -> None:
    rows = [
        artefact("teacher", size=9000, milliseconds=0.9, accuracy=0.99, control=True),
        artefact("small", size=1000, milliseconds=0.5, accuracy=0.90),
        artefact("good", size=3000, milliseconds=0.1, accuracy=0.95),
    ]
    made = rows_table("rows", rows)
    assert made is not None
    titles = [head.title for head in made.heads]
    strong = {
        title: [str(line[0].text) for line in made.groups[0].rows if line[titles.index(title)].strong]
        for title in ("Accuracy, %", "Size, kB")
    }
    assert strong == {"Accuracy, %": ["good"], "Size, kB": ["small"]}


def test_notes_travel_with_their_row() -> None:
    made = rows_table("rows", [artefact("a", size=1, milliseconds=1, accuracy=0.9, warnings=["slower than b"])])
    assert made is not None and made.groups[0].rows[0][0].notes == ("Slower than b.",)


def test_every_field_of_a_row_with_one_number_is_a_column() -> None:
    """A field that compress writes and the page does not show would be lost."""
    known = {column.key.split(".")[0] for column in COLUMNS}
    numbers = {f.name for f in dataclasses.fields(Row) if str(f.type) in ("int | None", "float | None")}
    assert numbers - {"seconds"} <= known


def test_values_sort_by_number_and_none_sorts_last() -> None:
    values = [Entry("1,000.0", 1000.0), Entry("\u2013"), Entry("9", 9)]
    made = table("t", ["Name", "Value"], zip("bac", values, strict=True))
    assert made is not None and made.numeric == [False, True]
    assert [row[1].key for row in made.groups[0].rows] == ["1000", "", "9"]
    assert Entry("x", math.nan).key == ""


def test_the_search_is_drawn_and_each_point_has_its_command(tmp_path: Path) -> None:
    compressed = {"rows": [artefact("teacher", size=9000, milliseconds=0.9, accuracy=0.99)], "front": POINTS}
    assert front({"rows": compressed["rows"]}) is None
    drawing = front(compressed)
    assert drawing is not None and drawing.png.startswith(b"\x89PNG")
    made = front_table(compressed)
    assert made is not None
    assert [row[-1].text for row in made.groups[0].rows] == ["0.100", "0.200", "0.400"]
    commands_of = front_commands(compressed)
    assert commands_of is not None
    assert [row[1].text for row in commands_of.groups[0].rows] == [
        "softlabels compress a",
        "softlabels compress b",
        "c",
    ]
    assert [row[0].tag for row in made.groups[0].rows] == ["front", "", "front"]


def test_commands_come_to_the_options_that_were_recorded(tmp_path: Path) -> None:
    """What the page says is parsed by the command itself, and gives the run's configuration again."""
    world = World(tmp_path)
    world.add("mlp-8", "few-hard", [0.9, 0.8], corrected=["<3>"])
    [cell] = read_findings(teacher=None, cache=None, compressed=(), **world.options()).cells
    program, name, *words = shlex.split(commands.train(cell))
    assert (program, name) == ("softlabels", "train")
    parsed: Any = settings_from(TrainConfig, train_command.make_context("train", words).params)
    assert (parsed.labelled_fraction, parsed.alpha, parsed.student) == (0.05, 0.0, "mlp-8")
    assert parsed.cache == "caches/digits" and parsed.out == world.runs[0]
    program, name, *words = shlex.split(commands.evaluate(cell))
    assert (program, name) == ("softlabels", "evaluate")
    found: Any = settings_from(EvaluateConfig, evaluate_command.make_context("evaluate", words).params)
    assert found.run == world.runs[0] and found.out == world.evaluations[0]
    assert found.correct_class == ("<3>",) and found.bins == 3 and found.split == "test"


def test_columns_of_nothing() -> None:
    assert columns_of([]) == [] and rows_table("rows", []) is None


def test_models_side_by_side_are_the_same_table(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("mlp-8", "soft", [0.9])
    rows = [artefact("a.onnx", size=1000, milliseconds=0.1, accuracy=0.9, joules=0.25, seeds=1)]
    write(tmp_path / "several" / "details.json", {"rows": rows, "examples": 80, "split": "test"})
    options = {**world.options(), "models": tmp_path / "several"}
    report.run(ReportConfig(**options, out=tmp_path / "report"))
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    section = page.split('<section id="models">')[1].split("</section>")[0]
    assert "a.onnx" in section and "Energy, J" in section and "0.250" in section
    with pytest.raises(ConfigError, match=r"several models; its details\.json has no rows"):
        read_findings(teacher=None, cache=None, compressed=(), **{**world.options(), "models": world.evaluations[0]})


def test_a_table_that_keeps_its_machine_apart_is_read(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("mlp-8", "soft", [0.9])
    folder = world.add_compressed([artefact("int8", size=1500, milliseconds=0.25, accuracy=0.94)])
    table = json.loads((folder / "table.json").read_text())
    machine = {"processor": table.pop("processor"), "runtime_threads": table.pop("runtime_threads")}
    point = {"name": "int8", "accuracy": 0.94, "validation_accuracy": 0.95, "bytes": 1500, "ms": 0.3, "on_front": True}
    write(folder / "table.json", {**table, "environment": machine, "front": [{**point, "command": "softlabels x"}]})
    report.run(ReportConfig(**world.options(), compressed=(folder,), out=tmp_path / "report"))
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "1 thread, on A &lt;CPU&gt;" in page and "<h3>The search</h3>" in page
