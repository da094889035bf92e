"""What an evaluation says of a model's quality, calibration and fidelity, against float64 references of its logits."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import training
from pipeline.errors import CacheMismatchError, ConfigError
from pipeline.evaluation import EvaluateReport
from pipeline.evaluation.comparing import CompareConfig
from pipeline.evaluation.comparing import run as compare
from pipeline.models import build_model, load_weights, save_weights
from pipeline.store import open_cache
from pipeline.training import TrainConfig
from tests.small_pipeline import COUNTS, SmallPipeline, make
from tests.test_evaluation import evaluate

SEEDS = (0, 1)
BINS = 5


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallPipeline:
    return make(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def sure(small: SmallPipeline) -> Path:
    """A run of two seeds, right more often than not, and too sure: what they learnt was blurred and made louder."""
    out = small.root / "runs" / "sure"
    training.run(
        TrainConfig(
            data=small.data, cache=str(small.cache), alpha=0.0, student="mlp-8", out=out, epochs=20, lr=0.02,
            seeds=len(SEEDS), device="cpu",
        )
    )  # fmt: skip
    for seed in SEEDS:
        model = build_model("mlp-8", {}, classes=3, input_shape=(1, 8, 8))
        load_weights(model, out / f"seed-{seed}" / "model.safetensors")
        first, *_, last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        with torch.no_grad():
            first.weight += 0.25 * torch.randn(first.weight.shape, generator=torch.Generator().manual_seed(seed))
            last.weight *= 2
        save_weights(out / f"seed-{seed}" / "model.safetensors", model, {})
    return out


@pytest.fixture(scope="module")
def report(small: SmallPipeline, sure: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluateReport:
    return evaluate(
        small, tmp_path_factory.mktemp("out") / "e", run=sure, top_k=2, bins=BINS, fidelity_on_train=True, batch_size=7
    )


def arrays(small: SmallPipeline, split: str) -> tuple[np.ndarray, np.ndarray]:
    archive = np.load(small.data.removeprefix("arrays:"))
    chosen = archive["split"] == split
    return archive["x"][chosen], archive["y"][chosen]


def logits_of(small: SmallPipeline, run: Path, seed: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = arrays(small, split)
    model = build_model("mlp-8", {}, classes=3, input_shape=(1, 8, 8)).eval()
    load_weights(model, run / f"seed-{seed}" / "model.safetensors")
    with torch.no_grad():
        return model(torch.from_numpy(x)).double().numpy(), y


def said(small: SmallPipeline, split: str) -> np.ndarray:
    cache = open_cache(small.cache)
    return np.asarray(cache.decode(cache.read_rows(split, 0, np.arange(COUNTS[split]))).logits, dtype=np.float64)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(softmax(logits)[np.arange(len(labels)), labels]).mean())


def gaps(logits: np.ndarray, labels: np.ndarray, groups: list[np.ndarray]) -> float:
    """The mean over examples of how far confidence is from accuracy in the group of each."""
    p = softmax(logits)
    sure, right = p.max(axis=1), p.argmax(axis=1) == labels
    return sum(len(g) * abs(sure[g].mean() - right[g].mean()) for g in groups if len(g)) / len(labels)


def calibration(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of distinct confidences, 8 to each of the bins of equal mass."""
    p = softmax(logits)
    assert len(np.unique(p.max(axis=1))) == len(p) == 8 * BINS
    edges = np.linspace(0, 1, BINS + 1)
    wide = [np.flatnonzero((p.max(axis=1) >= a) & (p.max(axis=1) < b)) for a, b in pairwise(edges)]
    return {
        "nll": nll(logits, labels),
        "brier": float(np.square(p - np.eye(3)[labels]).sum(axis=1).mean()),
        "ece": gaps(logits, labels, wide),
        "adaptive_ece": gaps(logits, labels, list(np.argsort(p.max(axis=1)).reshape(BINS, 8))),
    }


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
            inside(found["accuracy"], found["accuracy_interval"], COUNTS[split])
        logits, labels = logits_of(small, sure, seed, "test")
        for name, value in calibration(logits, labels).items():
            assert figures[name] == pytest.approx(value, rel=1e-5), name
        for c in range(3):
            right = (logits.argmax(axis=1) == labels)[labels == c]
            assert figures["per_class_accuracy"][c] == right.mean()
            inside(right.mean(), figures["per_class_interval"][c], len(right))


def test_a_temperature_is_fitted_on_validation_and_used_on_test(
    small: SmallPipeline, sure: Path, report: EvaluateReport
) -> None:
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


# Temperatures.


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
