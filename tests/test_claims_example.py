"""examples/claims: each claim compares what it speaks of and nothing else, and a small run makes the page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("dvc")

from pipeline.evaluation import EvaluateConfig
from pipeline.evaluation.comparing import CompareConfig, read_comparison
from pipeline.training import TrainConfig
from tests.examples import ROOT, copied, run_in_process, settings_as_read, stages_as_read

EXAMPLE = ROOT / "examples" / "claims"
PARAMS: dict[str, Any] = yaml.safe_load((EXAMPLE / "params.yaml").read_text(encoding="utf-8"))
SPOKEN_OF = {
    "omitted-mlp": {"alpha", "temperature"},  # which is of soft labels, and one side has none
    "omitted-mlp-bias": set(),
    "omitted-mlp-bias-all": set(),
    "omitted-cnn": {"alpha", "temperature"},
    "omitted-cnn-bias": set(),
    "omitted-cnn-bias-all": set(),
    "temperature-small": {"temperature"},
    "temperature-large": {"temperature"},
    "replayed-views": {"label_view"},
    "tutor": {"cache"},
    "tutor-hot": {"cache"},
    "tutor-large-hot": {"cache"},
    "tutor-or-temperature": {"cache", "temperature"},
    "residual-3": {"bare_topk"},
    "residual-8": {"bare_topk"},
    "residual-3-likelihood": {"bare_topk"},
    "residual-or-all": {"cache"},
}
"""Options of train in which the two sides of a claim differ."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return settings_as_read("claims", stages_as_read(tmp_path_factory.mktemp("project"), "claims"))


def test_the_two_sides_of_a_claim_differ_in_what_it_speaks_of(settings: dict[str, Any]) -> None:
    runs = {config.out.name: config for config in settings.values() if isinstance(config, TrainConfig)}
    evaluations = {config.out: config for config in settings.values() if isinstance(config, EvaluateConfig)}
    assert set(SPOKEN_OF) == set(PARAMS["claims"])
    for name, differing in SPOKEN_OF.items():
        claim = settings[f"claim@{name}"]
        assert isinstance(claim, CompareConfig)
        sides = [evaluations[folder] for folder in (claim.first, claim.second)]
        assert sides[0].cache == sides[1].cache and {side.split for side in sides} == {"test"}
        first, second = (runs[side.run.name].as_dict() for side in sides if side.run)
        assert {key for key in first if first[key] != second[key]} - {"out"} == differing, name
        assert bool(claim.expect) == bool(claim.source), f"{name}: what someone expects has a source"
    for name in PARAMS["corrected"]:
        assert evaluations[Path(f"evaluations/{name}-corrected")].correct_class == (runs[name].omit_class,)


def test_every_run_is_evaluated_and_every_claim_reported(settings: dict[str, Any]) -> None:
    assert set(settings["report"].claims) == {Path(f"claims/{name}.json") for name in PARAMS["claims"]}
    judged = {c.run.name for c in settings.values() if isinstance(c, EvaluateConfig) and c.run}
    assert judged == {*PARAMS["runs"], *PARAMS["readers"]}


def test_no_student_of_omitted_ever_saw_the_class(settings: dict[str, Any]) -> None:
    for kind in ("mlp", "cnn"):
        hard, soft = (settings[f"train@omitted-{kind}-{labels}"] for labels in ("hard", "soft"))
        assert hard.omit_class == soft.omit_class == "3" and soft.objective.beta == 0


@pytest.fixture(scope="module")
def characters() -> ModuleType:
    found = importlib.util.spec_from_file_location("characters_of_claims", EXAMPLE / "characters.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_characters_are_those_of_the_sources(characters: ModuleType, tmp_path: Path) -> None:
    counts = {"train": 50, "validation": 20, "test": 30}
    characters.make(tmp_path / "data" / "few.npz", counts)
    texts = characters.sources()
    with np.load(tmp_path / "data" / "few.npz") as held:
        found = {name: held[name] for name in held.files}
    assert found["x"].shape == (100, 8, 96) and found["x"].dtype == np.uint8
    assert {split: int((found["split"] == split).sum()) for split in counts} == counts
    assert (found["x"].sum(axis=2) == 255).all() and len(set(found["ids"])) == 100
    files: dict[str, set[str]] = {split: set() for split in counts}
    for x, y, name, split in zip(found["x"], found["y"], found["ids"], found["split"], strict=True):
        file, _, end = str(name).partition("/")
        files[str(split)].add(file)
        said = "".join(characters.ALPHABET[code] for code in [*x.argmax(axis=1), y])
        assert said == texts[file][int(end) - 8 : int(end) + 1]
    assert not (files["train"] & files["test"] or files["train"] & files["validation"])


def test_a_small_run_makes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, characters: ModuleType) -> None:
    """The shipped stages with a few claims, an epoch and two seeds: their commands, in this process, in DVC's order."""
    folder = copied(tmp_path, "claims", smaller())
    few = {"train": 60, "validation": 30, "test": 30}
    run_in_process(tmp_path, folder, monkeypatch, {"python": lambda words: characters.make(Path(words[1]), few)})
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "<h2>Claims</h2>" in page and "Anshumann" in page
    assert read_comparison(folder / "claims" / "omitted-mlp-bias.json")["paired_seeds"] == 2


def smaller() -> dict[str, Any]:
    """The parameters of a pipeline of the same stages that takes seconds."""
    claims = ("omitted-mlp-bias", "tutor", "residual-3")
    small = {**PARAMS, "claims": {name: PARAMS["claims"][name] for name in claims}}
    small["teacher"] = {**PARAMS["teacher"], "teacher": "cnn-4", "views": 1, "epochs": 2}
    small["dump"] = {**PARAMS["dump"], "views": 1}
    small["train"] = {**PARAMS["train"], "epochs": 1, "seeds": 2}
    small["tutors"] = {"tutor-8": PARAMS["tutors"]["tutor-8"]}
    names = ("omitted-mlp-soft", "tutored", "direct")
    small["runs"] = {name: {**PARAMS["runs"][name], "seeds": 2} for name in names}
    small["corrected"] = ["omitted-mlp-soft"]
    small["reader"] = {**PARAMS["reader"], "teacher": "mlp-8", "epochs": 1}
    small["topk"] = {"top3": PARAMS["topk"]["top3"]}
    small["read"] = {**PARAMS["read"], "student": "mlp-4", "epochs": 1, "seeds": 2}
    small["readers"] = {name: PARAMS["readers"][name] for name in ("residual-3", "bare-3")}
    return small


def test_the_readme_names_what_there_is() -> None:
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert "make claims" in text
    for name in PARAMS["claims"]:
        assert f"`{name}`" in text, name
