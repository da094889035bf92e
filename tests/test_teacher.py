"""fit-teacher: a teacher that is good, chosen on validation, saved with what it needs to be used, and resumable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.datasets import load_dataset
from pipeline.errors import ConfigError, DataError
from pipeline.models import build_model, load_weights, read_metadata
from pipeline.teacher import FitTeacherConfig, run
from pipeline.workspace import Workspace


def options(out: Path, **changes: object) -> FitTeacherConfig:
    base: dict[str, object] = {"teacher": "cnn-8", "epochs": 6, "lr": 0.01, "out": out, "device": "cpu", "views": 3}
    return FitTeacherConfig(**(base | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "teacher"
    run(options(out))
    return out


def test_a_small_teacher_learns_the_digits(fitted: Path) -> None:
    report = json.loads((fitted / "report.json").read_text())
    assert report["validation_accuracy"] > 0.93 and report["test_accuracy"] > 0.93
    assert report["parameters"] > 1000 and report["epochs"] == 6


def test_the_weights_say_what_they_are_and_give_the_reported_accuracy(fitted: Path) -> None:
    metadata = read_metadata(fitted / "model.safetensors")
    dataset = load_dataset("digits")
    assert metadata["reference"] == "cnn-8" and metadata["classes"] == 10 and metadata["args"] == {}
    assert metadata["class_names"] == list(dataset.classes) and metadata["preprocessing"] == dataset.preprocessing
    model = build_model(metadata["reference"], metadata["args"], classes=10, input_shape=tuple(metadata["input_shape"]))
    load_weights(model, fitted / "model.safetensors")
    rows = dataset.rows("test")
    with torch.no_grad():
        guesses = model.eval()(torch.stack([dataset.prepare(dataset.load(int(r))) for r in rows])).argmax(1).numpy()
    report = json.loads((fitted / "report.json").read_text())
    assert report["test_accuracy"] == pytest.approx(float(np.mean(guesses == dataset.labels[rows])))


def test_the_kept_epoch_is_the_best_on_validation(fitted: Path) -> None:
    history = json.loads((fitted / "history.json").read_text())
    scores = [(epoch["accuracy"], -epoch["nll"]) for epoch in history]
    report = json.loads((fitted / "report.json").read_text())
    assert report["kept_epoch"] == scores.index(max(scores))
    assert report["validation_accuracy"] == pytest.approx(max(scores)[0])
    assert [epoch["view"] for epoch in history] == [0, 1, 2, 3, 0, 1]


def test_a_finished_teacher_returns_at_once_and_is_not_overwritten(
    fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.teacher.fit", lambda *a, **k: pytest.fail("trained again"))
    report = run(options(fitted))
    assert "found finished" in report.summary and report.figures["test_accuracy"] > 0.9
    with pytest.raises(ConfigError, match="--overwrite"):
        run(options(fitted, seed=1))


def test_a_train_split_without_labels_is_named(tmp_path: Path) -> None:
    x, split = np.zeros((3, 1, 8, 8), np.float32), np.array(["test", "test", "validation"])
    np.savez(tmp_path / "held.npz", x=x, y=np.array([0, 1, 1]), split=split)
    with pytest.raises(DataError, match="labelled examples in its train split"):
        run(options(tmp_path / "t", data=f"arrays:{tmp_path / 'held.npz'}"))


def test_overwriting_spares_what_no_teacher_stage_wrote(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ConfigError, match=r"holds mine\.txt"):
        run(options(tmp_path, overwrite=True))
    assert (tmp_path / "mine.txt").exists()


def test_plain_examples_and_wrong_options(tmp_path: Path) -> None:
    report = run(options(tmp_path / "plain", teacher="mlp-4", epochs=1, views=0))
    assert report.figures["steps"] > 0
    with pytest.raises(ConfigError, match="--views should be 0 or more"):
        options(tmp_path, views=-1)


def test_a_kill_after_the_record_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = options(tmp_path / "t", teacher="mlp-4", epochs=1, views=0)

    def killed(_: Workspace) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Workspace, "commit", killed)
        run(quick)
    (scratch,) = (p for p in tmp_path.glob(".t.softlabels-*") if p.is_dir())
    (scratch / "state.safetensors").touch()  # a kill between the record and the end of the state
    monkeypatch.setattr("pipeline.teacher.fit", lambda *a, **k: pytest.fail("trained again"))
    report = run(quick)
    assert report.figures["steps"] > 0 and "identity" not in report.figures
    assert {p.name for p in (tmp_path / "t").iterdir()} == {"model.safetensors", "history.json", "report.json"}
