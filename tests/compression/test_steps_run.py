"""Every kind of step, run: its figures, its files and what they say of themselves; what cannot be done says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import compression, open_cache
from pipeline.artefacts.metadata import ArtefactMetadata, read_metadata
from pipeline.artefacts.opening import open_artefact
from pipeline.compression import bounds, making, pruned
from pipeline.compression.recipe import read_recipe
from pipeline.compression.steps import Check
from pipeline.compression.workshop import Workshop
from pipeline.datasets import load_dataset
from pipeline.errors import ConfigError, ModelError
from pipeline.evaluation import costs
from pipeline.evaluation.table import Row
from pipeline.models import logits_of
from pipeline.models.weights import read_state
from pipeline.runs import load_trained
from stages.cli import main
from tests.compression.every_step import EVERY, block, config, prune
from tests.small_pipeline import CLASSES, SmallPipeline

SKIPPED = {"of-a-file", "of-nothing", "headless"}


@pytest.fixture(scope="module")
def report(small: SmallPipeline, tmp_path_factory: pytest.TempPathFactory) -> compression.CompressReport:
    for package in ("onnx", "onnxscript", "onnxruntime", "torch_pruning"):
        pytest.importorskip(package)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "STARTS", 1)
        return compression.run(config(small, tmp_path_factory.mktemp("every"), EVERY))


@pytest.fixture(scope="module")
def rows(report: compression.CompressReport) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in report.table["rows"]}


def test_what_is_skipped_says_why_and_the_rest_has_figures(rows: dict[str, dict[str, Any]]) -> None:
    skipped = {name: row["skipped"] for name, row in rows.items() if row["skipped"]}
    skipped.pop("pruned-executorch", None)  # made where that package is
    assert set(skipped) == SKIPPED
    assert "pruned-finetuned-int8 is a file" in skipped["of-a-file"]
    assert skipped["of-nothing"] == "needs of-a-file, which was skipped"
    assert "no attention heads" in skipped["headless"]
    for name, row in rows.items():
        if row["skipped"] is None:
            assert 0 <= row["accuracy"] <= 1 and row["nll"] > 0 and row["parameters"] > 0, name
            assert row["check"] is not None or row["control"], name


def test_a_package_that_is_missing_is_named(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["pruned-executorch"]
    assert row["file"] == "pruned-executorch.pte" or "softlabels[executorch]" in row["skipped"]


def test_files_in_the_table_are_those_in_the_folder(
    report: compression.CompressReport, rows: dict[str, dict[str, Any]]
) -> None:
    out = Path(report.out)
    kinds = (".onnx", ".pt2", ".pte")
    named = {row["file"] for row in rows.values() if row["file"]}
    assert {path.name for path in out.iterdir() if path.suffix in kinds} == named
    assert {path.name for path in out.glob("*.safetensors")} == {"pruned.safetensors", "pruned-finetuned.safetensors"}
    for row in rows.values():
        assert not row["file"] or (out / row["file"]).stat().st_size == row["bytes"]
    assert not (out / "journal").exists()
    assert read_recipe(out / "recipe.toml") == read_recipe(out.parent / "recipe.toml")


def test_how_much_left_is_what_was_asked_for(rows: dict[str, dict[str, Any]]) -> None:
    whole = rows["baseline"]
    assert rows["to-macs"]["macs"] <= 0.5 * whole["macs"]
    assert rows["like"]["parameters"] == rows["to-macs"]["parameters"]
    for name in ("pruned", "to-macs", "within", "scanned", "in-rounds"):
        assert rows[name]["parameters"] < whole["parameters"], name
    assert rows["scanned"]["scan"] and rows["within"]["scan"]
    assert rows["pruned-scratch"]["parameters"] == rows["pruned"]["parameters"] == rows["opset-17"]["parameters"]
    assert "2 epochs" in rows["in-rounds"]["what"] and "hard" not in rows["like"]["what"]


def test_zeros_stay_zero_through_fine_tuning(rows: dict[str, dict[str, Any]]) -> None:
    whole, sparse, tuned = (
        rows["baseline"]["nonzeros"],
        rows["sparse"]["nonzeros"],
        rows["sparse-finetuned"]["nonzeros"],
    )
    assert sparse < 0.6 * whole
    assert tuned == pytest.approx(sparse, abs=3)  # a weight of the others may pass through zero
    assert sparse < rows["sparse-2-4"]["nonzeros"] < whole
    assert rows["sparse"]["parameters"] == rows["baseline"]["parameters"]
    assert any("no runtime here gains" in text for text in rows["sparse"]["warnings"])


def test_a_pruned_file_of_weights_gives_the_logits_of_its_model_bit_for_bit(
    report: compression.CompressReport, small: SmallPipeline
) -> None:
    """Against the same weights put into a model that was pruned here anew, and against the exported file."""
    dataset, out = load_dataset(small.data, {}), Path(report.out)
    inputs = torch.from_numpy(np.random.default_rng(1).normal(size=(9, 1, 8, 8)).astype(np.float32))
    for name in ("pruned", "pruned-finetuned"):
        path = out / f"{name}.safetensors"
        model, again = load_trained(path, dataset), load_trained(path, dataset)
        for key, tensor in read_state(path).items():
            assert torch.equal(model.state_dict()[key], tensor), key
        with torch.no_grad():
            logits = logits_of(model(inputs))
            assert torch.equal(logits, logits_of(again(inputs)))
        onnx = open_artefact(out / f"{name}.onnx").predict(inputs.numpy())
        np.testing.assert_allclose(onnx, logits.numpy(), atol=1e-5)


def test_files_say_what_they_are_and_where_they_come_from(
    report: compression.CompressReport, small: SmallPipeline
) -> None:
    cache = open_cache(small.cache)
    expected = {
        "baseline.onnx": [],
        "pruned.safetensors": [("prune", {"ratio": 0.5})],
        "pruned-finetuned.onnx": [("prune", {"ratio": 0.5}), ("finetune", {"epochs": 1})],
        "pruned-pt2.pt2": [("prune", {"ratio": 0.5}), ("export", {"format": "pt2"})],
        "pruned-bf16.pt2": [("prune", {"ratio": 0.5}), ("quantise", {"method": "bf16"})],
        "opset-17.onnx": [("prune", {"ratio": 0.5}), ("export", {"opset": 17})],
        "pruned-qat.onnx": [("prune", {"ratio": 0.5}), ("quantise", {"method": "qat"})],
    }
    for name, steps in expected.items():
        found = ArtefactMetadata.read(read_metadata(Path(report.out) / name), name)
        assert found.class_names == CLASSES and found.input_shape == (1, 8, 8), name
        assert found.lineage.cache == cache.digest, name
        assert found.lineage.teacher == cache.identity["teacher"], name
        assert (found.lineage.run, found.lineage.seed) == (small.soft.name, report.table["seed"])
        assert [(step.what, dict(step.options)) for step in found.steps] == steps, name


def test_int8_files_name_their_quantisation(report: compression.CompressReport) -> None:
    """Their metadata is that of the float file, with what was done to it since."""
    for name in ("pruned-finetuned-int8", "pruned-fp16", "pruned-int8-mixed", "pruned-int4-weights"):
        found = read_metadata(Path(report.out) / f"{name}.onnx")
        assert found["class_names"] == list(CLASSES) and found["lineage"]["run"], name
        assert "quantis" in json.dumps(found) or "float16" in json.dumps(found), name


def test_the_card_names_the_files_and_its_lines_work(report: compression.CompressReport) -> None:
    out = Path(report.out)
    text = (out / "README.md").read_text(encoding="utf-8")
    for row in report.table["rows"]:
        if row["file"] and not row["control"]:
            assert row["file"] in text
    assert report.table["command"] in text
    assert str(report.table["test_examples"]) in text
    code = text.partition("```python\n")[2].partition("```")[0]
    assert code
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        exec(compile(code, "README.md", "exec"), {})  # our own card


def test_bounds_are_held_against_the_rows() -> None:
    rows = [Row("baseline", "", accuracy=0.9, bytes=1000), Row("small", "", accuracy=0.87, bytes=400, agreement=0.9)]
    rows[1].latency = {"1": {"p50": 1.0}, "8": {"p50": 4.0}}
    kept = Check(of="small", max_drop=0.05, agreement=0.9, max_bytes=400, max_ms=4.0, smaller=2.5)
    assert list(bounds.broken(kept, rows)) == []
    found = list(bounds.broken(Check(of="small", max_drop=0.01, max_bytes=399, max_ms=3.0, smaller=3, faster=2), rows))
    assert [text.split(" ")[1] for text in found] == ["max_drop", "max_bytes", "max_ms", "smaller", "faster"]
    assert "cannot be told against baseline" in found[-1]
    skipped = [*rows, Row("gone", "", skipped="no package")]
    assert list(bounds.broken(Check(of="gone", max_bytes=1), skipped)) == ["gone was not made (no package)"]


def test_a_bound_that_is_broken_fails_the_command_after_all_is_written(
    small: SmallPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = prune("thin", ratio=0.5) + block("check", of="thin", max_drop=0.99, faster=3.0)
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    words = ["compress", "--runs", str(small.soft), "--recipe", str(tmp_path / "recipe.toml"), "--out", str(out)]
    words += ["--no-controls", "--latency-seconds", "0.001", "--latency-batch", "1", "--threads", "1"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "thin: faster of 3 cannot be told against baseline" in said and "max_drop" not in said
    assert {"table.json", "metrics.json", "recipe.toml", "README.md", "baseline.onnx"} <= {
        p.name for p in out.iterdir()
    }


def test_what_no_share_can_keep_is_skipped_and_so_is_what_takes_its_ratio(
    small: SmallPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target search that finds nothing has no ratio for its control on hard labels, nor a model for int8."""

    def by_size(self: Workshop, predict: Any) -> float:
        return sum(p.numel() for p in predict.parameters()) / 1e6 if isinstance(predict, torch.nn.Module) else 0.0

    monkeypatch.setattr(Workshop, "validation_accuracy", by_size)
    monkeypatch.setattr(costs, "STARTS", 1)
    text = block("prune", max_drop=0.0, trials=1, multiple=1) + block("quantise")
    report = compression.run(config(small, tmp_path, text, controls=True))
    reasons = {row["name"]: row["skipped"] for row in report.table["rows"]}
    assert "no share of the channels can leave within max_drop 0" in reasons["pruned"]
    for name in ("pruned-scratch", "pruned-int8"):
        assert reasons[name] == "needs pruned, which was skipped"
    assert reasons["pruned-hard"] == "takes the ratio of pruned, which was skipped"
    assert reasons["finetuned"] is None


