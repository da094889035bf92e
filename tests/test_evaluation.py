"""Evaluation: all seeds of a run, joined with the teacher's cached answers; one flat file and one full one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import evaluation
from pipeline.errors import CacheMismatchError, ConfigError, DataError, ModelError
from pipeline.evaluation import EvaluateConfig
from pipeline.models import build_model, load_weights, save_weights
from pipeline.store import open_cache
from tests.small_pipeline import COUNTS, SmallPipeline, write_images


def evaluate(small: SmallPipeline, out: Path, **options: Any) -> evaluation.EvaluateReport:
    return evaluation.run(EvaluateConfig(**{"run": small.soft, "out": out, "device": "cpu", **options}))


def test_the_figures_are_those_of_the_models(small: SmallPipeline, tmp_path: Path) -> None:
    report = evaluate(small, tmp_path / "out")
    archive = np.load(small.data.removeprefix("arrays:"))
    test = archive["split"] == "test"
    x, y = torch.from_numpy(archive["x"][test]), archive["y"][test]
    teacher = open_cache(small.cache)
    said = teacher.decode(teacher.read_rows("test", 0, np.arange(test.sum()))).logits
    accuracies, agreements = [], []
    for seed in (0, 1):
        model = build_model("cnn-2", {}, classes=3, input_shape=(1, 8, 8)).eval()
        load_weights(model, small.soft / f"seed-{seed}" / "model.safetensors")
        with torch.no_grad():
            guesses = model(x).argmax(dim=1).numpy()
        accuracies.append((guesses == y).mean())
        agreements.append((guesses == said.argmax(axis=1)).mean())
        assert report.details["seeds"][str(seed)]["accuracy"] == pytest.approx(accuracies[-1])
    assert report.metrics["accuracy"] == round(float(np.mean(accuracies)), 4)
    assert report.metrics["accuracy_std"] == round(float(np.std(accuracies, ddof=1)), 4)
    assert report.metrics["teacher_agreement"] == round(float(np.mean(agreements)), 4)
    assert report.metrics["teacher_accuracy"] == round(float((said.argmax(axis=1) == y).mean()), 4)


def test_what_is_written(small: SmallPipeline, tmp_path: Path) -> None:
    report = evaluate(small, tmp_path / "out")
    flat = json.loads((tmp_path / "out" / "metrics.json").read_text())
    details = json.loads((tmp_path / "out" / "details.json").read_text())
    assert flat == report.metrics
    assert all(isinstance(value, (int, float)) for value in flat.values())
    assert details == report.details
    assert np.sum(details["confusion"]) == 2 * COUNTS["test"], "both seeds"
    assert sum(details["reliability"]["counts"]) == 2 * COUNTS["test"]
    assert sum(details["hits"]) == np.trace(details["confusion"])
    assert len(details["hits"]) == COUNTS["test"]
    assert details["seeds"]["0"]["validation"]["accuracy"] >= 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["details.json", "metrics.json"]


def test_the_same_run_gives_the_same_bytes_in_any_batch_size(small: SmallPipeline, tmp_path: Path) -> None:
    evaluate(small, tmp_path / "a", batch_size=256)
    evaluate(small, tmp_path / "b", batch_size=256)
    evaluate(small, tmp_path / "c", batch_size=7)
    files = [(tmp_path / name / "metrics.json").read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]


def test_weights_alone(small: SmallPipeline, tmp_path: Path) -> None:
    run = evaluate(small, tmp_path / "a")
    weights = small.soft / "seed-0" / "model.safetensors"
    alone = evaluate(
        small, tmp_path / "b", run=None, weights=weights, student="cnn-2", data=small.data, cache=str(small.cache)
    )
    assert alone.metrics["seeds"] == 1
    assert alone.details["seeds"]["0"]["nll"] == run.details["seeds"]["0"]["nll"]


def test_without_a_cache_nothing_is_said_about_the_teacher(small: SmallPipeline, tmp_path: Path) -> None:
    report = evaluate(small, tmp_path / "out", cache="none")
    assert not {"teacher_accuracy", "teacher_agreement", "kl_to_teacher"} & report.metrics.keys()
    assert report.details["teacher"] is None


def test_the_omitted_class_is_measured_by_itself(small: SmallPipeline, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "omit"
    run.mkdir(parents=True)
    record = json.loads((small.soft / "run.json").read_text())
    record["config"]["omit_class"] = "middle"
    (run / "run.json").write_text(json.dumps(record))
    (run / "seed-0").symlink_to(small.soft / "seed-0")
    report = evaluate(small, tmp_path / "out", run=run)
    rows = report.details["omitted_class_rows"]
    assert report.metrics["omitted_class_accuracy"] == round(float(np.mean(np.array(report.details["hits"])[rows])), 4)
    assert report.details["per_class_accuracy"][1] == pytest.approx(np.mean(np.array(report.details["hits"])[rows]))


def test_validation_as_the_split(small: SmallPipeline, tmp_path: Path) -> None:
    report = evaluate(small, tmp_path / "out", split="validation")
    assert report.details["examples"] == COUNTS["validation"]
    assert report.metrics["accuracy"] == report.metrics["validation_accuracy"]


def test_other_data_is_refused(small: SmallPipeline, tmp_path: Path) -> None:
    archive = dict(np.load(small.data.removeprefix("arrays:")))
    archive["x"] = archive["x"] + 1
    np.savez(tmp_path / "other.npz", **archive)
    with pytest.raises(CacheMismatchError):
        evaluate(small, tmp_path / "out", data=f"arrays:{tmp_path / 'other.npz'}")
    assert not (tmp_path / "out").exists()


def test_a_split_without_labels_is_refused(small: SmallPipeline, tmp_path: Path) -> None:
    data = write_images(tmp_path / "unlabelled.npz", labelled=False)
    with pytest.raises(DataError, match="test split"):
        evaluate(small, tmp_path / "out", data=data, cache="none")


def test_weights_of_another_model_are_refused(small: SmallPipeline, tmp_path: Path) -> None:
    weights = tmp_path / "other.safetensors"
    save_weights(weights, build_model("mlp-4", {}, classes=3, input_shape=(1, 8, 8)), {})
    with pytest.raises(ModelError):
        evaluate(small, tmp_path / "out", run=None, weights=weights, student="cnn-2", data=small.data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": None}, "--run"),
        ({"run": None, "weights": Path("w")}, "--student and --data"),
        ({"student": "mlp-4"}, "with --run, the students are those of the run"),
        ({"bins": 0}, "--bins"),
        ({"split": "dev"}, "--split"),
        ({"temperature": 0.0}, "--temperature"),
    ],
)
def test_wrong_options(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(**{"run": tmp_path, "out": tmp_path / "out", **change})


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.json"):
        evaluation.run(EvaluateConfig(run=tmp_path, out=tmp_path / "out"))


def test_a_validation_split_without_labels_is_left_out(small: SmallPipeline, tmp_path: Path) -> None:
    archive = dict(np.load(small.data.removeprefix("arrays:")))
    archive["y"] = np.where(archive["split"] == "validation", -1, archive["y"])
    np.savez(tmp_path / "some.npz", **archive)
    report = evaluate(small, tmp_path / "out", data=f"arrays:{tmp_path / 'some.npz'}")
    assert "validation_accuracy" not in report.metrics and report.details["examples"] == COUNTS["test"]


def test_a_dataset_without_the_split_is_refused(small: SmallPipeline, tmp_path: Path) -> None:
    archive = {k: v for k, v in np.load(small.data.removeprefix("arrays:")).items()}
    train = archive["split"] == "train"
    np.savez(tmp_path / "train.npz", **{k: v[train] if len(v) == len(train) else v for k, v in archive.items()})
    with pytest.raises(DataError, match="in its test split; found none"):
        evaluate(small, tmp_path / "out", data=f"arrays:{tmp_path / 'train.npz'}", cache="none")


def test_students_of_classes_in_another_order_are_refused(small: SmallPipeline, tmp_path: Path) -> None:
    archive = dict(np.load(small.data.removeprefix("arrays:")))
    archive["classes"] = archive["classes"][::-1]
    np.savez(tmp_path / "turned.npz", **archive)
    with pytest.raises(ModelError, match="in another order"):
        evaluate(small, tmp_path / "out", data=f"arrays:{tmp_path / 'turned.npz'}", cache="none")


def test_a_folder_of_other_files_is_not_replaced(small: SmallPipeline, tmp_path: Path) -> None:
    evaluate(small, tmp_path / "out")
    evaluate(small, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"holds notes\.txt"):
        evaluate(small, tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").exists()


def test_code_that_a_run_names_is_imported_only_when_allowed(
    small: SmallPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may come from strangers: what its record names must not run by itself."""
    (tmp_path / "stranger.py").write_text(
        "import pathlib\n"
        "from pipeline.models import build_model\n"
        "pathlib.Path('ran').touch()\n"
        "def build(classes, input_shape): return build_model('cnn-2', classes=classes, input_shape=input_shape)\n"
    )
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(small.soft, run)
    record = json.loads((run / "run.json").read_text())
    record["config"]["student"] = "stranger:build"
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="--allow stranger:build"):
        evaluate(small, tmp_path / "out", run=run)
    assert not (tmp_path / "ran").exists()
    assert evaluate(small, tmp_path / "out", run=run, allow=("stranger:build",)).metrics["accuracy"] > 0
    record["config"] |= {"student": "cnn-2", "data": "stranger:build"}
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="names its data 'stranger:build'"):
        evaluate(small, tmp_path / "out", run=run)
