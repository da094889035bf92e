"""What holds of every example that runs through DVC: paths are declared, dependencies exist, git has the rest."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dvc")

from tests.examples import ROOT, is_stage, stages_as_read
from tests.test_dvc import FOLDERS, inputs, is_under, outputs, paths_of, settings_of

EXAMPLES = ("chains", "claims", "compression", "language_model", "methods")


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of one, and its stages as DVC reads them."""
    return ROOT / "examples" / request.param, stages_as_read(tmp_path_factory.mktemp("project"), request.param)


def named(stage: Any) -> Iterator[str]:
    """What a command reads and writes: of a stage by its checked options, of other commands by their words."""
    if not is_stage(stage):
        yield from (word for word in shlex.split(stage.cmd) if word.split("/")[0] in FOLDERS)
        return
    for path in paths_of(settings_of(stage)):
        yield path.rpartition("=")[0] or path


def test_every_path_is_declared_and_every_dependency_exists(
    example: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, stages = example
    monkeypatch.chdir(folder)
    made = [out for stage in stages.values() for out in outputs(stage)]
    for name, stage in stages.items():
        near = [*outputs(stage), *inputs(stage)]
        paths = list(named(stage))
        assert paths, name
        for path in paths:
            assert is_under(path, near) or any(is_under(one, [path]) for one in near), f"{name} names {path}"
        for dep in inputs(stage):
            gathered = any(is_under(out, [dep]) for out in made)
            assert gathered or is_under(dep, made) or (folder / dep).is_file(), f"{name} needs {dep}"


def test_a_dependency_on_code_names_a_module(example: tuple[Path, dict[str, Any]]) -> None:
    for name, stage in example[1].items():
        code = [dep for dep in inputs(stage) if dep.endswith(".py") or dep.startswith("../../")]
        assert code and all(Path(dep).suffix for dep in code), name


def test_what_dvc_keeps_is_ignored_by_git_and_metrics_are_not(example: tuple[Path, dict[str, Any]]) -> None:
    from pathspec import GitIgnoreSpec

    folder, stages = example
    ignored = GitIgnoreSpec.from_lines((folder / ".gitignore").read_text(encoding="utf-8").splitlines())
    for stage in stages.values():
        for out in stage.outs:
            path = str(out.def_path)
            assert ignored.match_file(path if Path(path).suffix else f"{path}/") == out.use_cache, path
