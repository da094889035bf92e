"""Several directories of one recipe: means and spread over seeds, paired differences, and refusals that say why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from pipeline import metrics, report
from pipeline.errors import ConfigError
from pipeline.report import ReportConfig
from pipeline.report.differences import between
from pipeline.report.merging import read_compressed
from tests.report.tables import compressed, hits_of

FIRST = {"teacher": 0.9875, "baseline": 0.9625, "int8": 0.95}
SECOND = {"teacher": 0.9875, "baseline": 0.95, "int8": 0.9125}


def two(root: Path, **changes: Any) -> tuple[Path, Path]:
    return compressed(root / "a", FIRST), compressed(root / "b", SECOND, seed=1, **changes)


def test_rows_of_one_name_are_means_with_their_spread(tmp_path: Path) -> None:
    folders = two(tmp_path)
    table = read_compressed(folders)
    rows = {row["name"]: row for row in table["rows"]}
    assert table["seeds"] == [0, 1] and len(table["commands"]) == 2
    row = rows["int8"]
    assert row["accuracy"] == pytest.approx(0.93125) and row["seeds"] == 2
    assert row["accuracy_std"] == pytest.approx(0.0375 / np.sqrt(2))
    assert row["latency"]["32"]["p50"] == pytest.approx(0.25) and row["bytes"] == 1900
    assert row.get("mcnemar_teacher") is None
    ours = (hits_of(0.95) + hits_of(0.9125, 7)) / 2
    theirs = (hits_of(0.9625) + hits_of(0.95, 7)) / 2
    expected = metrics.compare({0: 0.95, 1: 0.9125}, {0: 0.9625, 1: 0.95}, ours, theirs)
    gap = row["against_baseline"]
    assert (gap["difference"], gap["half_width"]) == pytest.approx((expected.difference, expected.half_width))
    assert gap["verdict"] == expected.verdict and row["against_source"] == {"row": "baseline", **gap}


def test_without_the_hits_the_seeds_tell(tmp_path: Path) -> None:
    folders = compressed(tmp_path / "a", FIRST, keep=False), compressed(tmp_path / "b", SECOND, seed=1, keep=False)
    rows = {row["name"]: row for row in read_compressed(folders)["rows"]}
    expected = metrics.half_width([0.95 - 0.9625, 0.9125 - 0.95])
    assert rows["int8"]["against_baseline"]["half_width"] == pytest.approx(expected)
    single = [read_compressed([folder])["rows"][2]["against_teacher"] for folder in folders]
    over = metrics.half_width([one["difference"] for one in single])
    both = np.hypot(over, np.mean([one["half_width"] for one in single]))
    assert rows["int8"]["against_teacher"]["half_width"] == pytest.approx(both)


def test_a_row_that_failed_once_says_so(tmp_path: Path) -> None:
    folders = two(tmp_path)
    table = json.loads((folders[1] / "table.json").read_text())
    table["rows"][2] = {"name": "int8", "what": "", "skipped": "no memory", "warnings": []}
    (folders[1] / "table.json").write_text(json.dumps(table))
    row = read_compressed(folders)["rows"][2]
    assert row["seeds"] == 1 and row["warnings"] == ["made for 1 of 2 seeds"] and row["accuracy"] == 0.95


def test_a_warning_of_one_seed_names_it(tmp_path: Path) -> None:
    folders = two(tmp_path)
    table = json.loads((folders[1] / "table.json").read_text())
    table["rows"][1]["warnings"] = ["odd"]
    (folders[1] / "table.json").write_text(json.dumps(table))
    assert read_compressed(folders)["rows"][1]["warnings"] == ["seed 1: odd"]


def test_other_machines_cost_the_times(tmp_path: Path) -> None:
    folders = two(tmp_path, environment={"processor": "Another", "runtime_threads": 1})
    table = read_compressed(folders)
    assert all(row.get("latency") is None for row in table["rows"])
    assert table["notes"] == ["The directories were timed on different machines or threads: times are left out."]
    report.run(ReportConfig(compressed=folders, out=tmp_path / "report"))
    assert "times are left out" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 0}, "are both of student, seed 0"),
        ({"recipe": []}, "has another recipe than .*a. Draw a page of each"),
        ({"student": "cnn-4"}, "has another student than"),
        ({"rows": None}, "table.json should be what softlabels compress measured; it has no rows"),
    ],
)
def test_what_does_not_belong_together(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    first, second = two(tmp_path)
    table = json.loads((second / "table.json").read_text())
    (second / "table.json").write_text(json.dumps({**table, **changes}))
    with pytest.raises(ConfigError, match=message):
        read_compressed([first, second])


def test_other_examples_are_refused(tmp_path: Path) -> None:
    first, second = two(tmp_path)
    kept = json.loads((second / "details.json").read_text())
    for one in kept["models"].values():
        one["examples_digest"] = "f" * 64
    (second / "details.json").write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match="measured on other examples"):
        read_compressed([first, second])


def test_the_page_and_the_board_have_means_and_compare(tmp_path: Path) -> None:
    folders = two(tmp_path)
    report.run(ReportConfig(compressed=folders, out=tmp_path / "seeds"))
    report.run(ReportConfig(compressed=folders[:1], out=tmp_path / "one"))
    page = (tmp_path / "seeds" / "index.html").read_text()
    assert "± 2.7 over 2 seeds" in page and "seeds 0, 1: means over them" in page and "2 seeds a row" in page
    assert "(mean over 2 seeds, s = 2.7 points)" in page and "over 2 seeds." in page
    found = between(tmp_path / "one", tmp_path / "seeds")
    accuracies = {one.name: one for one in found.rows if one.figure == "Accuracy"}
    assert accuracies["teacher"].verdict == "the same" and accuracies["int8"].verdict == "within noise"
    assert accuracies["int8"].half_width > metrics.half_width([0.95, 0.9125])
    report.run(ReportConfig(compare=(tmp_path / "one", tmp_path / "seeds"), out=tmp_path / "differences"))
    assert "<h2>Artefacts</h2>" in (tmp_path / "differences" / "index.html").read_text()


def test_the_board_without_students(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    board = tmp_path / "board"
    made = report.run(ReportConfig(compressed=two(tmp_path), tensorboard=board, out=tmp_path / "report"))
    assert made.scalars and sorted(path.name for path in (board / "compressed").iterdir()) == [
        "baseline",
        "int8",
        "teacher",
    ]