def test_a_file_that_is_not_its_model_goes(
    small: SmallPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 1: whatever is exported is tried, and not believed when it differs."""
    export = making.export_onnx

    def wrong(model: torch.nn.Module, *rest: Any, **options: Any) -> None:
        with torch.no_grad():
            for parameter in (model := pruned.copy.deepcopy(model)).parameters():
                parameter.mul_(1.5)
        export(model, *rest, **options)

    monkeypatch.setattr(making, "export_onnx", wrong)
    report = compression.run(config(small, tmp_path, block("quantise")))
    baseline, int8 = report.table["rows"]
    assert "should give the logits of its model" in baseline["skipped"] and baseline["file"] is None
    assert baseline["accuracy"] is not None
    assert int8["skipped"] == "int8 needs baseline.onnx, which was not made"
    assert not list((tmp_path / "out").glob("*.onnx"))
    assert "No file was made" in (tmp_path / "out" / "README.md").read_text()


def test_names_are_checked_before_the_work(small: SmallPipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs --teacher"):
        compression.run(config(small, tmp_path, block("quantise", of="teacher")))
    with pytest.raises(ConfigError, match="found 'basline'"):
        compression.run(config(small, tmp_path, block("prune") + block("check", against="basline", faster=1.0)))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*softlabels-????????*"))


@pytest.mark.parametrize("name", ["README.md", "model.onnx", "weights.safetensors", "metrics.json"])
def test_a_folder_of_someone_s_models_or_notes_is_not_replaced(name: str, small: SmallPipeline, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"holds {name}"):
        compression.run(config(small, tmp_path, block("prune")))
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_what_a_step_cannot_be_made_from_is_named() -> None:
    with pytest.raises(ModelError, match="is a file"):
        pruned.model_of(pruned.Product("int8", None, Path("int8.onnx")), "pruning")
