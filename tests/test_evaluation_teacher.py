"""``evaluate --teacher``: a model that runs beside those measured says what an exact cache of it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import dump, teacher
from pipeline.dump import DumpConfig
from pipeline.errors import ConfigError
from pipeline.evaluation import EvaluateConfig
from pipeline.teacher import FitTeacherConfig
from tests.small_pipeline import CLASSES, SmallPipeline
from tests.test_evaluation import evaluate


def fitted(small: SmallPipeline, out: Path, **options: object) -> Path:
    settings = {"data": small.data, "teacher": "mlp-4", "epochs": 1, "views": 0, "out": out, "device": "cpu"}
    teacher.run(FitTeacherConfig(**{**settings, **options}))  # type: ignore[arg-type]
    return out


def test_it_says_what_a_cache_of_it_says(small: SmallPipeline, tmp_path: Path) -> None:
    folder = fitted(small, tmp_path / "teacher")
    cache = tmp_path / "cache"
    dump.run(DumpConfig(data=small.data, run=folder, out=cache, splits=("validation", "test"), views=0, device="cpu"))
    live = evaluate(small, tmp_path / "live", teacher=folder, temperature=2.0)
    held = evaluate(small, tmp_path / "held", cache=str(cache), temperature=2.0)
    for seed in ("0", "1"):
        found, expected = live.details["seeds"][seed], held.details["seeds"][seed]
        assert found["teacher_agreement"] == expected["teacher_agreement"]
        assert found["kl_to_teacher"] == pytest.approx(expected["kl_to_teacher"], rel=1e-2, abs=1e-4)
        assert found["mcnemar"] == expected["mcnemar"]
        assert "perplexity" not in found and "acceptance" not in found
    assert live.details["teacher"] == held.details["teacher"]
    assert live.details["cache"]["teacher"] == "mlp-4" and len(live.details["cache"]["state"]) == 64
    assert json.loads((tmp_path / "live" / "metrics.json").read_text())["teacher_accuracy"] > 0


def test_it_is_there_for_every_split(small: SmallPipeline, tmp_path: Path) -> None:
    folder = fitted(small, tmp_path / "teacher")
    report = evaluate(small, tmp_path / "out", teacher=folder, fidelity_on_train=True, models=(), split="validation")
    assert report.metrics["train_teacher_agreement"] > 0


def test_a_specialist_is_no_teacher_of_all(small: SmallPipeline, tmp_path: Path) -> None:
    folder = fitted(small, tmp_path / "teacher", classes=CLASSES[:2])
    with pytest.raises(ConfigError, match=r"--teacher should know all classes; .* is a specialist of left, middle"):
        evaluate(small, tmp_path / "out", teacher=folder)
    with pytest.raises(ConfigError, match="--teacher and --cache both say"):
        EvaluateConfig(run=small.soft, out=tmp_path / "out", teacher=folder, cache="somewhere")
