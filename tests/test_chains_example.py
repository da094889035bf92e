"""examples/chains: its dvc.yaml against the commands, its chains against what they are called, and a small run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("dvc")

from pipeline.dump import DumpConfig
from pipeline.evaluation import EvaluateConfig
from pipeline.training import TrainConfig
from tests.examples import ROOT, copied, run_in_process, settings_as_read, stages_as_read
from tests.test_dvc import outputs, stages_of

EXAMPLE = ROOT / "examples" / "chains"
PARAMS: dict[str, Any] = yaml.safe_load((EXAMPLE / "params.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return stages_as_read(tmp_path_factory.mktemp("project"), "chains")


@pytest.fixture(scope="module")
def settings(stages: dict[str, Any]) -> dict[str, Any]:
    return settings_as_read("chains", stages)


@pytest.fixture(scope="module")
def runs(settings: dict[str, Any]) -> dict[str, TrainConfig]:
    """The configuration of each training run by its name."""
    return {config.out.name: config for config in settings.values() if isinstance(config, TrainConfig)}


def names(addresses: Any) -> list[str]:
    return [Path(address).name for address in addresses]


def test_every_run_is_evaluated_against_the_teacher_and_reported(
    settings: dict[str, Any], runs: dict[str, TrainConfig]
) -> None:
    assert sorted(runs) == sorted(PARAMS["evaluated"])
    judged = [config for config in settings.values() if isinstance(config, EvaluateConfig)]
    assert sorted(str(c.run.name) for c in judged if c.cache == "caches/teacher" and c.run) == sorted(runs)
    assert all(config.split == "test" for config in judged)
    assert {path.name for path in settings["report"].evaluations} == set(runs)


def test_students_are_alike_but_for_what_they_learn_from(runs: dict[str, TrainConfig]) -> None:
    shared = ("train_views", "epochs", "lr", "batch_size", "seed", "schedule", "temperature", "weight_decay", "loss")
    for name in shared:
        assert len({getattr(config, name) for config in runs.values()}) == 1, name
    students = {name: config for name, config in runs.items() if name not in PARAMS["links"]}
    assert {config.seeds for config in students.values()} == {5}
    assert {config.student for name, config in students.items() if name != "ensemble"} == {"mlp-8"}
    assert {config.objective.alpha for name, config in students.items() if name != "hard"} == {0.9}
    assert runs["hard"].objective.alpha == 0 == runs["generation-0"].objective.alpha


def test_each_tutor_stands_between_and_beside_the_teacher(runs: dict[str, TrainConfig]) -> None:
    for tutor in PARAMS["tutors"]:
        assert runs[tutor].student == tutor and runs[tutor].cache == "caches/teacher"
        assert runs[f"by-{tutor}"].cache == f"caches/{tutor}"
        assert [(Path(p).name, w) for p, w in runs[f"both-{tutor}"].caches] == [("teacher", 0.5), (tutor, 0.5)]
    assert names(a for a, _ in runs["all-at-once"].caches) == ["teacher", *PARAMS["tutors"]]


def test_chains_lead_back_to_the_teacher(runs: dict[str, TrainConfig]) -> None:
    def chain(name: str) -> list[str]:
        cache = Path(str(runs[name].cache)).name
        return [name] if cache == "teacher" else [name, *chain(cache)]

    assert chain("three-links") == ["three-links", "mlp-16-of-mlp-64", "mlp-64"]
    assert chain("generation-2") == ["generation-2", "generation-1", "generation-0"]
    assert {runs[f"generation-{n}"].student for n in range(3)} == {"mlp-16"} == {runs["ensemble"].student}
    assert names(a for a, _ in runs["ensemble"].caches) == [f"generation-{n}" for n in range(3)]


def test_every_cache_is_of_the_model_that_it_is_named_after(settings: dict[str, Any]) -> None:
    dumps = {config.out.name: config for config in settings.values() if isinstance(config, DumpConfig)}
    for name, config in dumps.items():
        if name.startswith("checkpoint-"):
            assert str(config.weights) == f"models/teacher/{name}.safetensors"
            assert config.teacher == PARAMS["teacher"]["teacher"]
        else:
            assert config.run is not None and config.run.name == name
        assert (config.views, config.transform) == (PARAMS["teacher"]["views"], PARAMS["teacher"]["transform"])
    assert set(dumps) == {"teacher", *PARAMS["links"], *(f"checkpoint-{n}" for n in PARAMS["checkpoints"])}


def test_the_route_ends_with_the_teacher(settings: dict[str, Any], runs: dict[str, TrainConfig]) -> None:
    teacher = settings["teacher"]
    kept = [name.removesuffix(".safetensors") for name in teacher.kept_epochs.values()]
    assert names(runs["route"].route) == [*kept[:-1], "teacher"] and teacher.keep == "last"
    assert PARAMS["checkpoints"] == [name.removeprefix("checkpoint-") for name in kept[:-1]]


def test_a_fourth_link_is_two_lines(tmp_path: Path, stages: dict[str, Any]) -> None:
    folder = copied(tmp_path, "chains")
    text = (EXAMPLE / "params.yaml").read_text(encoding="utf-8")
    link = "links:\n  mlp-12: {student: mlp-12, cache: caches/mlp-16-of-mlp-64}\n"
    student = "students:\n  four-links: {cache: caches/mlp-12}\n"
    text = text.replace("\nlinks:\n", f"\n{link}").replace("\nstudents:\n", f"\n{student}")
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    more = set(stages_of(tmp_path)) - set(stages)
    assert more == {"link@mlp-12", "dump-link@mlp-12", "student@four-links"}


def test_a_small_run_makes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped stages with two tutors, two epochs and seeds: their commands, in this process, as DVC orders them."""
    folder = copied(tmp_path, "chains", smaller())
    graph = (folder / "dvc.yaml").read_text(encoding="utf-8")
    for known, other in (
        ("cnn-8", "mlp-4"),
        ("mlp-128", "mlp-6"),
    ):  # the caches that are named in lists of dependencies
        graph = graph.replace(f"- caches/{known}\n", f"- caches/{other}\n")
    (folder / "dvc.yaml").write_text(graph, encoding="utf-8")
    stages = run_in_process(tmp_path, folder, monkeypatch)
    assert all((folder / path).exists() for stage in stages for path in outputs(stage))
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "<h2>Tutors</h2>" in page and (folder / "report" / "tutors.png").is_file()
    assert "along 2 checkpoints" in page
    lineage = json.loads((folder / "runs" / "route" / "run.json").read_text())["lineage"]
    assert [step["epochs"] for step in lineage["cache"]] == [1, 1]
    ensemble = json.loads((folder / "evaluations" / "generations" / "metrics.json").read_text())
    assert 0 <= ensemble["teacher_accuracy"] <= 1


