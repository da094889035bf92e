"""Examples that run through DVC: their stages as DVC reads them, and a run of their commands."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stages.cli import main
from tests.test_dvc import inputs, is_under, outputs, stages_of

ROOT = Path(__file__).resolve().parent.parent


def written() -> tuple[str, ...]:
    """What the stages of an example write, beside what is in the repository."""
    return ("caches", "claims", "data", "models", "runs", "evaluations", "report", "dvc.lock")


def stages_as_read(folder: Path, example: str) -> dict[str, Any]:
    """The stages of ``examples/NAME`` as DVC reads them, in a copy without git in ``folder``."""
    place = Path("examples") / example
    shutil.copytree(ROOT / place, folder / place, ignore=shutil.ignore_patterns(*written()))
    shutil.copy(ROOT / ".dvcignore", folder)
    return stages_of(folder)


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
