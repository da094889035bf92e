"""Language models measured: every figure against its definition in float64, part by part or at once, by any runtime."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import dump, evaluation, metrics, teacher, training
from pipeline.artefacts.metadata import ArtefactMetadata
from pipeline.artefacts.onnx_file import export_onnx
from pipeline.dump import DumpConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.evaluation import EvaluateConfig, batches, calibrating, labelled_rows, score_rows, torch_predictor
from pipeline.evaluation.batches import told_by_labels, told_by_model
from pipeline.evaluation.comparing import CompareConfig
from pipeline.evaluation.comparing import run as compare
from pipeline.evaluation.language import missing
from pipeline.models import build_model, load_weights
from pipeline.softlabels import Dense, Sampled, TopK
from pipeline.teacher import FitTeacherConfig
from pipeline.training import TrainConfig
from tests.sequences import VOCABULARY, Made
from tests.sequences import uneven as make_data

DATA, SHAPE = "tests.sequences:uneven", (12,)
BIG, SMALL = ("layers=1", "heads=2"), ("layers=1", "heads=1")


@dataclass(frozen=True)
class Trained:
    """A teacher and two students, hardly trained."""

    teacher: Path
    students: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("language")
    shared: dict[str, Any] = {"data": DATA, "threads": 1, "device": "cpu", "lr": 0.01}
    teacher.run(FitTeacherConfig(**shared, teacher="gpt-16", teacher_args=BIG, epochs=8, out=root / "teacher"))
    training.run(
        TrainConfig(
            **shared, student="gpt-8", student_args=SMALL, epochs=2, seeds=2, alpha=0.0, beta=1.0, out=root / "students"
        )
    )
    return Trained(root / "teacher", root / "students")


def evaluate(out: Path, **options: Any) -> evaluation.EvaluateReport:
    settings = {"data": DATA, "allow": (DATA,), "out": out, "device": "cpu", "threads": 1, "cost": False}
    return evaluation.run(EvaluateConfig(**{**settings, **options}))


def opened(path: Path, name: str, arguments: tuple[str, ...]) -> nn.Module:
    given = {key: int(value) for key, _, value in (text.partition("=") for text in arguments)}
    model = build_model(name, given, classes=VOCABULARY, input_shape=SHAPE, discrete=True).eval()
    load_weights(model, path / "model.safetensors")
    return model


def logits_by_hand(model: nn.Module, data: Made, rows: np.ndarray) -> list[list[np.ndarray]]:
    """Float64 logits at each scored position of each sequence, which goes through the model alone and unpadded."""
    found = []
    for row in rows:
        targets = data.targets(np.array([row]))[0]
        with torch.no_grad():
            logits = model.double()(data.load(int(row))[None])[0].numpy()
        found.append([logits[t] for t in np.flatnonzero(targets >= 0)])
    model.float()
    return found


def probabilities(logits: np.ndarray) -> np.ndarray:
    masses = np.exp(logits - logits.max())
    return np.asarray(masses / masses.sum())


def flat(nested: list[list[np.ndarray]]) -> np.ndarray:
    return np.array([probabilities(logits) for sequence in nested for logits in sequence])


def test_every_figure_is_its_definition(trained: Trained, tmp_path: Path) -> None:
    report = evaluate(tmp_path / "out", run=trained.students, teacher=trained.teacher)
    data, rows = make_data(), labelled_rows(make_data(), "test")
    labels = np.array([t for row in rows for t in data.targets(np.array([row]))[0] if t >= 0])
    groups = np.repeat(np.arange(len(rows)), data.lengths[rows])
    p = flat(logits_by_hand(opened(trained.teacher, "gpt-16", BIG), data, rows))
    perplexities = []
    for seed in (0, 1):
        q = flat(logits_by_hand(opened(trained.students / f"seed-{seed}", "gpt-8", SMALL), data, rows))
        found = report.details["seeds"][str(seed)]
        nll = [-math.log(q[n, label]) for n, label in enumerate(labels)]
        perplexities.append(math.exp(math.fsum(nll) / len(nll)))
        assert found["perplexity"] == pytest.approx(perplexities[-1], rel=1e-5)
        assert found["nll"] == pytest.approx(math.fsum(nll) / len(nll), rel=1e-5)
        assert found["bits_per_token"] == pytest.approx(math.fsum(nll) / len(nll) / math.log(2), rel=1e-5)
        assert found["bits_per_byte"] == pytest.approx(math.fsum(nll) / math.log(2) / len(nll), rel=1e-5)
        assert found["accuracy"] == (q.argmax(axis=1) == labels).mean()
        assert found["teacher_agreement"] == (q.argmax(axis=1) == p.argmax(axis=1)).mean()
        divergence = [sum(a * math.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
        assert found["kl_to_teacher"] == pytest.approx(np.mean(divergence), rel=1e-4)
        accepted = [sum(min(a, b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
        assert found["acceptance"] == pytest.approx(np.mean(accepted), rel=1e-5)
        rate = np.mean(accepted)
        assert found["tokens_per_call"] == pytest.approx((1 - rate**5) / (1 - rate), rel=1e-5)
        ece = metrics.reliability(q.max(axis=1), q.argmax(axis=1) == labels, 15).ece
        assert found["ece"] == pytest.approx(ece, abs=1e-5)
        low, high = found["perplexity_interval"]
        mean, half = metrics.clustered(np.array(nll), groups)
        assert (low, high) == pytest.approx((math.exp(mean - half), math.exp(mean + half)), rel=1e-4)
        hits = (q.argmax(axis=1) == labels).astype(float)
        share, half = metrics.clustered(hits, groups)
        assert found["accuracy_interval"] == pytest.approx([max(0, share - half), share + half], abs=1e-12)
    own = report.details["teacher"]
    assert own["perplexity"] == pytest.approx(math.exp(-np.log(p[np.arange(len(labels)), labels]).mean()), rel=1e-5)
    assert own["accuracy"] == (p.argmax(axis=1) == labels).mean()
    figures = report.metrics
    assert figures["perplexity"] == pytest.approx(np.mean(perplexities), rel=1e-4)
    assert figures["perplexity_std"] == pytest.approx(np.std(perplexities, ddof=1), abs=1e-3)
    assert {"bits_per_byte", "kl_to_teacher", "ece", "acceptance", "teacher_perplexity"} <= figures.keys()
    assert all(isinstance(value, (int, float)) for value in figures.values())
    count = f"{len(labels)} tokens of {len(rows)} test sequences"
    assert f"perplexity {figures['perplexity']:.2f} (s = " in report.summary and report.summary.endswith(count)
    assert report.details["positions"] == data.lengths[rows].tolist() and "confusion" not in report.details
    assert "sequences" in report.details["units"]


def same(found: metrics.Scores, expected: metrics.Scores) -> None:
    for name in metrics.Scores.__dataclass_fields__:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)


class Whole(nn.Module):
    """A model that no head can be taken off."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(ids)
        return logits


