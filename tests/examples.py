"""Examples that run through DVC: their stages as DVC reads them, and a run of their commands."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from stages.cli import main
from tests.test_dvc import inputs, is_under, outputs, settings_of, stages_of

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = ("caches", "claims", "compressed", "data", "models", "runs", "evaluations", "report", "dvc.lock")
"""What the stages of an example write, beside what is in the repository."""


def copied(project: Path, example: str, params: Mapping[str, Any] | None = None) -> Path:
    """``examples/NAME`` in ``project``, without git, with other ``params`` where some are given; its folder."""
    folder = project / "examples" / example
    shutil.copytree(ROOT / "examples" / example, folder, ignore=shutil.ignore_patterns(*WRITTEN))
    if params is not None:
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    return folder


def stages_as_read(project: Path, example: str) -> dict[str, Any]:
    """The stages of ``examples/NAME`` as DVC reads them, in a copy without git in ``project``."""
    copied(project, example)
    shutil.copy(ROOT / ".dvcignore", project)
    return stages_of(project)


def is_stage(stage: Any) -> bool:
    """Whether its command is a stage of softlabels, and no verb about caches nor another program."""
    program, name, *_ = shlex.split(stage.cmd)
    return bool(program == "softlabels" and name != "cache")


def settings_as_read(example: str, stages: Mapping[str, Any]) -> dict[str, Any]:
    """The checked configurations that the commands of ``stages`` come to, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT / "examples" / example)
        return {name: settings_of(stage) for name, stage in stages.items() if is_stage(stage)}


def run_in_process(
    project: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    others: Mapping[str, Callable[[list[str]], None]] | None = None,
) -> list[Any]:
    """Every stage of an example, copied to ``folder`` in ``project``: its command, in this process, in DVC's order.

    ``others`` run the commands of other programs, by name, with their arguments. Returns the stages.
    """
    stages = list(stages_of(project).values())
    monkeypatch.chdir(folder)
    for stage in in_order(stages):
        program, *arguments = shlex.split(stage.cmd)
        if program != "softlabels":
            (others or {})[program](arguments)
            continue
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, f"{stage.cmd}\n{done.stderr}"
    return stages


def in_order(stages: list[Any]) -> Iterator[Any]:
    """Each stage after those that make what it depends on."""
    while stages:
        missing = [out for stage in stages for out in outputs(stage)]
        ready = [stage for stage in stages if not any(is_under(d, missing) or under(missing, d) for d in inputs(stage))]
        assert ready, [stage.name for stage in stages]
        yield from ready
        stages = [stage for stage in stages if stage not in ready]


def under(paths: list[str], folder: str) -> bool:
    return any(is_under(path, [folder]) for path in paths)
