"""The rows: warnings by default, paired comparisons, and a table that people can read."""

from __future__ import annotations

import numpy as np

from pipeline import metrics
from pipeline.artefacts.checking import Check
from pipeline.artefacts.latency import Latency
from pipeline.evaluation.rendering import render
from pipeline.evaluation.rows import relate
from pipeline.evaluation.table import Row, flat, warn


def row(name: str, *, size: int, milliseconds: float, source: str | None = None, accuracy: float = 0.9) -> Row:
    made = Row(name=name, what="", source=source, bytes=size, accuracy=accuracy)
    made.timed([{1: Latency(milliseconds, 2 * milliseconds, 10), 32: Latency(1.0, 1.0, 10)}])
    return made


def test_slower_and_no_smaller_are_said() -> None:
    rows = [row("baseline", size=1000, milliseconds=1.0), row("int8", size=990, milliseconds=1.2, source="baseline")]
    warn(rows)
    assert rows[0].warnings == []
    assert [text.split(" than ")[0] for text in rows[1].warnings] == ["no smaller", "slower"]
    assert "at batch 1" in rows[1].warnings[1]


def test_a_gain_is_not_warned_about() -> None:
    rows = [row("baseline", size=1000, milliseconds=1.0), row("int8", size=300, milliseconds=1.02, source="baseline")]
    warn(rows)
    assert rows[1].warnings == []


def test_a_float_model_is_not_held_against_a_file() -> None:
    rows = [row("pruned", size=900, milliseconds=1.0), row("scratch", size=1000, milliseconds=9.0, source="pruned")]
    rows[0].runtime, rows[1].runtime = "onnxruntime 1.31.1", "torch 2.13.0"
    warn(rows)
    assert rows[1].warnings == []


def test_problems_of_a_file_become_warnings() -> None:
    made = row("int8", size=1, milliseconds=1)
    made.tried(Check(max_difference=0.1, repeat_identical=False, batch_difference=0.0, scale=1.0))
    assert made.warnings == ["repeated calls on the same input differ"]


def test_comparison_is_paired_by_example() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(200, 4)), random.integers(0, 4, 200)
    worse = logits.copy()
    worse[:30] = -worse[:30]
    scores = {"baseline": {0: metrics.score(logits, labels)}, "int8": {0: metrics.score(worse, labels)}}
    rows = [Row("baseline", ""), Row("int8", "", source="baseline"), Row("pruned", "", source="baseline")]
    relate(rows, scores, "baseline")
    mine, other = scores["int8"][0], scores["baseline"][0]
    assert rows[1].agreement == (mine.predictions == other.predictions).mean()
    gap = rows[1].against_baseline
    assert gap is not None and rows[1].mcnemar_source is not None
    assert np.isclose(gap["difference"], mine.accuracy - other.accuracy)
    assert rows[1].mcnemar_source["p_value"] == metrics.mcnemar(mine.correct, other.correct).p_value
    assert rows[0].against_baseline is None and rows[2].against_baseline is None


def test_flat_figures_are_numbers_and_ratios_to_the_baseline() -> None:
    rows = [row("baseline", size=4000, milliseconds=2.0), row("pruned-int8", size=1000, milliseconds=1.0)]
    rows.append(Row("skipped", "", skipped="needs onnx"))
    found = flat(rows, "baseline")
    assert found["pruned_int8_kilobytes"] == 1.0
    assert found["pruned_int8_speedup_1"] == 2.0
    assert not any("skipped" in key for key in found)


def test_the_text_shows_reasons() -> None:
    rows = [row("baseline", size=4000, milliseconds=2.0), Row("pruned", "", skipped="pruning needs torch-pruning")]
    lines = render(rows)
    assert "ms at 32" in lines[0]
    assert any("skipped: pruning needs torch-pruning" in line for line in lines)
