"""What an evaluation says of a model's quality and fidelity, against float64 references of its logits."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import CacheMismatchError, ConfigError
from pipeline.evaluation import EvaluateReport
from pipeline.evaluation.comparing import CompareConfig
from pipeline.evaluation.comparing import run as compare
from tests.judged import BINS, SEEDS, arrays, calibration, logits_of, said, softmax
from tests.small_pipeline import COUNTS, SmallPipeline
from tests.test_evaluation import evaluate


@pytest.fixture(scope="module")
def report(small: SmallPipeline, sure: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluateReport:
    return evaluate(
        small, tmp_path_factory.mktemp("out") / "e", run=sure, top_k=2, bins=BINS, fidelity_on_train=True, batch_size=7
    )


def inside(share: float, ends: list[float], n: int) -> None:
    """The ends of Wilson's interval are where the share is 1.96 standard errors, of the end itself, away."""
    low, high = ends
    assert 0 <= low <= share <= high <= 1 and low < high
    for end in ends:
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-5)


def test_quality_and_calibration_are_those_of_the_models(
    small: SmallPipeline, sure: Path, report: EvaluateReport
) -> None:
    for seed in SEEDS:
        figures = report.details["seeds"][str(seed)]
        for split, found in (("test", figures), ("validation", figures["validation"])):
            logits, labels = logits_of(small, sure, seed, split)
            order = np.argsort(-logits, axis=1)
            assert found["accuracy"] == (order[:, 0] == labels).mean()
            assert found["top_2_accuracy"] == (order[:, :2] == labels[:, None]).any(axis=1).mean()
            assert 0.5 < found["accuracy"] < found["top_2_accuracy"]
            low, high = found["top_2_interval"]
            assert low < found["top_2_accuracy"] <= high <= 1
            inside(found["accuracy"], found["accuracy_interval"], COUNTS[split])
        logits, labels = logits_of(small, sure, seed, "test")
        for name, value in calibration(logits, labels).items():
            assert figures[name] == pytest.approx(value, rel=1e-5), name
        for c in range(3):
            right = (logits.argmax(axis=1) == labels)[labels == c]
            assert figures["per_class_accuracy"][c] == right.mean()
            inside(right.mean(), figures["per_class_interval"][c], len(right))


def test_fidelity_on_test_on_train_and_where_the_teacher_is_wrong(
    small: SmallPipeline, sure: Path, report: EvaluateReport
) -> None:
    wrong = said(small, "test").argmax(axis=1) != arrays(small, "test")[1]
    assert report.details["teacher"]["wrong"] == wrong.sum() > 5
    inside(1 - wrong.mean(), report.details["teacher"]["accuracy_interval"], len(wrong))
    for seed in SEEDS:
        figures = report.details["seeds"][str(seed)]
        logits, labels = logits_of(small, sure, seed, "test")
        guesses = logits.argmax(axis=1)
        alike = guesses == said(small, "test").argmax(axis=1)
        assert figures["agreement_where_teacher_wrong"] == alike[wrong].mean() != alike.mean()
        alone, only = int(((guesses == labels) & wrong).sum()), int(((guesses != labels) & ~wrong).sum())
        n, least = alone + only, min(alone, only)
        p = min(1.0, 2 * sum(math.comb(n, i) for i in range(least + 1)) / 2**n)
        assert figures["mcnemar"] == {"only_student": alone, "only_teacher": only, "p_value": pytest.approx(p)}
        for split, found in (("test", figures), ("train", figures["train"])):
            p, q = softmax(said(small, split)), softmax(logits_of(small, sure, seed, split)[0])
            assert found["teacher_agreement"] == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
            assert found["kl_to_teacher"] == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-4)


def test_the_flat_figures_are_means_over_seeds(report: EvaluateReport) -> None:
    seeds = list(report.details["seeds"].values())

    def mean(*path: str) -> float:
        values: list[Any] = seeds
        for name in path:
            values = [value[name] for value in values]
        return round(float(np.mean(values)), 4)

    for name in ("brier", "adaptive_ece", "top_2_accuracy"):
        assert report.metrics[name] == mean(name)
    assert report.metrics["temperature"] == mean("calibrated", "temperature")
    assert report.metrics["calibrated_nll"] == mean("calibrated", "nll")
    assert report.metrics["calibrated_ece"] == mean("calibrated", "ece")
    assert report.metrics["train_teacher_agreement"] == mean("train", "teacher_agreement")
    assert report.metrics["train_kl_to_teacher"] == mean("train", "kl_to_teacher")
    assert all(isinstance(value, (int, float)) for value in report.metrics.values())


def test_top_k_is_left_out_where_it_says_nothing(small: SmallPipeline, tmp_path: Path) -> None:
    for k in (3, 5):
        found = evaluate(small, tmp_path / str(k), top_k=k)
        assert found.details["top_k"] is None and not [name for name in found.metrics if name.startswith("top_")]


def test_evaluations_are_compared_by_what_is_new(
    small: SmallPipeline, sure: Path, report: EvaluateReport, tmp_path: Path
) -> None:
    first, second = Path(report.out), tmp_path / "b"
    other = evaluate(small, second, run=sure, correct_class=("middle",), bins=BINS, calibrate=False)
    found = compare(CompareConfig(first=first, second=first, metric="calibrated_ece"))
    assert found.first == pytest.approx(report.metrics["calibrated_ece"], abs=1e-4)
    found = compare(CompareConfig(first=first, second=second, metric="brier", expect="alike", margin=9.0))
    assert found.second == pytest.approx(other.metrics["brier"], abs=1e-4)
    assert "expected alike within 9: " in found.summary and "  " not in found.summary and " ," not in found.summary
    with pytest.raises(ConfigError, match="no expected calibration error after temperature scaling: no temperature"):
        compare(CompareConfig(first=first, second=second, metric="calibrated_ece"))


# Train.


def test_fidelity_on_train_is_of_what_was_learnt_from(small: SmallPipeline, sure: Path, tmp_path: Path) -> None:
    run = tmp_path / "omit"
    shutil.copytree(sure, run)
    record = json.loads((run / "run.json").read_text())
    record["config"]["omit_class"] = "middle"
    (run / "run.json").write_text(json.dumps(record))
    found = evaluate(small, tmp_path / "out", run=run, fidelity_on_train=True)
    seen = arrays(small, "train")[1] != 1
    alike = logits_of(small, sure, 0, "train")[0].argmax(axis=1) == said(small, "train").argmax(axis=1)
    assert found.details["seeds"]["0"]["train"]["teacher_agreement"] == alike[seen].mean() != alike.mean()


def test_fidelity_on_train_needs_labels_of_train(small: SmallPipeline, sure: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labels of train; there is no cache"):
        evaluate(small, tmp_path / "out", run=sure, cache="none", fidelity_on_train=True)
    archive = dict(np.load(small.data.removeprefix("arrays:")))
    archive["x"][0] += 1
    np.savez(tmp_path / "other.npz", **archive)
    with pytest.raises(CacheMismatchError):
        evaluate(small, tmp_path / "out", run=sure, data=f"arrays:{tmp_path / 'other.npz'}", fidelity_on_train=True)
    assert not (tmp_path / "out").exists()
