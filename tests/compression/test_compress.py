"""The stage as a whole: from runs to files that were run again, with controls, and with packages missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import compression
from pipeline.compression import CompressConfig
from pipeline.compression.choosing import choose
from pipeline.compression.finetuning import training_config
from pipeline.errors import ConfigError
from pipeline.evaluation import open_dataset
from pipeline.runs import read_run
from tests.small_pipeline import COUNTS, SmallPipeline


def config(small: SmallPipeline, out: Path, **options: Any) -> CompressConfig:
    quick = {"epochs": 1, "latency_seconds": 0.001, "device": "cpu", "threads": 1}
    return CompressConfig(**{"runs": (small.soft, small.hard), "out": out, **quick, **options})


@pytest.fixture(scope="module")
def report(small: SmallPipeline, tmp_path_factory: pytest.TempPathFactory) -> compression.CompressReport:
    for package in ("onnx", "onnxscript", "onnxruntime", "torch_pruning"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("out") / "compressed"
    return compression.run(config(small, out, teacher="cnn-4", teacher_weights=small.teacher))


def test_every_row_is_there_and_none_was_skipped(report: compression.CompressReport) -> None:
    rows = {row["name"]: row for row in report.table["rows"]}
    artefacts = {"baseline", "int8", "pruned", "pruned-int8", "pruned-qat"}
    controls = {"teacher", "teacher-int8", "int8-dynamic", "pruned-scratch", "pruned-hard", "finetuned"}
    assert set(rows) == artefacts | controls
    assert {name for name, row in rows.items() if row["control"]} == controls
    assert [row["skipped"] for row in rows.values()] == [None] * len(rows)
    assert rows["pruned"]["parameters"] < rows["baseline"]["parameters"]
    assert rows["pruned"]["parameters"] == rows["pruned-scratch"]["parameters"]


def test_files_and_figures_agree(report: compression.CompressReport) -> None:
    out = Path(report.out)
    table, flat = json.loads((out / "table.json").read_text()), json.loads((out / "metrics.json").read_text())
    assert (table, flat) == (report.table, report.metrics)
    for row in table["rows"]:
        if row["file"]:
            assert row["runtime"].startswith("onnxruntime ")
            assert (out / row["file"]).stat().st_size == row["bytes"]
            assert set(row["latency"]) == {"1", "32"}
            assert row["check"]["repeat_identical"]
    named = {row["file"] for row in table["rows"] if row["file"]} | {"table.json", "metrics.json", "details.json"}
    named |= {"README.md", "recipe.toml", "pruned.safetensors", "controls"}
    assert {path.name for path in out.iterdir()} == named
    assert table["environment"]["processor"] and table["environment"]["runtime_threads"] == 1
    assert table["test_examples"] == COUNTS["test"]


def test_a_file_can_be_used_with_onnxruntime_alone(report: compression.CompressReport, small: SmallPipeline) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    archive = np.load(small.data.removeprefix("arrays:"))
    test = archive["split"] == "test"
    for name in ("baseline", "pruned-int8"):
        session = onnxruntime.InferenceSession(Path(report.out) / f"{name}.onnx", providers=["CPUExecutionProvider"])
        guesses = session.run(None, {"input": archive["x"][test]})[0].argmax(axis=1)
        row = next(row for row in report.table["rows"] if row["name"] == name)
        assert row["accuracy"] == pytest.approx((guesses == archive["y"][test]).mean())


def test_the_summary_is_the_table(report: compression.CompressReport) -> None:
    assert "pruned-int8" in report.summary and report.table["run"] in report.summary.splitlines()[-1]


def test_the_choice_is_made_on_validation_alone(small: SmallPipeline) -> None:
    """The same choice with every test label wrong."""
    runs = [read_run(small.hard), read_run(small.soft)]
    dataset = open_dataset(small.data, (), None)
    before = choose(runs, dataset, batch_size=64)
    dataset.labels[dataset.rows("test")] = (dataset.labels[dataset.rows("test")] + 1) % 3
    after = choose(runs, dataset, batch_size=64)
    assert (before.run.name, before.seed, before.accuracy) == (after.run.name, after.seed, after.accuracy)
    assert before.accuracy >= max(0.0, min(accuracy for _, accuracy in before.considered))


@pytest.mark.parametrize("missing", ["torch_pruning", "onnx", "onnxruntime"])
def test_a_missing_package_leaves_its_reason(
    missing: str, small: SmallPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    report = compression.run(config(small, tmp_path / "out", controls=False))
    rows = {row["name"]: row for row in report.table["rows"]}
    without = {"torch_pruning": ("pruned", "pruned-int8"), "onnx": ("baseline", "int8"), "onnxruntime": ("int8",)}
    reasons = [rows[name]["skipped"] for name in without[missing]]
    assert all(reasons)
    assert missing in reasons[0] and "softlabels[compress]" in reasons[0]
    assert f"skipped: {reasons[0]}" in report.summary
    # The model itself is there whatever is missing, so its accuracy is too.
    assert rows["baseline"]["accuracy"] is not None


def test_fine_tuning_takes_the_cache_even_for_a_student_of_hard_labels(small: SmallPipeline, tmp_path: Path) -> None:
    hard = read_run(small.hard)
    found = training_config(config(small, tmp_path), hard)
    assert (found.cache, found.objective.alpha) == (str(small.cache), 0.9)
    assert training_config(config(small, tmp_path, alpha=0.5, temperature=2.0), hard).objective.alpha == 0.5
    assert training_config(config(small, tmp_path, cache="none"), read_run(small.soft)).objective.alpha == 0


def test_a_run_of_another_release_is_refused(small: SmallPipeline, tmp_path: Path) -> None:
    run = read_run(small.soft)
    strange = type(run)(run.path, {**run.config, "sharpness": 2}, run.record, run.weights)
    with pytest.raises(ConfigError, match="sharpness"):
        training_config(config(small, tmp_path), strange)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": ()}, "--runs"),
        ({"prune": (1.0,)}, "--prune"),
        ({"teacher": "cnn-4"}, "--teacher-weights"),
        ({"importance": "size"}, "--importance"),
        ({"prune": (0.5,), "target_macs": 0.5}, "give one"),
        ({"recipe": Path("r.toml"), "prune": (0.5,)}, "would do nothing"),
        ({"lr": 0.0}, "--lr"),
        ({"calibration": 0}, "--calibration"),
        ({"latency_batch": ()}, "--latency-batch"),
    ],
)
def test_wrong_options(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        CompressConfig(**{"runs": (tmp_path,), "out": tmp_path / "out", **change})


def test_a_folder_of_other_files_is_not_replaced(small: SmallPipeline, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"holds thesis\.tex"):
        compression.run(config(small, tmp_path))