@pytest.mark.parametrize("elements", [1, 3 * VOCABULARY, 20 * VOCABULARY])
def test_parts_of_any_size_give_the_same(trained: Trained, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data, device = make_data(), torch.device("cpu")
    rows = labelled_rows(data, "test")
    student, other = opened(trained.students / "seed-0", "gpt-8", SMALL), opened(trained.teacher, "gpt-16", BIG)
    live = torch_predictor(other, device)

    def read(some: np.ndarray) -> Dense:
        return Dense(np.concatenate([np.stack(one) for one in logits_by_hand(other, data, some)]))

    def plain(inputs: Tensor) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(student(inputs).numpy())

    kinds = {"torch": torch_predictor(student, device), "whole": torch_predictor(Whole(student), device)}
    once = score_rows({"torch": kinds["torch"]}, data, rows, teacher=told_by_model(live))["torch"]
    monkeypatch.setattr(batches, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(batches, "READ_ELEMENTS", 3 * elements)
    for told in (told_by_model(live), told_by_labels(read, VOCABULARY)):
        found = score_rows({**kinds, "array": plain}, data, rows, teacher=told, batch_size=4)
        assert set(found) == {"torch", "whole", "array"}
        for scores in found.values():
            same(scores, once)


def test_no_more_logits_at_once_than_a_part_holds(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    monkeypatch.setattr(batches, "CHUNK_ELEMENTS", 10 * VOCABULARY)
    shown: list[int] = []
    predict = torch_predictor(opened(trained.students / "seed-0", "gpt-8", SMALL), torch.device("cpu"))
    rows = np.arange(len(data))
    score_rows({0: predict}, data, rows, observe=lambda key, logits, labels: shown.append(len(logits)))
    assert max(shown) <= 10 and sum(shown) == data.lengths.sum() and len(shown) < data.lengths.sum() / 5


def test_top_k_labels_give_bounds(trained: Trained) -> None:
    data, rows = make_data(), labelled_rows(make_data(), "test")
    p = flat(logits_by_hand(opened(trained.teacher, "gpt-16", BIG), data, rows))
    starts = np.concatenate([[0], np.cumsum(data.lengths[rows])])
    place = {int(row): n for n, row in enumerate(rows)}

    def read(some: np.ndarray) -> TopK:
        kept = np.concatenate([p[starts[place[int(r)]] : starts[place[int(r)] + 1]] for r in some])
        ids = np.sort(np.argsort(-kept, axis=1)[:, :4], axis=1)
        chosen = np.take_along_axis(kept, ids, axis=1)
        peak = kept.max(axis=1, keepdims=True)
        rest = np.log(1 - chosen.sum(axis=1, keepdims=True))
        return TopK(ids, np.log(chosen / peak), -np.log(peak), rest, (1.0,), VOCABULARY)

    student = opened(trained.students / "seed-0", "gpt-8", SMALL)
    q = flat(logits_by_hand(student, data, rows))
    predict = torch_predictor(student, torch.device("cpu"))
    scores = score_rows({0: predict}, data, rows, teacher=told_by_labels(read, VOCABULARY), batch_size=5)[0]
    exact = np.minimum(p, q).sum(axis=1)
    assert scores.accepted_least is not None and scores.accepted_most is not None
    assert (scores.accepted_least <= exact + 1e-6).all() and (exact <= scores.accepted_most + 1e-6).all()
    assert (scores.accepted_most - scores.accepted_least).max() > 0.01
    assert "bounds" in missing(scores, 1)["acceptance"]


def test_draws_leave_out_what_they_do_not_tell(trained: Trained) -> None:
    data, rows = make_data(), labelled_rows(make_data(), "test")
    student, other = opened(trained.students / "seed-0", "gpt-8", SMALL), opened(trained.teacher, "gpt-16", BIG)
    p, q = (flat(logits_by_hand(model, data, rows)) for model in (other, student))

    def read(some: np.ndarray) -> Sampled:
        """Every class with its own probability: the limit of many draws."""
        masses = flat(logits_by_hand(other, data, some))
        count = len(masses)
        offsets = np.arange(count + 1) * VOCABULARY
        return Sampled(np.tile(np.arange(VOCABULARY), count), masses.ravel(), offsets, 1.0, VOCABULARY)

    predict = torch_predictor(student, torch.device("cpu"))
    scores = score_rows({0: predict}, data, rows, teacher=told_by_labels(read, VOCABULARY), batch_size=3)[0]
    np.testing.assert_allclose(scores.cross_entropy, -(p * np.log(q)).sum(axis=1), rtol=1e-4)
    assert (scores.agree, scores.kl, scores.accepted_least) == (None, None, None)
    assert {"teacher_agreement", "kl_to_teacher", "acceptance", "bits_per_byte"} == missing(scores, None).keys()


def test_caches_that_were_dumped(trained: Trained, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"data": DATA, "run": trained.teacher, "splits": ("validation", "test"), "device": "cpu"}
    found = {"live": evaluate(tmp_path / "live", run=trained.students, teacher=trained.teacher).details["seeds"]["0"]}
    for name, options in {"dense": {}, "topk": {"k": 6}, "sampled": {"draws": 30}}.items():
        dump.run(DumpConfig(**shared, encoding=name, out=tmp_path / name, **options))
        report = evaluate(tmp_path / f"e-{name}", run=trained.students, cache=str(tmp_path / name))
        found[name] = report.details["seeds"]["0"]
    live, dense, few, draws = (found[name] for name in ("live", "dense", "topk", "sampled"))
    assert dense["kl_to_teacher"] == pytest.approx(live["kl_to_teacher"], abs=1e-3)
    assert dense["acceptance"] == pytest.approx(live["acceptance"], abs=1e-3)
    assert few["acceptance"] is None and few["teacher_agreement"] == live["teacher_agreement"]
    assert few["acceptance_between"][0] < live["acceptance"] < few["acceptance_between"][1]
    assert few["kl_to_teacher"] < live["kl_to_teacher"], "a lower bound"
    assert draws["kl_to_teacher"] is draws["acceptance"] is draws["teacher_agreement"] is None
    assert draws["cross_entropy_to_teacher"] > 0 and report.details["teacher"] is None
    assert "kl_to_teacher" not in report.metrics and report.metrics["cross_entropy_to_teacher"] > 0
    assert "random draws" in report.details["left_out"]["acceptance"]


def test_a_temperature_is_fitted_to_evenly_spread_tokens(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data()
    rows = labelled_rows(data, "validation")
    labels = np.concatenate([t[t >= 0] for t in data.targets(rows)])
    logits = np.concatenate([np.stack(one) for one in logits_by_hand(
        opened(trained.students / "seed-0", "gpt-8", SMALL), data, rows
    )])  # fmt: skip
    whole = evaluate(tmp_path / "a", run=trained.students, cache="none").details
    monkeypatch.setattr(calibrating, "KEPT_ELEMENTS", VOCABULARY * len(labels) // 3 + 1)
    monkeypatch.setattr(batches, "CHUNK_ELEMENTS", 7 * VOCABULARY)
    third = evaluate(tmp_path / "b", run=trained.students, cache="none").details
    for details, step in ((whole, 1), (third, 3)):
        expected = metrics.fit_temperature(logits[::step], labels[::step])
        assert details["seeds"]["0"]["calibrated"]["temperature"] == pytest.approx(expected, rel=1e-4)
        assert details["calibration"]["tokens"] == len(labels[::step])
        assert details["calibration"]["of_tokens"] == len(labels)
    assert whole["seeds"]["0"]["calibrated"]["nll"] < whole["seeds"]["0"]["nll"]


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "file.onnx"
    says = ArtefactMetadata(
        class_names=tuple(make_data().classes), preprocessing="made tokens", input_shape=SHAPE, discrete=True
    )
    model = opened(trained.students / "seed-0", "gpt-8", SMALL)
    export_onnx(model, SHAPE, path, opset=20, metadata=says.as_dict(), discrete=True)
    return path


def test_models_and_files_side_by_side(trained: Trained, exported: Path, tmp_path: Path) -> None:
    named = (f"student={trained.students / 'seed-0' / 'model.safetensors'}", str(exported), str(trained.teacher))
    report = evaluate(
        tmp_path / "out", models=named, teacher=trained.teacher, cost=True, latency_batch=(1, 2), latency_seconds=0.01
    )
    rows = {row["name"]: row for row in report.details["rows"]}
    student, file, big = rows["student"], rows["file"], rows["teacher"]
    assert file["perplexity"] == pytest.approx(student["perplexity"], rel=1e-5)
    assert file["acceptance"] == pytest.approx(student["acceptance"], rel=1e-5)
    assert file["agreement"] == 1.0 and file["mcnemar_source"]["p_value"] == 1.0
    assert big["acceptance"] == pytest.approx(1, abs=1e-6) and big["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    gap = big["against_baseline"]["nll"]
    assert gap["difference"] == pytest.approx(math.log(big["perplexity"] / student["perplexity"]), rel=1e-6)
    assert gap["half_width"] > 0
    assert file["latency"]["2"]["p50"] > 0 and report.details["environment"]["timed_tokens"] == SHAPE[0]
    assert student["macs"] > 0 and file["memory"] is not None
    head = report.summary.splitlines()[0].split("  ")
    assert {"perplexity", "bits/byte", "acceptance", "KL"} <= {cell.strip() for cell in head}
    assert report.metrics["file_perplexity"] == round(file["perplexity"], 4)
    assert "tokens of 11 test sequences" in report.summary


def test_timed_sequences_are_cut_to_what_memory_allows(
    trained: Trained, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.evaluation.costs.TIMED_ELEMENTS", 2 * 5 * VOCABULARY)
    monkeypatch.setattr("pipeline.evaluation.costs.STARTS", 1)
    options: dict[str, Any] = {"cost": True, "latency_batch": (1, 2), "latency_seconds": 0.01, "cache": "none"}
    report = evaluate(tmp_path / "out", models=(str(exported),), **options)
    assert report.details["environment"]["timed_tokens"] == 5


def test_two_evaluations_are_compared_by_sequence(trained: Trained, tmp_path: Path) -> None:
    places = {"s": trained.students / "seed-0" / "model.safetensors", "t": trained.teacher / "model.safetensors"}
    shapes = {"s": ("gpt-8", SMALL), "t": ("gpt-16", BIG)}
    for name, weights in places.items():
        student, arguments = shapes[name]
        evaluate(tmp_path / name, weights=weights, student=student, student_args=arguments, teacher=trained.teacher)
    found = compare(CompareConfig(first=tmp_path / "t", second=tmp_path / "s"))
    data, rows = make_data(), labelled_rows(make_data(), "test")
    groups = np.repeat(np.arange(len(rows)), data.lengths[rows])
    labels = np.concatenate([t[t >= 0] for t in data.targets(rows)])
    hits = [flat(logits_by_hand(opened(path.parent, *shapes[name]), data, rows)).argmax(axis=1) == labels
            for name, path in places.items()]  # fmt: skip
    gaps = hits[1].astype(float) - hits[0]
    assert found.comparison.difference == pytest.approx(gaps.mean(), abs=1e-12)
    assert found.comparison.by_examples == pytest.approx(metrics.clustered(gaps, groups)[1], rel=1e-9)
    for name in ("perplexity", "bits_per_byte", "acceptance"):
        assert (
            "paired seeds"
            not in compare(CompareConfig(first=tmp_path / "t", second=tmp_path / "s", metric=name)).summary
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"corruptions": ("all",)}, "--corruptions: of classifiers; made has token sequences"),
        ({"outliers": "noise", "correct_class": ("t0",)}, "--outliers, --correct-class: of classifiers"),
        ({"cache": "somewhere", "teacher": Path("x")}, "--teacher and --cache both say"),
    ],
)
def test_what_is_not_of_language_models_is_named(
    trained: Trained, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        evaluate(tmp_path / "out", run=trained.students, **options)
    assert not (tmp_path / "out").exists()


def test_a_classifier_is_no_language_model(exported: Path, tmp_path: Path) -> None:
    head = nn.Sequential(nn.Flatten(), nn.Linear(12, VOCABULARY))
    export_onnx(head, SHAPE, tmp_path / "c.onnx", opset=20, metadata={})
    with pytest.raises(ModelError, match=r"takes values \(float32\); made has token sequences"):
        evaluate(tmp_path / "out", models=(str(tmp_path / "c.onnx"),), cache="none")
    with pytest.raises(ModelError, match=r"token|vocabulary|classes"):
        evaluate(tmp_path / "out", models=(str(exported),), data="digits", allow=(), cache="none")
