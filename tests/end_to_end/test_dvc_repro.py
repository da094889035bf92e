"""A real ``dvc repro`` of the shipped dvc.yaml, on small parameters, and what a user may expect of it afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "teacher": {"teacher": "cnn-4", "views": 1, "transform": "affine:degrees=15", "epochs": 3, "seed": 0},
    "dump": {"views": 2, "transform": "affine:degrees=15", "seed": 0, "features": ["hint=stage2"]},
    "students": {"mlp-8": {"epochs": 2}},
    "train": {"lr": 0.01, "temperature": 4.0, "seeds": 2, "seed": 0},
    "methods": {"hard": {"alpha": 0.0}, "replayed": {"train_views": "all"}},
    "compress": {"prune": [0.5], "epochs": 1, "seed": 0},
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout of what the pipeline needs, reproduced once."""
    pytest.importorskip("dvc")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("pipeline", ".dvc"):
        ignored = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "params.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False))
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", "--all")
    run(folder, "git", "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "--quiet", "-m", "small")
    run(folder, "dvc", "repro")
    return folder


def run(folder: Path, *command: str) -> str:
    """What a command prints on either stream; its failure fails the test."""
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(places), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    environment |= {"DVC_NO_ANALYTICS": "1", "XDG_CACHE_HOME": str(folder.parent / "xdg")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_the_report_stands_alone(checkout: Path) -> None:
    page = (checkout / "report" / "index.html").read_text()
    assert "mlp-8" in page
    assert 'src="http' not in page and "<link" not in page


def test_a_second_time_does_nothing(checkout: Path) -> None:
    printed = run(checkout, "dvc", "repro")
    assert "Running stage" not in printed
    assert "up to date" in printed


def test_a_deleted_cache_comes_back_without_the_teacher(checkout: Path) -> None:
    before = (checkout / "caches/digits/manifest.json").read_bytes()
    shutil.rmtree(checkout / "caches/digits")
    assert "softlabels dump" not in run(checkout, "dvc", "repro")
    assert (checkout / "caches/digits/manifest.json").read_bytes() == before


def test_metrics_and_parameters_can_be_read(checkout: Path) -> None:
    metrics = json.loads(run(checkout, "dvc", "metrics", "show", "--json"))[""]["data"]
    assert 0.2 < metrics["evaluations/mlp-8-replayed/metrics.json"]["data"]["accuracy"] <= 1
    changed = {**SMALL, "train": {**SMALL["train"], "temperature": 2.0}}  # type: ignore[dict-item]
    (checkout / "params.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    try:
        assert "train.temperature" in run(checkout, "dvc", "params", "diff")
    finally:
        (checkout / "params.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False))


def test_another_temperature_trains_students_and_leaves_the_teacher_alone(checkout: Path) -> None:
    printed = run(checkout, "dvc", "exp", "run", "-S", "train.temperature=8", "train")
    ran = {line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")}
    assert ran == {"train@mlp-8-hard", "train@mlp-8-replayed"}
    config = json.loads((checkout / "runs/mlp-8-replayed/run.json").read_text())
    assert config["config"]["temperature"] == 8
