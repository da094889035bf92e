"""The benchmarks measure something and print it: tables come out, whatever their figures are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import measure, memory
from benchmarks.__main__ import NAMES, main, run_all
from benchmarks.measure import Ratio, Row, Table, at_least, at_most, in_turn, ratio

ROOT = Path(__file__).resolve().parent.parent
IN_PROCESS = tuple(name for name in NAMES if name != "memory")


@pytest.mark.parametrize("name", IN_PROCESS)
def test_each_benchmark_gives_a_table(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (table,) = run_all([name], quick=True, scratch=tmp_path)
    assert table.rows and table.notes
    for row in table.rows:
        assert re.search(r"\d", row.measured), row
        assert (row.met is None) == (row.aim == "shown"), row
    assert f"## {table.title}" in capsys.readouterr().out


def test_a_stage_alone_tells_what_memory_it_took(tmp_path: Path) -> None:
    held = memory.alone("dump", tmp_path, 64)
    assert 0 < held["start"] < held["peak"]


def test_a_stage_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="CacheNotFoundError"):
        memory.alone("train", tmp_path, 64)


def test_the_command_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--out", str(tmp_path / "results"), "dumping"]) == 0
    (path,) = (tmp_path / "results").iterdir()
    text = path.read_text(encoding="utf-8")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-[a-z0-9-]+-cores(-[a-z0-9-]+)?\.md", path.name)
    assert "## Dumping" in text and "python -m benchmarks --quick dumping" in text and "torch" in text
    assert str(path) in capsys.readouterr().out


def test_an_unknown_benchmark_is_wrong_usage() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "rading"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no benchmark rading" in done.stderr and "reading" in done.stderr


def test_some_sections_of_a_benchmark_run_alone(tmp_path: Path) -> None:
    (table,) = run_all(["gpu_language"], quick=True, scratch=tmp_path / "a", only=("bounds",))
    assert table.rows and all("alone" in row.what for row in table.rows)
    with pytest.raises(ValueError, match="no section bound; there are dump, bounds"):
        run_all(["gpu_language"], quick=True, scratch=tmp_path / "b", only=("bound",))


def test_contenders_run_in_turn_and_turn_around() -> None:
    calls: list[str] = []

    def contender(name: str, taken: float):  # type: ignore[no-untyped-def]
        def timed() -> float:
            calls.append(name)
            return taken

        return timed

    times = in_turn({"a": contender("a", 1.0), "b": contender("b", 2.0)}, 3)
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b"]


def test_a_ratio_is_of_rounds_not_of_totals() -> None:
    # One slow round on both sides, as a busy machine gives: the ratio does not move.
    found = ratio([1.0, 1.0, 9.0, 1.0, 1.0], [2.0, 2.0, 18.0, 2.0, 2.0])
    assert found == Ratio(0.5, 0.5, 0.5, 5)


@pytest.mark.parametrize(("value", "met"), [(0.99, True), (1.0, True), (1.01, False)])
def test_aims(value: float, met: bool) -> None:
    found = Ratio(value, value, value, 1)
    assert at_most("a / b", "c", found, 1.0).met is met
    assert at_least("a / b", "c", found, 1.0).met is (value >= 1.0)


def test_a_table_in_markdown() -> None:
    table = Table("Title", (Row("a | b", "c", "1", "at most 2", True), Row("d", "e", "3")), ("why",))
    assert table.markdown().splitlines() == [
        "## Title",
        "",
        "| what | on | measured | aim | met |",
        "|---|---|---|---|---|",
        "| a \\| b | c | 1 | at most 2 | yes |",
        "| d | e | 3 | shown |  |",
        "",
        "- why",
    ]


def test_the_document_counts_the_aims_that_were_met() -> None:
    rows = (Row("a", "b", "1", "at most 2", True), Row("a", "b", "3", "at most 2", False), Row("a", "b", "4"))
    described = measure.machine()
    text = measure.document(described, [Table("T", rows)], "python -m benchmarks", 3.0)
    assert "1 of 2 aims met" in text
    assert described["processor"] in text and described["date"] in text
