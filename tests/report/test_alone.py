"""Pages without evaluations of students: from tables of artefacts and models alone, with nothing empty on them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from pipeline import report
from pipeline.errors import ConfigError
from pipeline.report import ReportConfig
from pipeline.report.columns import COLUMNS, MOST, TOPICS, more_tables, rows_table
from pipeline.report.gains import answers
from pipeline.report.reading import read_findings
from pipeline.report.search_gains import within
from pipeline.report.trials import tables
from tests.report.synthetic import World, artefact
from tests.report.tables import compressed, models
from tests.report.test_report import Page

ACCURACIES = {"teacher": 0.9875, "baseline": 0.9625, "int8": 0.95, "pruned": 0.8}
FRONT: list[dict[str, Any]] = [
    {"name": "baseline", "validation_accuracy": 0.97, "accuracy": 0.96, "bytes": 4000, "ms": 1.0, "on_front": True},
    {"name": "a", "validation_accuracy": 0.967, "accuracy": 0.95, "bytes": 2000, "ms": 0.5, "on_front": True},
    {"name": "b", "validation_accuracy": 0.967, "accuracy": 0.99, "bytes": 2500, "ms": 0.6, "on_front": False},
    {"name": "c", "validation_accuracy": 0.93, "accuracy": 0.92, "bytes": 500, "ms": 0.4, "on_front": True},
]


def page_of(out: Path, **options: Any) -> str:
    report.run(ReportConfig(**options, out=out))
    return (out / "index.html").read_text(encoding="utf-8")


def told(**options: Any) -> dict[str, str]:
    findings = read_findings(**{"teacher": None, "cache": None, "runs": (), "evaluations": (), **options})
    return {answer.question.split()[1]: " ".join(answer.sentences) for answer in answers(findings)}


def check(page: str) -> list[str]:
    """The sections of a page that has no empty heading, no link to nowhere and no figure of students."""
    parsed = Page(page)
    assert parsed.open == []
    sections = re.findall(r'<section id="([a-z]+)"(.*?)</section>', page, re.DOTALL)
    for name, body in sections:
        rest = re.sub(r"<h2>.*?</h2>", "", body, flags=re.DOTALL)
        assert re.sub(r"<[^>]*>|\s", "", rest), f"{name} is empty"
    names = [name for name, _ in sections]
    links = re.findall(r'<li><a href="#([a-z]+)"', page)
    assert set(links) <= set(names)
    assert not re.search(r"<details><summary>[^<]*</summary>\s*</details>", page)
    return names


def test_compression_alone(tmp_path: Path) -> None:
    folder = compressed(tmp_path / "c", ACCURACIES)
    page = page_of(tmp_path / "report", compressed=(folder,))
    assert check(page) == ["summary", "compression", "provenance"]
    assert "<h1>What compression brought</h1>" in page and "n = 80 test examples, 1 seed a row" in page
    assert "digest dddddddddddd" in page and "A &lt;CPU&gt;, 2 cores, 1 thread of the runtime" in page
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert record["cells"] == {} and record["best"] is None and record["teacher"]["accuracy"] == 0.9875
    with (tmp_path / "report" / "plots" / "pareto.csv").open(encoding="utf-8", newline="") as file:
        found = {row["name"]: row["kind"] for row in csv.DictReader(file)}
    assert found == {"teacher": "control", "baseline": "artefact", "int8": "artefact", "pruned": "artefact"}
    assert [path.name for path in (tmp_path / "report" / "plots").iterdir()] == ["pareto.csv"]


def test_models_alone_and_both(tmp_path: Path) -> None:
    several = models(tmp_path / "m", ACCURACIES)
    page = page_of(tmp_path / "report", models=several)
    assert check(page) == ["summary", "models", "provenance"]
    assert "<h1>Models compared</h1>" in page and "held against baseline" in page
    assert "<summary>Accuracy under each corruption</summary>" in page and '<span class="name">Fog</span>' in page
    assert "<summary>Confusions</summary>" in page
    both = page_of(tmp_path / "both", models=several, compressed=(compressed(tmp_path / "c", ACCURACIES),))
    assert check(both) == ["summary", "models", "compression", "provenance"]
    assert "none were tried" not in both
    assert "Of 4 models on the same examples teacher is the most accurate (98.8%)." in both


def test_runs_teacher_and_cache_beside_it(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    world.add("mlp-8", "soft", [0.9])
    folder = compressed(tmp_path / "c", ACCURACIES)
    page = page_of(
        tmp_path / "report", compressed=(folder,), runs=tuple(world.runs), cache=world.add_cache(), title="Ours <b>"
    )
    assert check(page) == ["summary", "curves", "compression", "costs", "provenance"]
    assert "Accuracy of every run on validation after each epoch" in page
    assert "<h1>Ours &lt;b&gt;</h1>" in page and "digits, digest" in page
    assert "<span>train</span>" in page and "c" * 64 in page


def test_nothing_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of --evaluations, --compressed and --models should name"):
        ReportConfig(out=tmp_path / "report", runs=(tmp_path / "run",))


def test_the_plain_words_follow_from_the_table(tmp_path: Path) -> None:
    found = told(compressed=(compressed(tmp_path / "c", ACCURACIES),))
    # 90 kB / 1 kB; 1 ms / 0.125 ms at both sizes; 4 kB / 1 kB; 0.5 ms / 0.125 ms.
    assert "pruned, takes 1.0 kB: 90 times smaller than the teacher, 8.0 times faster at batch 1" in found["was"]
    assert "4.0 times smaller than the student before compression, 4.0 times faster at batch 1" in found["was"]
    assert "Against the teacher the smallest file changes accuracy by \u221220.0 ± " in found["what"]
    assert "worse, by more than chance explains (\u221220.0 ±" in found["it"] and "McNemar's p < 0.001" in found["it"]
    assert "every row is of a single seed" in found["is"] and "none were tried" in found["is"]
    assert "warnings" not in found


def test_corruptions_and_warnings_are_told(tmp_path: Path) -> None:
    assert (
        "On corrupted images the smallest file is right for 60.0%, against 78.8% for the teacher and 76.2%"
        in told(models=models(tmp_path / "m", ACCURACIES))["what"]
    )
    folder = compressed(tmp_path / "c", ACCURACIES)
    table = json.loads((folder / "table.json").read_text())
    table["rows"][2]["warnings"] = [
        "slower than baseline at batch 1: 2 ms against 1 ms",
        "slower than baseline at batch 32: 9 ms against 8 ms",
    ]
    table["rows"][3]["warnings"] = ["agrees with baseline on 80.0% of the test examples only"]
    table["rows"].append({"name": "mixed", "what": "", "skipped": "no such layer", "warnings": []})
    (folder / "table.json").write_text(json.dumps(table))
    said = told(compressed=(folder,))["warnings"]
    assert "2 of 5 rows have warnings: slower than what it was made from (1) and answers otherwise" in said
    assert "Not made: mixed." in said
    made = rows_table("rows", table["rows"])
    assert made is not None and made.groups[0].rows[2][0].notes == (
        "Slower than baseline at batch 1: 2 ms against 1 ms; at batch 32: 9 ms against 8 ms.",
    )


def test_the_search_in_words_and_budgets(tmp_path: Path) -> None:
    folder = compressed(tmp_path / "c", ACCURACIES, front=[{**point, "command": "x"} for point in FRONT])
    found = told(compressed=(folder,))
    assert "4 recipes were tried; 3 are worth having" in found["was"] and "fast: baseline, a and c." in found["was"]
    assert [(budget, point["name"]) for budget, point in within({"front": FRONT})] == [
        (0.0, "baseline"), (0.005, "a"), (0.05, "c"),
    ]  # fmt: skip
    assert "nothing: baseline (4.0 kB, 97.0%); 0.5 points: a (2.0 kB, 96.7%); 5 points: c" in found["what"]
    page = page_of(tmp_path / "report", compressed=(folder,))
    assert "<h3>The search</h3>" in page and 'aria-label="The smallest file within each loss, table"' in page
    assert "3 of 4" in page


def test_many_columns_are_split_and_none_is_lost() -> None:
    row = artefact("a", size=1000, milliseconds=0.1, accuracy=0.9, nll=0.1, brier=0.1, ece=0.1, macs=9, memory=10)
    row |= {"parameters": 9, "nonzeros": 8, "mce": 1.0, "kl_to_teacher": 0.1, "teacher_agreement": 0.9, "seeds": 3}
    row |= {"accuracy_std": 0.02}
    first, more = rows_table("rows", [row]), more_tables("rows", [row])
    assert first is not None and len(first.heads) - 1 <= MOST and len(more) == 3
    assert first.groups[0].rows[0][1].below == "± 2.0 over 3 seeds"
    titles = [head.title for one in (first, *more) for head in one.heads if head.title != "Artefact"]
    assert len(titles) == len(set(titles)) and {"NLL, nats", "Peak memory, MB", "Seeds"} <= set(titles)
    few = [artefact("a", size=1000, milliseconds=0.1, accuracy=0.9)]
    assert more_tables("rows", few) == []


def test_every_column_has_one_place() -> None:
    for column in COLUMNS:
        places = int(column.main) + sum(column.key.startswith(keys) for _, keys in TOPICS if not column.main)
        assert places == 1, column.key


def test_scans_and_types_of_int8_become_tables() -> None:
    times = {"float": {"1": 0.2}, "U8S8": {"1": 0.1}, "S8S8": {"1": 0.3}}
    rows: list[dict[str, Any]] = [
        {"name": "q", "activations": {"chosen": "U8S8", "milliseconds": times, "skipped": {"S8S8": "no such kernel"}}},
        {"name": "p", "scan": [{"ratio": 0.5, "accuracy": 0.9, "macs": 0.3, "parameters": 0.2}]},
        {
            "name": "s",
            "scan": [{"layer": "conv", "ratio": r, "parameters": 1, "macs": 1, "score": 1 - r} for r in (0.5, 0.25)],
        },
        {"name": "m", "scan": [{"layers": ["conv", "fc"], "divergence": 0.01, "in_float": True}]},
        {"name": "odd", "scan": [{"something": 1}]},
    ]
    found = {one.title: one.tables[0] for one in tables(rows)}
    assert len(found) == 4
    types = found["How the types of int8 were chosen"].groups[0].rows[0]
    assert [entry.text for entry in types] == ["q", "U8S8", "0.200", "0.100", "0.300"]
    assert types[3].strong and types[0].notes == ("S8S8 was not tried: no such kernel.",)
    sensed = found["s: how sensitive each layer is"]
    assert [head.title for head in sensed.heads] == ["Layer", "25% removed", "50% removed"]
    assert [entry.text for entry in sensed.groups[0].rows[0]] == ["conv", "0.750", "0.500"]
    assert [e.text for e in found["p: ratios that were tried"].groups[0].rows[0]] == ["50.0", "90.0", "20.0", "30.0"]
    assert found["m: which layers stay in float"].groups[0].rows[0][2].text == "float"
