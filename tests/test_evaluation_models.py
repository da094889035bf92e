"""Several models side by side: whatever holds a model, named as one likes, in one table of paired comparisons."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import compression, evaluation
from pipeline.artefacts.onnx_file import export_onnx
from pipeline.artefacts.opening import open_artefact
from pipeline.artefacts.pt2_file import export_pt2
from pipeline.errors import ConfigError, ModelError
from pipeline.evaluation import EvaluateConfig, costs
from pipeline.identity import digest_bytes
from pipeline.models import build_model, save_weights
from pipeline.teacher import FitTeacherConfig
from pipeline.teacher import run as fit_teacher
from tests.compression.every_step import block, config
from tests.small_pipeline import CLASSES, COUNTS, SmallPipeline, write_images

SHAPE = (1, 8, 8)


def fresh(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("cnn-2", {}, classes=3, input_shape=SHAPE).eval()


def own_model(classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """What a file may name, and what nobody imports for that."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), classes))


def evaluate(small: SmallPipeline, out: Path, *models: Any, **options: Any) -> evaluation.EvaluateReport:
    quick: dict[str, Any] = {"data": small.data, "device": "cpu", "threads": 1, "cost": False, "out": out}
    return evaluation.run(EvaluateConfig(models=tuple(map(str, models)), **{**quick, **options}))


def table(report: evaluation.EvaluateReport) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in report.details["rows"]}


