"""Temperatures of an evaluation: fitted on validation alone, and what is measured after scaling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation import EvaluateReport
from tests.judged import BINS, SEEDS, arrays, calibration, logits_of, nll, softmax
from tests.small_pipeline import COUNTS, SmallPipeline
from tests.test_evaluation import evaluate


def test_a_temperature_is_fitted_on_validation_and_used_on_test(
    small: SmallPipeline, sure: Path, tmp_path: Path
) -> None:
    report = evaluate(small, tmp_path / "out", run=sure, bins=BINS, batch_size=7)
    assert report.details["calibration"] == {"fitted_on": "validation", "left_out": {}}
    confidence = []
    for seed in SEEDS:
        scaled = report.details["seeds"][str(seed)]["calibrated"]
        t = scaled["temperature"]
        held, labels = logits_of(small, sure, seed, "validation")
        grid = np.exp(np.linspace(-4, 4, 4001))
        best = grid[np.argmin([nll(held / g, labels) for g in grid])]
        assert t == pytest.approx(best, rel=0.003) and t > 1.2, "too sure"
        assert nll(held / t, labels) < nll(held, labels)
        assert nll(held / t, labels) <= min(nll(held / (t * f), labels) for f in (0.999, 1.001, best / t))
        logits, labels = logits_of(small, sure, seed, "test")
        for name, value in calibration(logits / t, labels).items():
            assert scaled[name] == pytest.approx(value, rel=1e-4), name
        confidence += softmax(logits / t).max(axis=1).tolist()
    pooled = report.details["reliability_calibrated"]
    assert pooled["counts"] == np.histogram(confidence, np.linspace(0, 1, BINS + 1))[0].tolist()
    assert pooled != report.details["reliability"]


def scaled_figures(report: EvaluateReport) -> set[str]:
    return {"temperature", "calibrated_nll", "calibrated_ece"} & report.metrics.keys()


def relabelled(small: SmallPipeline, path: Path, labels: np.ndarray) -> str:
    archive = dict(np.load(small.data.removeprefix("arrays:")))
    archive["y"][archive["split"] == "validation"] = labels
    np.savez(path, **archive)
    return f"arrays:{path}"


def test_what_is_measured_is_never_what_a_temperature_is_fitted_on(
    small: SmallPipeline, sure: Path, tmp_path: Path
) -> None:
    found = evaluate(small, tmp_path / "a", run=sure, split="validation")
    assert found.details["calibration"]["fitted_on"] is None
    assert "validation is what was measured" in found.details["calibration"]["left_out"]["1"]
    assert found.details["seeds"]["0"]["calibrated"] is found.details["reliability_calibrated"] is None
    assert not scaled_figures(found)
    train = evaluate(small, tmp_path / "b", run=sure, split="train", fidelity_on_train=True)
    test = evaluate(small, tmp_path / "c", run=sure)
    for seed in map(str, SEEDS):
        own, other = train.details["seeds"][seed], test.details["seeds"][seed]
        assert own["calibrated"]["temperature"] == other["calibrated"]["temperature"]
        assert own["train"]["kl_to_teacher"] == own["kl_to_teacher"] and other["train"] is None


def test_the_temperature_does_not_depend_on_the_split_measured(
    small: SmallPipeline, sure: Path, tmp_path: Path
) -> None:
    """Other labels and images of test change no temperature; other labels of validation do."""
    plain = evaluate(small, tmp_path / "a", run=sure, cache="none")
    archive = dict(np.load(small.data.removeprefix("arrays:")))
    test = archive["split"] == "test"
    archive["x"][test], archive["y"][test] = -archive["x"][test], (archive["y"][test] + 1) % 3
    np.savez(tmp_path / "test.npz", **archive)
    other = evaluate(small, tmp_path / "b", run=sure, cache="none", data=f"arrays:{tmp_path / 'test.npz'}")
    assert other.metrics["temperature"] == plain.metrics["temperature"]
    assert other.metrics["calibrated_nll"] != plain.metrics["calibrated_nll"]
    labels = arrays(small, "validation")[1].copy()
    labels[:3] = (labels[:3] + 1) % 3
    data = relabelled(small, tmp_path / "validation.npz", labels)
    assert (
        evaluate(small, tmp_path / "c", run=sure, cache="none", data=data).metrics["temperature"]
        != (plain.metrics["temperature"])
    )


def test_where_there_is_no_best_temperature_the_reason_is_told(
    small: SmallPipeline, sure: Path, tmp_path: Path
) -> None:
    """The labels are what seed 0 says: it is right on all of validation, and seed 1 is not."""
    data = relabelled(small, tmp_path / "0.npz", logits_of(small, sure, 0, "validation")[0].argmax(axis=1))
    found = evaluate(small, tmp_path / "a", run=sure, cache="none", data=data)
    calibration, seeds = found.details["calibration"], found.details["seeds"]
    assert calibration["fitted_on"] == "validation" and list(calibration["left_out"]) == ["0"]
    assert "every label to have the largest logit" in calibration["left_out"]["0"]
    assert seeds["0"]["calibrated"] is None and seeds["1"]["calibrated"]["temperature"] > 0
    assert sum(found.details["reliability_calibrated"]["counts"]) == COUNTS["test"], "seed 1 alone"
    assert not scaled_figures(found), "a mean over some seeds does not compare with one over all"


def test_no_labels_of_validation_or_no_wish_for_it(small: SmallPipeline, sure: Path, tmp_path: Path) -> None:
    data = relabelled(small, tmp_path / "none.npz", np.full(COUNTS["validation"], -1))
    unlabelled = evaluate(small, tmp_path / "a", run=sure, cache="none", data=data)
    assert "no labelled validation examples" in unlabelled.details["calibration"]["left_out"]["0"]
    off = evaluate(small, tmp_path / "b", run=sure, cache="none", calibrate=False)
    assert off.details["calibration"] is off.details["reliability_calibrated"] is None
    on = evaluate(small, tmp_path / "c", run=sure, cache="none")
    assert not scaled_figures(unlabelled) and not scaled_figures(off) and len(scaled_figures(on)) == 3
    assert off.metrics.items() <= on.metrics.items(), "nothing else changes"
    assert off.details["seeds"]["1"]["mcnemar"] is off.details["seeds"]["1"]["agreement_where_teacher_wrong"] is None


def test_corrected_logits_are_what_is_scaled(small: SmallPipeline, sure: Path, tmp_path: Path) -> None:
    found = evaluate(small, tmp_path / "a", run=sure, correct_class=("middle",))
    for seed in SEEDS:
        move = found.details["correction"]["bias"][str(seed)][0] * np.eye(3)[1]
        held, labels = logits_of(small, sure, seed, "validation")
        t = found.details["seeds"][str(seed)]["calibrated"]["temperature"]
        near = [nll((held + move) / (t * f), labels) for f in (0.999, 1, 1.001)]
        assert near[1] == min(near)
        logits, labels = logits_of(small, sure, seed, "test")
        expected = nll((logits + move) / t, labels)
        assert found.details["seeds"][str(seed)]["calibrated"]["nll"] == pytest.approx(expected, rel=1e-4)
