"""The constant of a class that fits validation: against other optimisers, and what it does to an evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import training
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation import EvaluateConfig
from pipeline.evaluation.correction import fit_biases, log_odds
from pipeline.models import build_model, load_weights, save_weights
from pipeline.training import TrainConfig
from tests.small_pipeline import CLASSES, SmallPipeline
from tests.test_evaluation import evaluate


def made(rows: int = 80, classes: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, of which class 2 and 4 are rarely the largest, and labels that they often are."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    logits = random.normal(size=(rows, classes)) * 2 + 2 * np.eye(classes)[labels]
    return logits - 4 * np.isin(np.arange(classes), (2, 4)), labels


def shares_of(labels: np.ndarray, classes: list[int]) -> np.ndarray:
    return np.array([(labels == c).mean() for c in classes])


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(softmax(logits)[np.arange(len(labels)), labels]).mean())


# The constants.


def test_one_constant_is_the_minimum_on_a_fine_grid() -> None:
    logits, labels = made()
    [found] = fit_biases(log_odds(logits, [2]), shares_of(labels, [2]))
    one = np.eye(6)[2]
    values = {b: nll(logits + b * one, labels) for b in np.arange(-10, 15, 0.01)}
    assert abs(min(values, key=lambda b: values[b]) - found) <= 0.01
    assert nll(logits + found * one, labels) <= min(values.values())


@pytest.mark.parametrize("classes", [[2], [2, 4], [4, 0, 2], [0, 1, 2, 3, 4]])
def test_several_constants_are_those_of_another_optimiser(classes: list[int]) -> None:
    logits, labels = made()
    bias = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
    place = torch.eye(6, dtype=torch.float64)[classes]
    optimiser = torch.optim.LBFGS(
        [bias], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits) + bias @ place, torch.from_numpy(labels))
        loss.backward()
        return loss

    optimiser.step(closure)
    found = fit_biases(log_odds(logits, classes), shares_of(labels, classes))
    np.testing.assert_allclose(found, bias.detach().numpy(), atol=1e-5)
    means = softmax(logits + found @ np.eye(6)[classes]).mean(axis=0)[classes]
    np.testing.assert_allclose(means, shares_of(labels, classes), atol=1e-11)


def test_the_labels_count_by_their_shares_alone_and_shifts_of_logits_not_at_all() -> None:
    logits, labels = made()
    expected = fit_biases(log_odds(logits, [2, 4]), shares_of(labels, [2, 4]))
    shifted = logits + np.random.default_rng(1).normal(size=(len(logits), 1)) * 100
    np.testing.assert_allclose(fit_biases(log_odds(shifted, [2, 4]), shares_of(labels[::-1], [2, 4])), expected)
    moved = logits + np.array([0, 0, 1.5, 0, -2.5, 0])
    again = fit_biases(log_odds(moved, [2, 4]), shares_of(labels, [2, 4]))
    np.testing.assert_allclose(again, expected - [1.5, -2.5], atol=1e-10)
    once_more = fit_biases(log_odds(logits + expected @ np.eye(6)[[2, 4]], [2, 4]), shares_of(labels, [2, 4]))
    np.testing.assert_allclose(once_more, 0, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(2, 40),
    classes=st.integers(1, 4),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
    offset=st.sampled_from([0.0, -1500.0, 400.0]),
)
def test_the_mean_probability_is_the_share_whatever_the_logits(
    seed: int, rows: int, classes: int, scale: float, offset: float
) -> None:
    """Saturated logits too, where the second derivative is 0 almost everywhere."""
    random = np.random.default_rng(seed)
    odds = random.normal(size=(rows, classes)) * scale + offset
    shares = random.dirichlet(np.full(classes + 1, 0.7))[:-1]
    shares = 0.98 * shares + 0.01 / (classes + 1)
    bias = fit_biases(odds, shares)
    p = softmax(np.concatenate([odds + bias, np.zeros((rows, 1))], axis=1))
    np.testing.assert_allclose(p[:, :-1].mean(axis=0), shares, atol=2e-12)


def test_shares_without_a_finite_constant_and_logits_that_are_not_finite() -> None:
    for shares in ([0.0], [1.0], [-0.1], [float("nan")]):
        with pytest.raises(DataError, match="no finite constant is the best"):
            fit_biases(np.zeros((3, 1)), np.array(shares))
    with pytest.raises(DataError, match="leave something for the others"):
        fit_biases(np.zeros((3, 2)), np.array([0.5, 0.5]))
    with pytest.raises(DataError, match="logits should be finite"):
        log_odds(np.array([[0.0, np.inf]]), [0])


# The evaluation.


def logits_of(small: SmallPipeline, seed: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    archive = np.load(small.data.removeprefix("arrays:"))
    chosen = archive["split"] == split
    model = build_model("cnn-2", {}, classes=3, input_shape=(1, 8, 8)).eval()
    load_weights(model, small.soft / f"seed-{seed}" / "model.safetensors")
    with torch.no_grad():
        return model(torch.from_numpy(archive["x"][chosen])).double().numpy(), archive["y"][chosen]


def test_every_figure_is_that_of_the_corrected_model(small: SmallPipeline, tmp_path: Path) -> None:
    report = evaluate(small, tmp_path / "out", correct_class=("middle",), batch_size=7)
    correction = json.loads((tmp_path / "out" / "details.json").read_text())["correction"]
    assert correction["classes"] == ["middle"] and correction["fitted_on"] == "validation"
    biases, confusion = [], np.zeros((3, 3), int)
    for seed in (0, 1):
        held, labels = logits_of(small, seed, "validation")
        [bias] = correction["bias"][str(seed)]
        biases.append(bias)
        move = bias * np.eye(3)[1]
        assert softmax(held + move)[:, 1].mean() == pytest.approx((labels == 1).mean(), abs=1e-6)
        test, truth = logits_of(small, seed, "test")
        figures = report.details["seeds"][str(seed)]
        assert figures["accuracy"] == ((test + move).argmax(axis=1) == truth).mean()
        assert figures["nll"] == pytest.approx(nll(test + move, truth), rel=1e-5)
        assert figures["validation"]["nll"] == pytest.approx(nll(held + move, labels), rel=1e-5)
        assert figures["validation"]["nll"] < nll(held, labels)
        np.add.at(confusion, (truth, (test + move).argmax(axis=1)), 1)
    assert report.details["confusion"] == confusion.tolist()
    assert report.metrics["bias_middle"] == round(float(np.mean(biases)), 4)
    assert correction["shares"] == [pytest.approx(1 / 3)]
    plain = evaluate(small, tmp_path / "plain")
    for figure in ("ece", "kl_to_teacher"):
        assert plain.details["seeds"]["0"][figure] != report.details["seeds"]["0"][figure]
    assert plain.metrics.keys() | {"bias_middle"} == report.metrics.keys()
    assert "correction" not in plain.details and plain.details.keys() | {"correction"} == report.details.keys()


def test_weights_alone_and_several_classes_on_validation_itself(small: SmallPipeline, tmp_path: Path) -> None:
    weights = small.soft / "seed-0" / "model.safetensors"
    report = evaluate(
        small, tmp_path / "out", run=None, weights=weights, student="cnn-2", data=small.data, cache="none",
        split="validation", correct_class=("right", "left"),
    )  # fmt: skip
    correction = report.details["correction"]
    assert correction["classes"] == ["right", "left"] and len(correction["bias"]["0"]) == 2
    logits, labels = logits_of(small, 0, "validation")
    moved = logits + np.array(correction["bias"]["0"]) @ np.eye(3)[[2, 0]]
    np.testing.assert_allclose(softmax(moved).mean(axis=0), np.bincount(labels) / len(labels), atol=1e-6)
    assert report.details["seeds"]["0"]["nll"] == report.details["seeds"]["0"]["validation"]["nll"]
    assert {"bias_right", "bias_left"} <= report.metrics.keys()


def relabelled(small: SmallPipeline, path: Path, change: Any) -> str:
    archive = dict(np.load(small.data.removeprefix("arrays:")))
    archive["y"] = np.where(archive["split"] == "validation", change(archive["y"]), archive["y"])
    np.savez(path, **archive)
    return f"arrays:{path}"


@pytest.mark.parametrize(
    ("classes", "change", "error", "said"),
    [
        (
            ("up",),
            lambda y: y,
            ConfigError,
            r"--correct-class should be a class of .* \(left, middle, right\); found 'up'",
        ),
        (("middle",), lambda y: np.where(y == 1, 0, y), ConfigError, "no validation example .* minus infinity"),
        (CLASSES, lambda y: y, ConfigError, "names every class of the validation examples"),
        (("middle",), lambda y: y * 0 + 1, ConfigError, "names every class of the validation examples"),
        (("middle",), lambda y: y * 0 - 1, DataError, "how often a class occurs in validation: .*; found none"),
    ],
)
def test_what_cannot_be_corrected_is_refused(
    small: SmallPipeline, tmp_path: Path, classes: tuple[str, ...], change: Any, error: type[Exception], said: str
) -> None:
    data = relabelled(small, tmp_path / "other.npz", change)
    with pytest.raises(error, match=said):
        evaluate(small, tmp_path / "out", data=data, cache="none", correct_class=classes)
    assert not (tmp_path / "out").exists()


def test_a_class_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="names a class twice; found 3, 3"):
        EvaluateConfig(run=Path("r"), out=Path("o"), correct_class=("3", "3"))


def test_a_model_of_several_heads_is_refused(small: SmallPipeline, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "heads.safetensors"
    save_weights(weights, build_model("hydra:mlp-4", {"heads": 2}, classes=3, input_shape=(1, 8, 8)), {})
    options = {"weights": weights, "student": "hydra:mlp-4", "student_args": ("heads=2",), "data": small.data}
    evaluate(small, tmp_path / "plain", run=None, cache="none", **options)
    with pytest.raises(ConfigError, match="--correct-class is of models with one head"):
        evaluate(small, tmp_path / "out", run=None, cache="none", correct_class=("left",), **options)


def test_a_class_that_was_left_out_is_found_again(small: SmallPipeline, tmp_path: Path) -> None:
    """What the option is for: the bias of a class is lowered, as by training without it, and comes back."""
    whole, run = tmp_path / "whole", tmp_path / "omit"
    training.run(TrainConfig(data=small.data, student="mlp-8", out=whole, epochs=20, lr=0.02, seeds=2, device="cpu"))
    shutil.copytree(whole, run)
    record = json.loads((run / "run.json").read_text())
    record["config"]["omit_class"] = "middle"
    (run / "run.json").write_text(json.dumps(record))
    for seed in (0, 1):
        model = build_model("mlp-8", {}, classes=3, input_shape=(1, 8, 8))
        load_weights(model, run / f"seed-{seed}" / "model.safetensors")
        last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        with torch.no_grad():
            last.bias[1] -= 9
        save_weights(run / f"seed-{seed}" / "model.safetensors", model, {})
    plain = evaluate(small, tmp_path / "a", run=run, cache="none")
    found = evaluate(small, tmp_path / "b", run=run, cache="none", correct_class=("middle",))
    known = evaluate(small, tmp_path / "c", run=whole, cache="none", correct_class=("middle",))
    assert plain.metrics["omitted_class_accuracy"] < 0.1 < 0.5 < found.metrics["omitted_class_accuracy"]
    assert found.metrics["bias_middle"] == pytest.approx(known.metrics["bias_middle"] + 9, abs=1e-3)
    assert found.metrics["nll"] == pytest.approx(known.metrics["nll"], abs=1e-3)
    assert found.details["confusion"] == known.details["confusion"]