@pytest.fixture(scope="module")
def compressed(small: SmallPipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same recipe for both seeds of a run."""
    for package in ("onnx", "onnxscript", "onnxruntime", "torch_pruning"):
        pytest.importorskip(package)
    recipe = block("prune", ratio=0.5, multiple=1, epochs=0) + block("quantise", activations="uint8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "STARTS", 1)
        made = {}
        for seed in (0, 1):
            folder = tmp_path_factory.mktemp(f"seed-{seed}")
            made[seed] = Path(compression.run(config(small, folder, recipe, student_seed=seed)).out)
    return made


@pytest.fixture(scope="module")
def teacher(small: SmallPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teachers") / "fitted"
    fit_teacher(FitTeacherConfig(data=small.data, teacher="cnn-4", epochs=1, views=0, out=out, device="cpu"))
    return out


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "student.pt2"
    export_pt2(fresh(), SHAPE, path, {"class_names": list(CLASSES), "preprocessing": "values as they are, in float32"})
    return path


def test_everything_that_holds_a_model_is_a_row(
    small: SmallPipeline, compressed: dict[int, Path], teacher: Path, program: Path, tmp_path: Path
) -> None:
    folder = compressed[0]
    trust = digest_bytes(program.read_bytes())
    report = evaluate(
        small, tmp_path / "out", small.soft, teacher, small.hard / "seed-1" / "model.safetensors",
        folder / "pruned.safetensors", f"again={folder / 'pruned.onnx'}", f"mine={folder}", program, trust=(trust,),
    )  # fmt: skip
    rows = table(report)
    names = ["cnn-2-soft", "fitted", "cnn-2-hard/seed-1", "pruned", "again", "mine/baseline", "mine/pruned"]
    assert list(rows) == [*names, "mine/pruned-int8", "student"]
    assert rows["cnn-2-soft"]["seeds"] == 2 and rows["fitted"]["seeds"] == 1
    assert rows["again"]["accuracy"] == rows["pruned"]["accuracy"] == rows["mine/pruned"]["accuracy"]
    assert rows["again"]["parameters"] <= rows["pruned"]["parameters"] < rows["cnn-2-soft"]["parameters"], "norms fold"
    assert rows["mine/pruned-int8"]["source"] == "mine/pruned" and rows["mine/baseline"]["source"] is None
    assert rows["student"]["runtime"].startswith("torch") and rows["again"]["runtime"].startswith("onnxruntime")
    assert report.summary.splitlines()[-1].endswith(f"9 models on {COUNTS['test']} test examples; not timed")
    assert "± seeds" in report.summary
    flat = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert flat == report.metrics and all(isinstance(value, (int, float)) for value in flat.values())
    assert json.loads((tmp_path / "out" / "details.json").read_text()) == report.details
    assert report.details["environment"]["timed"] is False and rows["again"]["latency"] is None
    assert report.details["command"].startswith("softlabels evaluate ")


def test_what_runs_code_when_it_is_opened_needs_a_word(small: SmallPipeline, program: Path, tmp_path: Path) -> None:
    for trust in ((), ("0" * 64,)):
        with pytest.raises(ModelError, match=r"student\.pt2.*"):
            evaluate(small, tmp_path / "out", program, trust=trust)
    assert not (tmp_path / "out").exists()


def test_a_listed_program_is_left_out_until_somebody_vouches_for_it(
    small: SmallPipeline, compressed: dict[int, Path], program: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "compressed"
    shutil.copytree(compressed[0], folder)
    shutil.copy(program, folder)
    table_file = folder / "table.json"
    found = json.loads(table_file.read_text())
    found["rows"].append({**found["rows"][0], "name": "program", "file": program.name})
    table_file.write_text(json.dumps(found))
    assert "program" not in table(evaluate(small, tmp_path / "out", folder))
    trust = (digest_bytes(program.read_bytes()),)
    assert "program" in table(evaluate(small, tmp_path / "again", folder, trust=trust))


def test_seeds_under_one_name_are_one_row_with_its_spread(
    small: SmallPipeline, compressed: dict[int, Path], tmp_path: Path
) -> None:
    files = [small.soft / f"seed-{seed}" / "model.safetensors" for seed in (0, 1)]
    rows = table(evaluate(small, tmp_path / "out", *(f"both={file}" for file in files), *files, small.soft))
    both, run = rows["both"], rows["cnn-2-soft"]
    singly = [rows[f"cnn-2-soft/seed-{seed}"]["accuracy"] for seed in (0, 1)]
    assert both["seeds"] == 2 and both["accuracy"] == pytest.approx(np.mean(singly))
    assert both["accuracy_std"] == pytest.approx(np.std(singly, ddof=1))
    assert (both["accuracy"], both["accuracy_std"]) == (run["accuracy"], run["accuracy_std"])
    assert both["mcnemar_source"] is None and both["agreement"] is None, "the first row"


def test_directories_of_compress_of_several_seeds_come_together(
    small: SmallPipeline, compressed: dict[int, Path], tmp_path: Path
) -> None:
    report = evaluate(small, tmp_path / "out", compressed[0], compressed[1])
    rows = table(report)
    assert {name: row["seeds"] for name, row in rows.items()} == {"baseline": 2, "pruned": 2, "pruned-int8": 2}
    for name in rows:
        own = [json.loads((folder / "table.json").read_text())["rows"] for folder in compressed.values()]
        each = [row["accuracy"] for one in own for row in one if row["name"] == name]
        assert rows[name]["accuracy"] == pytest.approx(np.mean(each))
    assert set(report.details["models"]["pruned"]["seeds"]) == {"0", "1"}


@pytest.mark.parametrize("first", ["plain", "named"])
def test_names_that_collide_by_chance_are_refused(first: str, small: SmallPipeline, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_weights(tmp_path / folder / "net.safetensors", fresh(), {"reference": "cnn-2", "args": {}})
    one, other = tmp_path / "a" / "net.safetensors", tmp_path / "b" / "net.safetensors"
    with pytest.raises(ConfigError, match=r"would both be called net\. Write NAME=PATH"):
        evaluate(small, tmp_path / "out", one if first == "plain" else f"net={one}", other)
    with pytest.raises(ConfigError, match="named twice as x"):
        evaluate(small, tmp_path / "out", f"x={one}", f"x={one.parent / '..' / 'a' / 'net.safetensors'}")


def test_a_run_of_several_seeds_is_not_one_seed(small: SmallPipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has several seeds"):
        evaluate(small, tmp_path / "out", f"x={small.soft}", f"x={small.hard}")


def test_what_is_not_there_or_holds_nothing_is_named(small: SmallPipeline, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no model")
    cases: list[tuple[str, str]] = [
        ("nowhere", "there is no nowhere"), ("x=nowhere.onnx", r"there is no nowhere\.onnx"),
        ("text.txt", r"text\.txt"),
    ]  # fmt: skip
    for named, message in cases:
        text = str(tmp_path / named) if (tmp_path / named).exists() else named
        with pytest.raises((ConfigError, ModelError), match=message):
            evaluate(small, tmp_path / "out", text)
    with pytest.raises(ConfigError, match="empty is a folder without any of them"):
        evaluate(small, tmp_path / "out", tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"Name .*seed-0/model\.safetensors"):
        evaluate(small, tmp_path / "out", small.soft / "seed-0")
    with pytest.raises(ConfigError, match="--data should name a dataset"):
        save_weights(tmp_path / "net.safetensors", fresh(), {"reference": "cnn-2", "args": {}})
        evaluate(small, tmp_path / "out", tmp_path / "net.safetensors", data=None)


@pytest.mark.parametrize("kind", ["onnx", "safetensors"])
@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"class_names": ["left", "right", "middle"]}, "class"),
        ({"preprocessing": "scaled to 0..1"}, "scaled to 0..1"),
    ],
)
def test_other_classes_or_preprocessing_are_refused(
    kind: str, says: dict[str, Any], message: str, small: SmallPipeline, tmp_path: Path
) -> None:
    path = tmp_path / f"model.{kind}"
    metadata = {"softlabels": 1, "class_names": list(CLASSES), "reference": "cnn-2", "args": {}, **says}
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        export_onnx(fresh(), SHAPE, path, opset=18, metadata=metadata)
    else:
        save_weights(path, fresh(), metadata)
    with pytest.raises(ModelError, match=message) as caught:
        evaluate(small, tmp_path / "out", path)
    assert path.name in str(caught.value)


def test_another_input_or_number_of_classes_is_refused(small: SmallPipeline, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    wide = build_model("cnn-2", {}, classes=3, input_shape=(3, 8, 8)).eval()
    export_onnx(wide, (3, 8, 8), tmp_path / "wide.onnx", opset=18, metadata={})
    with pytest.raises(ModelError, match=r"wide\.onnx should take inputs of shape \(1, 1, 8, 8\)"):
        evaluate(small, tmp_path / "out", tmp_path / "wide.onnx")
    many = build_model("cnn-2", {}, classes=5, input_shape=SHAPE).eval()
    export_onnx(many, SHAPE, tmp_path / "many.onnx", opset=18, metadata={})
    with pytest.raises(ModelError, match=r"many\.onnx should give logits of shape \(1, 3\)"):
        evaluate(small, tmp_path / "out", tmp_path / "many.onnx")


def test_files_of_others_name_their_inputs_as_they_like(small: SmallPipeline, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    export_onnx(fresh(), SHAPE, tmp_path / "own.onnx", opset=18, metadata={})
    proto = onnx.load(tmp_path / "own.onnx")
    del proto.metadata_props[:]
    for node in proto.graph.node:
        node.input[:] = ["pixels" if name == "input" else name for name in node.input]
    proto.graph.input[0].name = "pixels"
    onnx.save(proto, tmp_path / "other.onnx")
    rows = table(evaluate(small, tmp_path / "out", tmp_path / "own.onnx", tmp_path / "other.onnx"))
    assert rows["other"]["agreement"] == 1.0 and rows["other"]["nll"] == rows["own"]["nll"]


def test_code_that_only_a_file_names_is_not_imported(small: SmallPipeline, tmp_path: Path) -> None:
    reference = f"{__name__}:own_model"
    path = tmp_path / "own.safetensors"
    save_weights(path, own_model(3, SHAPE), {"reference": reference, "args": {}, "class_names": list(CLASSES)})
    with pytest.raises(ConfigError, match=rf"never imported: pass --allow {reference}"):
        evaluate(small, tmp_path / "out", path)
    allowed = table(evaluate(small, tmp_path / "out", path, allow=(reference,)))
    typed = table(evaluate(small, tmp_path / "out", path, student=reference))
    assert allowed["own"]["accuracy"] == typed["own"]["accuracy"]


def test_student_is_for_files_that_do_not_say(small: SmallPipeline, tmp_path: Path) -> None:
    save_weights(tmp_path / "silent.safetensors", fresh(), {})
    with pytest.raises(ConfigError, match=r"silent\.safetensors does not say what builds its model"):
        evaluate(small, tmp_path / "out", tmp_path / "silent.safetensors")
    four = small.hard / "seed-0" / "model.safetensors"
    save_weights(tmp_path / "wide.safetensors", build_model("mlp-5", {}, classes=3, input_shape=SHAPE), {
        "reference": "mlp-5", "args": {},
    })  # fmt: skip
    models = (tmp_path / "silent.safetensors", four, tmp_path / "wide.safetensors")
    rows = table(evaluate(small, tmp_path / "out", *models, student="cnn-2"))
    assert len(rows) == 3 and rows["wide"]["parameters"] != rows["silent"]["parameters"]


def test_paired_figures_are_those_of_an_independent_count(
    small: SmallPipeline, compressed: dict[int, Path], tmp_path: Path
) -> None:
    """McNemar's exact test by binomial sums, and agreement, from the files' own answers."""
    report = evaluate(small, tmp_path / "out", compressed[0], small.hard / "seed-0" / "model.safetensors", cache="none")
    archive = np.load(small.data.removeprefix("arrays:"))
    test = archive["split"] == "test"
    inputs, labels = archive["x"][test], archive["y"][test]
    guesses = {
        name: open_artefact(compressed[0] / f"{name}.onnx").predict(inputs).argmax(axis=1)
        for name in ("baseline", "pruned", "pruned-int8")
    }
    rows = table(report)
    assert rows["cnn-2-hard/seed-0"]["mcnemar_source"]["row"] == "pruned-int8", "without a source it is the row before"
    for name, other in (("pruned", "baseline"), ("pruned-int8", "pruned")):
        mine, theirs = guesses[name] == labels, guesses[other] == labels
        only, missed = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
        n, k = only + missed, min(only, missed)
        p = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0
        found = rows[name]["mcnemar_source"]
        assert found["row"] == other and found["p_value"] == pytest.approx(p)
        assert {only, missed} <= {value for value in found.values() if isinstance(value, int)}
        assert rows[name]["agreement"] == pytest.approx((guesses[name] == guesses[other]).mean())
        assert rows[name]["against_source"]["difference"] == pytest.approx(mine.mean() - theirs.mean())
        gap = rows[name]["against_baseline"]["difference"]
        assert gap == pytest.approx(mine.mean() - (guesses["baseline"] == labels).mean())
    assert rows["baseline"]["teacher_agreement"] is None and rows["baseline"]["mcnemar_teacher"] is None


def test_the_baseline_is_the_row_that_one_names(
    small: SmallPipeline, compressed: dict[int, Path], tmp_path: Path
) -> None:
    report = evaluate(small, tmp_path / "out", compressed[0], baseline="pruned")
    rows = table(report)
    assert report.details["baseline"] == "pruned" and rows["pruned"]["against_baseline"] is None
    difference = rows["baseline"]["accuracy"] - rows["pruned"]["accuracy"]
    assert rows["baseline"]["against_baseline"]["difference"] == pytest.approx(difference)
    with pytest.raises(ConfigError, match="--baseline should be one of baseline, pruned, pruned-int8; found 'first'"):
        evaluate(small, tmp_path / "out", compressed[0], baseline="first")


def test_costs_corruptions_and_outliers_are_in_the_rows(
    small: SmallPipeline, compressed: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "STARTS", 1)
    archive = dict(np.load(small.data.removeprefix("arrays:")))
    archive["x"] = np.clip(archive["x"] / 4 + 0.5, 0, 1)  # corruptions act on images from 0 to 1
    np.savez(tmp_path / "bright.npz", **archive)
    report = evaluate(
        small, tmp_path / "out", f"file={compressed[0] / 'pruned.onnx'}", small.soft, cost=True, latency_seconds=0.001,
        latency_batch=(1, 4), corruptions=("brightness",), severities=(3,), outliers="normal-noise",
        data=f"arrays:{tmp_path / 'bright.npz'}", cache="none",
    )  # fmt: skip
    for row in table(report).values():
        assert set(row["latency"]) == {"1", "4"}
        assert 0 <= row["corrupted_accuracy"] <= 1 and 0 <= row["outlier_auroc"] <= 1
    file, run = table(report)["file"], table(report)["cnn-2-soft"]
    assert file["memory"] and file["load_seconds"] > 0 and run["memory"] is None
    assert "corrupted" in report.summary.splitlines()[0] and "ms at 4" in report.summary.splitlines()[0]
    # Trap 9: either joules that a counter gave, or the reason why there are none.
    energy = report.details["environment"]["energy"]
    assert isinstance(energy, str) and energy
    assert (file["joules"] is None) == ("joules per example" not in energy)


def test_data_of_other_shapes_does_not_open_a_run(small: SmallPipeline, tmp_path: Path) -> None:
    other = write_images(tmp_path / "other.npz")
    archive = dict(np.load(tmp_path / "other.npz"))
    archive["x"] = np.zeros((len(archive["x"]), 2, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "other.npz", **archive)
    with pytest.raises(ModelError):
        evaluate(small, tmp_path / "out", small.soft, data=other, cache="none")
