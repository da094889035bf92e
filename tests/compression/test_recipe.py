"""Recipes as data: what a file may say, what is wrong with it, and what options and controls make of it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compression import CompressConfig, default_recipe
from pipeline.compression.defaults import unknown_names, with_controls
from pipeline.compression.recipe import Recipe, read_recipe, recipe_of
from pipeline.compression.steps import METHODS, Finetune, Prune, Quantise, Scratch, Step, fraction
from pipeline.errors import ConfigError
from stages.cli import main


def steps(*entries: dict[str, Any]) -> Recipe:
    return recipe_of({"steps": list(entries)})


def problems_of(*entries: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        steps(*entries)
    return list(caught.value.problems)


def options(**given: Any) -> CompressConfig:
    return CompressConfig(**{"runs": (Path("run"),), "out": Path("out"), **given})


def test_everything_that_is_wrong_is_told_at_once_with_its_step() -> None:
    found = problems_of(
        {"step": "shrink"},
        {"step": "prune", "ratio": 1.5, "rate": 2},
        {"step": "prune", "ratio": "half"},
        {"step": "quantise", "of": "nothing"},
        {"step": "finetune", "labels": "firm", "epochs": -1},
    )
    text = "\n".join(found)
    assert "step 1: `step` should be one of prune, finetune, scratch, quantise, export, check; found 'shrink'" in text
    assert "step 2 (prune): knows" in text and "found rate" in text
    assert "step 3 (prune): `ratio` should be a number; found 'half'" in text
    assert "step 5 (finetune): `labels` should be soft or hard; found 'firm'" in text
    assert "step 5 (finetune): `epochs` should be at least 0; found -1" in text
    assert any("`of` should name an earlier step or baseline; found 'nothing'" in problem for problem in found)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"step": "prune", "ratio": True}, "`ratio` should be a number; found True"),
        ({"step": "prune", "rounds": 1.5}, "`rounds` should be a whole number"),
        ({"step": "prune", "sensitivity": 1}, "`sensitivity` should be true or false"),
        ({"step": "prune", "name": 3}, "`name` should be a text"),
        ({"step": "prune", "name": "../out"}, "`name` becomes a file's"),
        ({"step": "prune", "name": ".hidden"}, "`name` becomes a file's"),
        ({"step": "prune", "ratio": 0.5, "target_macs": 0.5}, "give one of ratio"),
        ({"step": "prune", "target_parameters": 0.5, "max_drop": "1pt"}, "give one of ratio"),
        ({"step": "prune", "ratio": float("nan")}, "finite"),
        ({"step": "finetune", "lr": float("inf")}, "finite"),
        ({"step": "prune", "ratio": 0}, "above 0"),
        ({"step": "prune", "what": "layers"}, "`what` should be"),
        ({"step": "prune", "what": "2:4", "ratio": 0.5}, "leave `ratio` out"),
        ({"step": "prune", "what": "weights", "rounds": 2}, "takes a ratio"),
        ({"step": "prune", "max_drop": "1pt", "sensitivity": True}, "give one of both"),
        ({"step": "prune", "trials": 9}, "`trials` are of max_drop"),
        ({"step": "prune", "like": "pruned"}, "`like` should name an earlier step"),
        ({"step": "prune", "max_drop": "half a point"}, "`max_drop` should be a drop such as 0.005 or '0.5pt'"),
        ({"step": "prune", "max_drop": -0.1}, "`max_drop` should be a drop"),
        ({"step": "prune", "max_drop": True}, "`max_drop` should be a drop"),
        ({"step": "prune", "max_drop": []}, "`max_drop` should be a drop"),
        ({"step": "quantise", "method": "int3"}, "`method` should be one of"),
        ({"step": "quantise", "bits": 4}, "4 bits are for `method` = 'weights'"),
        ({"step": "quantise", "method": "weights", "bits": 5}, "`bits` should be 4 or 8"),
        ({"step": "quantise", "epochs": 3}, "`epochs` is of `method` = 'qat'; found 'static'"),
        ({"step": "quantise", "method": "fp16", "max_drop": "1pt"}, "`max_drop` is of `method` = 'mixed'"),
        ({"step": "quantise", "method": "dynamic", "activations": "int8"}, "is of `method` = 'static' or 'qat'"),
        ({"step": "export", "format": "tflite"}, "`format` should be"),
        ({"step": "export", "format": "pt2", "opset": 18}, "`opset` is of onnx"),
        ({"step": "check"}, "what should hold"),
        ({"step": "scratch", "labels": "none"}, "`labels` should be soft or hard"),
    ],
)
def test_what_is_wrong_is_named(entry: dict[str, Any], message: str) -> None:
    assert message in "\n".join(problems_of(entry))


def test_a_recipe_without_steps_or_with_other_things() -> None:
    for content in ({}, {"steps": []}, {"steps": "prune"}, {"steps": ["prune"]}):
        with pytest.raises(ConfigError, match=r"holds \[\[steps\]\]"):
            recipe_of(content)
    with pytest.raises(ConfigError, match="found title as well"):
        recipe_of({"title": "mine", "steps": [{"step": "prune"}]})


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--recipe should be a TOML file; .*none\.toml"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="--recipe should be a TOML file"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text("steps:\n  - step: prune\n")
    with pytest.raises(ConfigError, match="--recipe should be TOML"):
        read_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "model.onnx").write_bytes(b"\x80\xff\x00")
    with pytest.raises(ConfigError, match="--recipe should be TOML"):
        read_recipe(tmp_path / "model.onnx")
    (tmp_path / "wrong.toml").write_text('[[steps]]\nstep = "prune"\nratio = 2.0\n')
    with pytest.raises(ConfigError, match=r"wrong\.toml: step 1 \(prune\): `ratio`"):
        read_recipe(tmp_path / "wrong.toml")


def test_the_same_name_twice_is_refused() -> None:
    assert "there is a 'pruned' already" in problems_of({"step": "prune"}, {"step": "prune", "of": "baseline"})[0]
    assert "there is a 'baseline' already" in problems_of({"step": "prune", "name": "baseline"})[0]
    # A check makes nothing, so that several may be of one step.
    bounds = [{"step": "check", "max_bytes": 10}, {"step": "check", "agreement": 0.5}]
    assert len(steps({"step": "prune"}, *bounds).steps) == 3


def test_names_follow_what_was_done_and_steps_follow_each_other() -> None:
    found = steps(
        {"step": "prune"}, {"step": "finetune"}, {"step": "check", "max_bytes": 1}, {"step": "quantise"},
        {"step": "quantise", "of": "pruned", "method": "weights", "bits": 4},
        {"step": "quantise", "of": "baseline", "method": "dynamic"},
        {"step": "export", "of": "pruned", "format": "pt2"},
        {"step": "prune", "of": "baseline", "what": "2:4"},
        {"step": "finetune", "labels": "hard"},
    ).steps  # fmt: skip
    assert [(step.name, step.of) for step in found if step.makes] == [
        ("pruned", "baseline"), ("pruned-finetuned", "pruned"), ("pruned-finetuned-int8", "pruned-finetuned"),
        ("pruned-int4-weights", "pruned"), ("int8-dynamic", "baseline"), ("pruned-pt2", "pruned"),
        ("sparse-2-4", "baseline"), ("sparse-2-4-finetuned-hard", "sparse-2-4"),
    ]  # fmt: skip
    assert found[2].of == "pruned-finetuned"


@pytest.mark.parametrize(
    ("text", "drop"), [("0.5pt", 0.005), ("1 pts", 0.01), (0.005, 0.005), ("0.005", 0.005), (0, 0)]
)
def test_a_drop_is_a_share_or_points(text: Any, drop: float) -> None:
    assert fraction(text, "it") == pytest.approx(drop)
    found = steps({"step": "prune", "max_drop": text}).steps[0]
    assert isinstance(found, Prune) and found.max_drop == pytest.approx(drop)


def _entries() -> st.SearchStrategy[dict[str, Any]]:
    share = st.floats(0.01, 0.99)
    prune = st.fixed_dictionaries(
        {"step": st.just("prune")},
        optional={
            "ratio": share, "importance": st.sampled_from(["l1", "l2", "taylor"]), "rounds": st.integers(1, 4),
            "sensitivity": st.booleans(), "epochs": st.integers(0, 9), "lr": st.floats(1e-6, 1.0),
            "control": st.booleans(), "labels": st.sampled_from(["soft", "hard"]),
        },
    )  # fmt: skip
    within = st.fixed_dictionaries({"step": st.just("prune"), "max_drop": st.floats(0, 0.5)})
    quantise = st.fixed_dictionaries({"step": st.just("quantise"), "method": st.sampled_from(METHODS)})
    check = st.fixed_dictionaries({"step": st.just("check"), "max_bytes": st.integers(1, 10**9)})
    return st.one_of(prune, within, quantise, check)


@given(st.lists(_entries(), min_size=1, max_size=6))
def test_a_recipe_is_what_its_own_text_says(entries: list[dict[str, Any]]) -> None:
    numbered = [{**entry, "name": f"step-{number}"} for number, entry in enumerate(entries)]
    recipe = recipe_of({"steps": numbered})
    assert recipe_of(tomllib.loads(recipe.toml())) == recipe
    assert recipe_of({"steps": recipe.as_dict()}) == recipe


def names(recipe: Recipe) -> list[str]:
    return [step.name for step in recipe.steps]


def test_the_recipe_that_options_stand_for() -> None:
    assert names(default_recipe(options())) == ["int8", "int8-dynamic", "pruned", "pruned-int8", "pruned-qat"]
    assert names(default_recipe(options(epochs=0))) == ["int8", "int8-dynamic", "pruned", "pruned-int8"]
    assert names(default_recipe(options(qat=False, int8=False))) == ["pruned"]
    assert names(default_recipe(options(prune=(0.0,), int8=False))) == []
    several = default_recipe(options(prune=(0.3, 0.75), int8=False))
    assert names(several) == ["pruned-30", "pruned-75"]
    assert [step.ratio for step in several.steps if isinstance(step, Prune)] == [0.3, 0.75]
    for change in ({"target_macs": 0.4}, {"max_drop": "0.5pt"}):
        found = default_recipe(options(int8=False, importance="l1", **change)).steps[0]
        assert isinstance(found, Prune) and found.importance == "l1" and found.ratio is None
        assert (found.target_macs, found.max_drop) == (
            change.get("target_macs"),
            0.005 if "max_drop" in change else None,
        )
    for given_options in (options(), options(prune=(0.3, 0.75)), options(max_drop="1pt")):
        recipe = default_recipe(given_options)
        assert recipe_of(tomllib.loads(recipe.toml())) == recipe


def test_controls_stand_beside_what_they_are_for() -> None:
    recipe = steps({"step": "prune", "ratio": 0.5}, {"step": "quantise"})
    found = with_controls(recipe, options(), soft=True)
    assert names(found) == ["pruned", "pruned-scratch", "pruned-hard", "pruned-int8", "finetuned"]
    assert [step.name for step in found.steps if step.control] == ["pruned-scratch", "pruned-hard", "finetuned"]
    hard = next(step for step in found.steps if step.name == "pruned-hard")
    assert isinstance(hard, Prune) and (hard.labels, hard.ratio, hard.of) == ("hard", 0.5, "baseline")
    assert names(with_controls(recipe, options(), soft=False)) == [
        "pruned",
        "pruned-scratch",
        "pruned-int8",
        "finetuned",
    ]
    assert with_controls(recipe, options(controls=False), soft=True) == recipe
    assert names(with_controls(recipe, options(epochs=0), soft=True)) == ["pruned", "pruned-scratch", "pruned-int8"]
    taught = options(teacher="cnn-4", teacher_weights=Path("t.safetensors"))
    assert names(with_controls(recipe, taught, soft=True))[0] == "teacher-int8"


def test_what_a_recipe_declares_itself_is_not_added_again() -> None:
    declared = steps(
        {"step": "prune"}, {"step": "scratch", "name": "pruned-scratch", "epochs": 3},
        {"step": "finetune", "of": "baseline"}, {"step": "quantise", "of": "baseline"},
    )  # fmt: skip
    found = with_controls(declared, options(), soft=True)
    # Of the student's own fine-tuning, the control on hard labels is one that nobody declared.
    assert sorted(names(found)) == sorted([*names(declared), "pruned-hard", "finetuned-hard"])
    scratch = next(step for step in found.steps if step.name == "pruned-scratch")
    assert isinstance(scratch, Scratch) and scratch.epochs == 3
    assert not next(step for step in found.steps if step.name == "finetuned").control


@pytest.mark.parametrize(
    "target", [{"target_macs": 0.5}, {"target_parameters": 0.5}, {"max_drop": 0.01, "trials": 9}, {}]
)
def test_the_control_on_hard_labels_takes_the_ratio_that_was_found(target: dict[str, Any]) -> None:
    found = with_controls(steps({"step": "prune", **target}), options(), soft=True)
    hard = next(step for step in found.steps if step.name == "pruned-hard")
    assert isinstance(hard, Prune)
    assert (hard.like, hard.target_macs, hard.target_parameters, hard.max_drop) == ("pruned", None, None, None)


def test_ratios_by_layer_are_found_again_for_the_control_on_hard_labels() -> None:
    """There is no one ratio to take; the scan depends on the student alone."""
    found = with_controls(steps({"step": "prune", "target_macs": 0.5, "sensitivity": True}), options(), soft=True)
    hard = next(step for step in found.steps if step.name == "pruned-hard")
    assert isinstance(hard, Prune) and (hard.like, hard.target_macs, hard.sensitivity) == ("", 0.5, True)


def test_names_that_nobody_will_have_are_found_before_the_work() -> None:
    recipe = steps(
        {"step": "prune"}, {"step": "check", "against": "prunned", "faster": 1.0},
        {"step": "check", "against": "pruned-scratch", "max_drop": 0.1}, {"step": "quantise", "of": "teacher"},
    )  # fmt: skip
    found = list(unknown_names(with_controls(recipe, options(), soft=True), options()))
    assert len(found) == 2
    assert "found 'prunned'" in found[0] and "--teacher" in found[1]


def test_steps_are_checked_when_they_are_made() -> None:
    with pytest.raises(ConfigError, match="`labels`"):
        Finetune(labels="both")
    with pytest.raises(NotImplementedError):
        Step().suffix()
    assert Quantise(method="weights", bits=4).named() == "int4-weights"


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["compress", "--show-recipe", *words])
    said = capsys.readouterr()
    return ended.value.code or 0, said.out, said.err


def test_the_recipe_of_the_options_is_shown_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = shown(["--prune", "0.3", "--prune", "0.7", "--no-qat"], capsys)
    assert status == 0
    assert recipe_of(tomllib.loads(text)) == default_recipe(options(prune=(0.3, 0.7), qat=False))
    (tmp_path / "again.toml").write_text(text, encoding="utf-8")
    assert shown(["--recipe", str(tmp_path / "again.toml")], capsys)[:2] == (0, text)
    assert not tomllib.loads(shown(["--prune", "0", "--no-int8"], capsys)[1])
    assert [step["step"] for step in json.loads(shown(["--no-int8", "--json"], capsys)[1])["steps"]] == ["prune"]


def test_what_no_recipe_stands_for_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "makes recipes as it goes" in shown(["--search"], capsys)[2]
    assert "would do nothing beside --recipe" in shown(["--recipe", "r.toml", "--prune", "0.5"], capsys)[2]
    status, _, said = shown(["--prune", "2", "--importance", "size"], capsys)
    assert status == 2 and "--prune" in said and "--importance" in said
