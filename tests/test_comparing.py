"""``softlabels compare``: differences of paired seeds, what chance explains, and what was expected."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.errors import ConfigError
from pipeline.evaluation.comparing import CompareConfig, outcome, read_comparison, run
from pipeline.metrics import Comparison
from stages.cli import main

EXAMPLES = 40


def evaluation(
    folder: Path, figures: Mapping[int, Mapping[str, float | None]], hits: Sequence[int] = (), **more: Any
) -> Path:
    """An evaluation whose seeds have ``figures``; example k was recognised by ``hits[k]`` seeds."""
    folder.mkdir()
    details = {
        "examples_digest": "e" * 64,
        "seeds": {str(seed): dict(found) for seed, found in figures.items()},
        "hits": list(hits) or [len(figures)] * EXAMPLES,
        "omitted_class_rows": None,
        **more,
    }
    (folder / "details.json").write_text(json.dumps(details))
    return folder


def accuracies(*values: float) -> dict[int, dict[str, float | None]]:
    return {seed: {"accuracy": value, "omitted_class_accuracy": None} for seed, value in enumerate(values)}


def test_the_difference_is_of_paired_seeds_and_its_interval_of_both_causes(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", accuracies(0.90, 0.94, 0.95), [3] * 36 + [2] * 4)
    second = evaluation(tmp_path / "b", accuracies(0.85, 0.90, 0.92), [3] * 32 + [0] * 8)
    found = run(CompareConfig(first=first, second=second, out=tmp_path / "deep" / "c.json")).as_dict()
    differences = np.array([0.05, 0.04, 0.03])
    by_seeds = 4.303 * differences.std(ddof=1) / math.sqrt(3)
    gaps = np.array([0.0] * 32 + [1.0] * 4 + [2 / 3] * 4)
    variance = ((gaps**2).sum() + 1) / 42 - (gaps.sum() / 42) ** 2
    by_examples = 1.96 * math.sqrt(variance / 42)
    assert found["difference"] == pytest.approx(0.04)
    assert (found["by_seeds"], found["by_examples"]) == pytest.approx((by_seeds, by_examples))
    assert found["half_width"] == pytest.approx(math.hypot(by_seeds, by_examples))
    assert found["paired_seeds"] == 3 and found["outcome"] == ""
    assert read_comparison(tmp_path / "deep" / "c.json") == found


def test_means_are_of_the_seeds_that_both_have(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", accuracies(0.90, 0.80, 0.10))
    second = evaluation(tmp_path / "b", accuracies(0.85, 0.70))
    found = run(CompareConfig(first=first, second=second))
    assert (found.first, found.second) == pytest.approx((0.85, 0.775))
    assert found.comparison.difference == pytest.approx(found.first - found.second)


def test_the_omitted_class_counts_its_own_examples(tmp_path: Path) -> None:
    seeds = {k: {"accuracy": 0.5, "omitted_class_accuracy": 0.5} for k in range(2)}
    rows = [0, 1, 2, 3]
    first = evaluation(tmp_path / "a", seeds, [2, 2, 0, 0] + [0] * 36, omitted_class_rows=rows)
    second = evaluation(tmp_path / "b", seeds, [0, 0, 2, 2] + [0] * 36, omitted_class_rows=rows)
    found = run(CompareConfig(first=first, second=second, metric="omitted_class_accuracy"))
    assert found.comparison.by_examples == pytest.approx(1.96 * math.sqrt((4 + 1) / 6 / 6))


def test_figures_without_examples_have_the_interval_of_seeds_alone(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", {k: {"ece": 0.01 + 0.001 * k} for k in range(3)})
    second = evaluation(tmp_path / "b", {k: {"ece": 0.08} for k in range(3)})
    config = CompareConfig(first=first, second=second, metric="ece", expect="lower", claim="Less sure", source="Guo")
    found = run(config)
    assert found.as_dict()["by_examples"] is None and found.outcome == "as expected"
    text = found.summary.splitlines()
    assert text[0] == "Guo, Less sure" and text[2] == "expected lower: as expected"
    assert "1.1 and 8.0%, -6.9 ± 0.2 points (95%: paired seeds): lower" in text[1]


@pytest.mark.parametrize(
    ("difference", "reach", "expect", "margin", "said"),
    [
        (0.03, 0.01, "higher", None, "as expected"),
        (0.03, 0.01, "lower", None, "the other way"),
        (-0.03, 0.01, "lower", None, "as expected"),
        (-0.03, 0.04, "higher", None, "within noise"),
        (0.00, 0.009, "alike", 0.01, "as expected"),
        (0.005, 0.009, "alike", 0.01, "not shown"),
        (-0.03, 0.009, "alike", 0.01, "the other way"),
        (0.0, math.nan, "higher", None, "within noise"),
        (0.0, math.nan, "alike", 0.01, "not shown"),
    ],
)
def test_outcomes(difference: float, reach: float, expect: str, margin: float | None, said: str) -> None:
    assert outcome(Comparison(difference, reach, math.nan, 5), expect, margin) == said


def test_a_margin_is_in_the_unit_that_is_printed(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", {k: {"nll": 0.5, "ece": 0.010} for k in range(3)})
    second = evaluation(tmp_path / "b", {k: {"nll": 0.6, "ece": 0.015} for k in range(3)})
    alike = {"first": first, "second": second, "expect": "alike"}
    assert run(CompareConfig(**alike, metric="ece", margin=1.0)).outcome == "as expected"
    assert run(CompareConfig(**alike, metric="ece", margin=0.4)).outcome == "the other way"
    assert run(CompareConfig(**alike, metric="nll", margin=0.2)).outcome == "as expected"


def test_one_error_lists_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        CompareConfig(first=tmp_path, second=tmp_path, metric="f1", expect="alike", out=tmp_path / "there")
    text = str(error.value)
    assert "--metric should be one of" in text and "--margin go together" in text and "there.json" in text
    with pytest.raises(ConfigError, match="above 0"):
        CompareConfig(first=tmp_path, second=tmp_path, expect="alike", margin=0)


def test_what_does_not_compare_is_refused(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", accuracies(0.9))
    others = evaluation(tmp_path / "b", accuracies(0.9), examples_digest="f" * 64)
    with pytest.raises(ConfigError, match="other examples"):
        run(CompareConfig(first=first, second=others))
    with pytest.raises(ConfigError, match="no KL to the teacher"):
        run(CompareConfig(first=first, second=first, metric="kl_to_teacher"))
    with pytest.raises(ConfigError, match="no accuracy on the omitted class"):
        run(CompareConfig(first=first, second=first, metric="omitted_class_accuracy"))
    with pytest.raises(ConfigError, match="details of an evaluation"):
        run(CompareConfig(first=first, second=tmp_path / "none"))


def test_a_file_of_another_kind_stays(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", accuracies(0.9))
    mine = tmp_path / "mine.json"
    for content in ("{}", "[1]", "no JSON"):
        mine.write_text(content)
        with pytest.raises(ConfigError, match="holds no comparison"):
            run(CompareConfig(first=first, second=first, out=mine))
        assert mine.read_text() == content
    mine.unlink()
    for _ in range(2):
        run(CompareConfig(first=first, second=first, out=mine))


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evaluation(tmp_path / "a", accuracies(0.95, 0.96, 0.95))
    evaluation(tmp_path / "b", accuracies(0.80, 0.81, 0.81))
    Path("params.yaml").write_text("claims:\n  c: {first: a, second: b, expect: higher, claim: It helps}\n")
    found = CliRunner().invoke(main, ["compare", "--params", "params.yaml:claims.c", "--out", "c.json"])
    assert found.exit_code == 0, found.output
    assert "It helps" in found.output and "expected higher: as expected" in found.output
    assert read_comparison(Path("c.json"))["claim"] == "It helps"
    assert CliRunner().invoke(main, ["compare", "a"]).exit_code == 2
