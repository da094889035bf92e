"""``softlabels dump --run``: a finished run is the teacher, and nothing that its files name is imported unasked."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.models import build_model, read_metadata, save_weights
from pipeline.runs import read_trained
from pipeline.store import open_cache
from stages.cli import main
from tests.small_pipeline import SmallPipeline


def softlabels(*words: Any) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


def dumped(small: SmallPipeline, out: Path, *words: Any) -> Any:
    return softlabels("dump", "--data", small.data, "--device", "cpu", *words, "--out", out)


def test_a_student_becomes_a_teacher_with_the_cache_of_its_weights(small: SmallPipeline, tmp_path: Path) -> None:
    made = dumped(small, tmp_path / "run", "--run", small.soft, "--run-seed", 1)
    assert made.exit_code == 0, made.stderr
    weights = small.soft / "seed-1" / "model.safetensors"
    assert dumped(small, tmp_path / "typed", "--teacher", "cnn-2", "--weights", weights).exit_code == 0
    cache, typed = open_cache(tmp_path / "run"), open_cache(tmp_path / "typed")
    assert cache.digest == typed.digest
    record = json.loads((small.soft / "run.json").read_text())
    assert cache.identity["teacher"]["state"] == record["seeds"][1]["state"]
    lowest = dumped(small, tmp_path / "lowest", "--run", small.soft)
    assert lowest.exit_code == 0
    assert open_cache(tmp_path / "lowest").identity["teacher"]["state"] == record["seeds"][0]["state"]


def test_a_fitted_teacher_with_arguments_and_classes_of_its_own(small: SmallPipeline, tmp_path: Path) -> None:
    words = ("--data", small.data, "--teacher", "mlp-8", "--classes", "left,right", "--views", 0, "--epochs", 1)
    made = softlabels("fit-teacher", *words, "--device", "cpu", "--out", tmp_path / "t")
    assert made.exit_code == 0, made.stderr
    assert dumped(small, tmp_path / "c", "--run", tmp_path / "t").exit_code == 0
    assert tuple(open_cache(tmp_path / "c").class_names) == ("left", "right")
    found = read_trained(tmp_path / "t")
    assert (found.reference, found.arguments, found.classes) == ("mlp-8", (), ("left,right",))
    refused = dumped(small, tmp_path / "d", "--run", tmp_path / "t", "--run-seed", 0)
    assert refused.exit_code == 2 and "leave --run-seed out" in refused.stderr


def test_contradictions_are_one_error(small: SmallPipeline, tmp_path: Path) -> None:
    typed = ("--teacher", "mlp-8", "--teacher-args", "bias=false", "--weights", small.teacher)
    found = dumped(small, tmp_path / "c", "--run", small.soft, *typed)
    assert found.exit_code == 2
    assert "leave --teacher, --teacher-args, --weights out, or --run" in found.stderr
    assert "problems:" not in found.stderr
    alone = dumped(small, tmp_path / "c", "--teacher", "cnn-4", "--weights", small.teacher, "--run-seed", 1)
    assert alone.exit_code == 2 and "are of the run that --run names" in alone.stderr


@pytest.mark.parametrize("spoil", ["nothing", "no weights", "no seed", "strange record", "report of another stage"])
def test_what_is_no_finished_run_is_refused(small: SmallPipeline, tmp_path: Path, spoil: str) -> None:
    run, words = tmp_path / "run", ()
    if spoil == "nothing":
        run.mkdir()
    elif spoil == "report of another stage":
        run.mkdir()
        (run / "report.json").write_text('{"config": {"out": "x"}}')
    else:
        shutil.copytree(small.soft, run)
    if spoil == "no weights":
        for path in run.glob("seed-*/model.safetensors"):
            path.unlink()
    elif spoil == "no seed":
        words = ("--run-seed", "7")
    elif spoil == "strange record":
        (run / "run.json").write_text("[]")
    found = dumped(small, tmp_path / "c", "--run", run, *words)
    assert found.exit_code == 2 and str(run) in found.stderr
    assert "7; it has 0, 1" in found.stderr or "run" in found.stderr
    assert not (tmp_path / "c").exists()


def test_weights_of_another_model_are_refused(small: SmallPipeline, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small.soft, run)
    weights = run / "seed-0" / "model.safetensors"
    metadata = read_metadata(weights)
    save_weights(
        weights, build_model("cnn-2", {}, classes=3, input_shape=(1, 8, 8)), {**metadata, "reference": "cnn-9"}
    )
    found = dumped(small, tmp_path / "c", "--run", run)
    assert found.exit_code == 2 and "records a cnn-2" in found.stderr and "of cnn-9" in found.stderr


def test_code_that_a_run_names_is_imported_only_when_it_is_allowed(
    small: SmallPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when both the record and the metadata of the weights name it."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_chain_model.py").write_text(
        "from pipeline.models import build_model\n"
        "def build(classes, input_shape):\n"
        "    return build_model('cnn-2', {}, classes=classes, input_shape=input_shape)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    run = tmp_path / "run"
    shutil.copytree(small.soft, run)
    record = json.loads((run / "run.json").read_text())
    record["config"]["student"] = "own_chain_model:build"
    (run / "run.json").write_text(json.dumps(record))
    weights = run / "seed-0" / "model.safetensors"
    metadata = {**read_metadata(weights), "reference": "own_chain_model:build"}
    model = build_model("cnn-2", {}, classes=3, input_shape=(1, 8, 8))
    save_weights(weights, model, metadata)
    refused = dumped(small, tmp_path / "c", "--run", run)
    assert refused.exit_code == 2 and "--allow own_chain_model:build" in refused.stderr
    assert "own_chain_model" not in sys.modules
    allowed = dumped(small, tmp_path / "c", "--run", run, "--allow", "own_chain_model:build")
    assert allowed.exit_code == 0, allowed.stderr
    assert open_cache(tmp_path / "c").identity["teacher"]["reference"] == "own_chain_model:build"