def smaller() -> dict[str, Any]:
    """The parameters of a pipeline of the same stages that takes seconds."""
    tutors = ["mlp-4", "mlp-6"]
    small = {**PARAMS, "tutors": tutors, "checkpoints": ["01"]}
    small["teacher"] = {**PARAMS["teacher"], "teacher": "cnn-4", "views": 1, "epochs": 2, "checkpoints": 2}
    small["dump"] = {**PARAMS["dump"], "views": 1}
    small["train"] = {**PARAMS["train"], "epochs": 2}
    small["student"] = {"student": "mlp-2", "seeds": 2}
    small["links"] = {tutor: {"student": tutor, "cache": "caches/teacher"} for tutor in tutors}
    small["students"] = {name: PARAMS["students"][name] for name in ("hard", "teacher-alone")}
    small["students"] |= {f"by-{tutor}": {"cache": f"caches/{tutor}"} for tutor in tutors}
    small["all-at-once"] = {"labels": ["caches/teacher", *(f"caches/{t}" for t in tutors)], "mix": "losses"}
    small["ensemble"] = {"labels": [f"caches/{tutor}" for tutor in tutors]}
    small["route"] = {"route": ["caches/checkpoint-01", "caches/teacher"]}
    small["evaluated"] = [*tutors, *small["students"], *(f"both-{t}" for t in tutors)]
    small["evaluated"] += ["all-at-once", "ensemble", "route"]
    return small


def test_the_readme_names_what_there_is() -> None:
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert "make chains" in text
    for name in ("links", "students", "tutors"):
        assert f"`{name}`" in text
