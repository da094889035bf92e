"""The verbs about a cache, as typed: inspect, verify, gc (finalize: tests/test_fleet.py)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.datasets import load_dataset
from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.models import build_model, save_weights
from pipeline.workspace import Workspace
from stages.cache import command
from stages.verbs.verifying import verify


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(command, arguments)


def teacher_in(folder: Path, shift: float = 0.0) -> Path:
    """Weights of an untrained mlp-8, every one of them moved by ``shift``."""
    import torch

    torch.manual_seed(0)
    model = build_model("mlp-8", {}, classes=10, input_shape=load_dataset("digits").input_shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(shift)
    path = folder / f"teacher{shift:g}.safetensors"
    save_weights(path, model, {})
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches")
    views = {"views": 1, "transform": "affine:degrees=10", "splits": ("train", "test")}
    dump(DumpConfig(out=folder / "digits", teacher="mlp-8", weights=teacher_in(folder), **views))
    return folder / "digits"


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(cache, tmp_path / "copy"))


def test_inspect_says_what_a_cache_is(cache: Path) -> None:
    text = invoke("inspect", str(cache)).stdout
    for words in ("mlp-8", "affine:degrees=10", "dense", "0: exact", "bytes per label", "labels.zarr/logits", "train"):
        assert words in text
    assert "kl at T = 4" in text


def test_inspect_as_json_is_the_manifest_and_sizes(cache: Path) -> None:
    found = json.loads(invoke("inspect", str(cache), "--json").stdout)
    manifest = json.loads((cache / "manifest.json").read_text())
    assert found["identity"] == manifest["identity"] and found["bytes"]["total"] > found["bytes"]["index"] > 0


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_no_cache_there_is_status_1(verb: str, tmp_path: Path) -> None:
    result = invoke(verb, str(tmp_path / "nothing"))
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and result.stdout == ""


def test_verify_a_sound_cache(cache: Path) -> None:
    result = invoke("verify", str(cache))
    assert result.exit_code == 0 and "sound" in result.stdout


def test_verify_names_every_file_that_changed(copy: Path) -> None:
    damaged = sorted(path for path in (copy / "labels.zarr").rglob("c/*") if path.is_file())[:1]
    damaged += sorted((copy / "index").glob("*.parquet"))[-1:]
    for path in damaged:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    result = invoke("verify", str(copy), "--json")
    assert result.exit_code == 1 and not json.loads(result.stdout)["ok"]
    assert all(str(path.relative_to(copy)) in result.stderr for path in damaged)


def test_verify_with_the_teacher_that_made_it(cache: Path, tmp_path: Path) -> None:
    arguments = ["verify", str(cache), "--teacher", "mlp-8", "--entries", "20"]
    result = invoke(*arguments, "--weights", str(teacher_in(tmp_path)), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["teacher"]["entries"] == 20
    other = invoke(*arguments, "--weights", str(teacher_in(tmp_path, shift=1.0)))
    assert other.exit_code == 1 and "was made by teacher" in other.stderr


def test_options_about_the_teacher_need_one(cache: Path) -> None:
    result = invoke("verify", str(cache), "--entries", "5", "--tolerance", "0.1")
    assert result.exit_code == 2 and "--entries, --tolerance need --teacher" in result.stderr


def test_verify_offers_every_option_of_its_configuration_with_its_default() -> None:
    from pipeline.verification import VerifyConfig

    offered = {parameter.name: parameter for parameter in verify.params if parameter.name not in ("as_json", "partly")}
    fields = {field.name: field for field in dataclasses.fields(VerifyConfig)}
    assert set(offered) == set(fields)
    for name, field in fields.items():
        if field.default not in (None, (), dataclasses.MISSING):
            assert f"[default: {field.default}]" in str(getattr(offered[name], "help", "")), name


def test_a_difference_from_the_teacher_is_no_damage(cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from pipeline import verification

    monkeypatch.setattr(verification, "differences", lambda logits, stored, encoding: logits.max(axis=1) * 0 + 0.5)
    weights = str(teacher_in(tmp_path))
    result = invoke("verify", str(cache), "--teacher", "mlp-8", "--weights", weights, "--entries", "3")
    assert result.exit_code == 1 and "BEYOND" in result.stderr and "Fetch it again" not in result.stderr


def left_behind(folder: Path) -> Path:
    with Workspace(folder / "caches" / "digits", "a" * 64) as space:
        (space.path / "part").write_bytes(b"x" * 100)
    return space.path


def test_gc_lists_and_removes_on_yes(tmp_path: Path) -> None:
    scratch = left_behind(tmp_path)
    (scratch.parent / ".digits.softlabels-holder").touch()  # of a process that was killed: removed, not worth a line
    listed = invoke("gc", str(tmp_path))
    assert listed.exit_code == 0 and str(scratch) in listed.stdout and "run again with --yes" in listed.stdout
    assert scratch.is_dir()
    removed = json.loads(invoke("gc", str(tmp_path), "--yes", "--json").stdout)
    assert removed == {"removed": True, "bytes": 100, "found": [{"path": str(scratch), "bytes": 100}]}
    assert list((tmp_path / "caches").iterdir()) == []
    assert "nothing left behind" in invoke("gc", str(tmp_path)).stdout


def test_gc_leaves_a_running_dump_and_finished_outputs_alone(tmp_path: Path) -> None:
    (tmp_path / "caches" / "digits").mkdir(parents=True)
    with Workspace(tmp_path / "caches" / "digits", "b" * 64) as space:
        assert "nothing left behind" in invoke("gc", str(tmp_path), "--yes").stdout
        assert space.path.is_dir()
    assert (tmp_path / "caches" / "digits").is_dir()


def test_gc_does_not_follow_links(tmp_path: Path) -> None:
    scratch = left_behind(tmp_path)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    (scratch / "link").symlink_to(precious)
    assert invoke("gc", str(tmp_path / "caches"), "--yes").exit_code == 0
    assert (precious / "file").read_text() == "kept" and not scratch.exists()
