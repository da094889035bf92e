"""The ``softlabels`` command as a whole."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from stages.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent.parent


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(main, arguments)


def test_help_lists_the_stages_in_order() -> None:
    text = invoke("--help").stdout
    places = [text.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_begins_as_the_group_says(name: str) -> None:
    result = invoke(name, "-h")
    assert result.exit_code == 0
    text = importlib.import_module(COMMANDS[name][0]).command.help
    assert text is not None and text.splitlines()[0] == COMMANDS[name][1]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "cache"])
def test_every_option_has_help(name: str) -> None:
    command = importlib.import_module(COMMANDS[name][0]).command
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert options and not [option.name for option in options if not option.help]


def test_version() -> None:
    assert invoke("--version").stdout.startswith("softlabels ")


def test_an_unknown_command_is_wrong_usage() -> None:
    assert invoke("destill").exit_code == 2


@pytest.mark.parametrize("name", ["tokenize", "dump", "train", "evaluate", "compress", "report", "fit-teacher"])
def test_a_missing_option_is_wrong_usage(name: str) -> None:
    result = invoke(name)
    assert result.exit_code == 2 and "--out" in result.stderr


def test_modules_run_as_scripts() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.dump", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "python -m stages.dump" in done.stdout


def test_from_teacher_to_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of data by hand, tiny: each command finds what the one before it wrote."""
    monkeypatch.chdir(tmp_path)

    def ran(*arguments: str) -> dict[str, Any]:
        result = invoke(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    ran("fit-teacher", "--teacher", "mlp-16", "--epochs", "3", "--views", "0", "--out", "models/teacher")
    weights = ["--teacher", "mlp-16", "--weights", "models/teacher/model.safetensors"]
    dumped = ran("dump", *weights, "--views", "1", "--transform", "affine:degrees=10", "--out", "caches/digits")
    assert dumped["resumed"] == 0
    again = ran("dump", *weights, "--views", "1", "--transform", "affine:degrees=10", "--out", "caches/digits")
    assert again["resumed"] == again["parts"]
    train = ["--cache", "caches/digits", "--student", "mlp-8", "--epochs", "2", "--train-views", "all"]
    ran("train", *train, "--out", "runs/a")
    measured = ran("evaluate", "--run", "runs/a", "--out", "evaluations/a")
    assert 0 <= measured["metrics"]["accuracy"] <= 1
    refused = invoke("dump", *weights, "--out", "caches/digits")
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr


def test_the_methods_are_listed_with_options_that_exist() -> None:
    result = invoke("train", "--list-methods")
    assert result.exit_code == 0 and "Hinton, Vinyals and Dean 2015" in result.stdout
    # What stands in brackets is for the dump before.
    for stage, text in (
        ("train", re.sub(r"\(dump [^)]*\)", "", result.stdout)),
        ("dump", " ".join(re.findall(r"\(dump ([^)]*)\)", result.stdout))),
    ):
        known = {name for option in importlib.import_module(f"stages.{stage}").command.params for name in option.opts}
        named = {word for word in text.split() if word.startswith("--")}
        assert named and named <= known, stage
