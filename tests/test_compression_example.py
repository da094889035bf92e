"""examples/compression: its recipe and its dvc.yaml against the commands, and a small run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("dvc")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch_pruning")

from pipeline.compression import CompressConfig
from pipeline.compression.recipe import read_recipe
from pipeline.compression.steps import Check, Prune
from pipeline.evaluation import EvaluateConfig
from pipeline.runs import parameter_count
from tests.examples import ROOT, copied, run_in_process, settings_as_read, stages_as_read

EXAMPLE = ROOT / "examples" / "compression"
PARAMS: dict[str, Any] = yaml.safe_load((EXAMPLE / "params.yaml").read_text(encoding="utf-8"))
RECIPE = """
[[steps]]
step = "prune"
name = "pruned"
ratio = 0.5

[[steps]]
step = "quantise"
method = "qat"

[[steps]]
step = "check"
of = "pruned-qat"
against = "teacher"
smaller = 1.5
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return settings_as_read("compression", stages_as_read(tmp_path_factory.mktemp("project"), "compression"))


def test_every_seed_has_its_own_chain_and_all_are_compared(settings: dict[str, Any]) -> None:
    compressed = {c.out.as_posix(): c for c in settings.values() if isinstance(c, CompressConfig) and not c.search}
    assert list(compressed) == [f"compressed/seed-{seed}" for seed in PARAMS["seeds"]]
    for seed, config in zip(PARAMS["seeds"], compressed.values(), strict=True):
        assert config.seed == seed and str(config.runs[0]) == f"runs/student-{seed}"
        assert str(config.teacher_weights) == f"models/teacher-{seed}/model.safetensors"
    together = next(c for c in settings.values() if isinstance(c, EvaluateConfig))
    assert list(together.models) == list(compressed) and together.baseline == "teacher"


def test_the_models_are_of_the_sizes_that_are_told() -> None:
    from pipeline.models import build_model

    sizes = {
        name: parameter_count(build_model(name, {}, classes=10, input_shape=(1, 16, 16)))
        for name in (PARAMS["teacher"]["teacher"], PARAMS["student"]["student"])
    }
    assert list(sizes.values()) == [1_226_442, 308_074]


def test_the_recipe_asks_for_what_the_readme_promises() -> None:
    steps = read_recipe(EXAMPLE / "recipe.toml").steps
    checks = [step for step in steps if isinstance(step, Check)]
    assert [(c.of, c.against, c.smaller, c.faster) for c in checks] == [("pruned-qat", "teacher", 40, 5)]
    assert [step.name for step in steps if isinstance(step, Prune)] == ["pruned", "tenth"]


@pytest.mark.slow
def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds of tiny models, every stage; the table of both seeds is what their files came to."""
    small = {**PARAMS, "seeds": [0, 1]}
    small["teacher"] = {**PARAMS["teacher"], "teacher": "cnn-8", "epochs": 1, "views": 1}
    small["dump"] = {**PARAMS["dump"], "views": 1}
    small["student"] = {**PARAMS["student"], "student": "cnn-4", "epochs": 1}
    small["compress"] = {**PARAMS["compress"], "epochs": 1, "latency_seconds": 0.001, "calibration": 32}
    small["search"] = {"epochs": 1, "budget": 1, "latency_seconds": 0.001, "calibration": 32}
    folder = copied(tmp_path, "compression", small)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    run_in_process(tmp_path, folder, monkeypatch)
    together = json.loads((folder / "evaluations" / "all" / "details.json").read_text())
    rows = {row["name"]: row for row in together["rows"]}
    assert {"teacher", "baseline", "pruned", "pruned-qat", "pruned-scratch"} <= set(rows)
    tables = [json.loads((folder / "compressed" / f"seed-{s}" / "table.json").read_text()) for s in (0, 1)]
    for name, row in rows.items():
        accuracies = [next(r["accuracy"] for r in table["rows"] if r["name"] == name) for table in tables]
        assert row["seeds"] == 2 and row["accuracy"] == pytest.approx(sum(accuracies) / 2), name
        assert row["corrupted_accuracy"] is not None, name
    assert (folder / "report" / "index.html").is_file()
