"""dvc.yaml against the commands: every option exists, every path is declared, students alone depend on ``train``."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.configuration import Config
from pipeline.training import TrainConfig
from stages.options import settings_from

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("data", "models", "caches", "runs", "evaluations", "claims", "compressed", "report")


def resolved(folder: Path, **replacements: str) -> dict[str, Any]:
    """The stages as DVC reads them, in a copy of the project without git; ``replacements`` edit params.yaml."""
    shutil.copy(ROOT / "dvc.yaml", folder)
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for old, new in replacements.items():
        params, count = re.subn(rf"(?m)^(  {old}:).*$", rf"\1 {new}", params)
        assert count, f"params.yaml has no {old}"
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    return stages_of(folder)


def stages_of(folder: Path) -> dict[str, Any]:
    """The stages in and below a folder as DVC reads them, made a DVC project of its own without git."""
    from dvc.repo import Repo

    (folder / ".dvc").mkdir()
    config = (ROOT / ".dvc" / "config").read_text(encoding="utf-8")
    (folder / ".dvc" / "config").write_text(config.replace("[core]", "[core]\n    no_scm = true"), encoding="utf-8")
    with Repo(str(folder)) as repo:
        return {stage.name: stage for stage in repo.index.stages}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return resolved(tmp_path_factory.mktemp("project"))


def outputs(stage: Any) -> list[str]:
    return [str(out.def_path) for out in stage.outs]


def inputs(stage: Any) -> list[str]:
    return [str(dep.def_path) for dep in stage.deps if not hasattr(dep, "params")]


def parameters(stage: Any) -> dict[str, Any]:
    """The parameters that a stage declares, with their values."""
    found: dict[str, Any] = {}
    for dep in stage.deps:
        if hasattr(dep, "params"):
            found.update(dep.read_params())
    return found


def is_under(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def settings_of(stage: Any) -> Config:
    """The checked configuration that a stage's command comes down to; fails as the command itself would."""
    program, name, *arguments = shlex.split(stage.cmd)
    assert program == "softlabels"
    module = importlib.import_module(f"stages.{name.replace('-', '_')}")
    configs = [found for key, found in vars(module).items() if key.endswith("Config")]
    context = module.command.make_context(f"softlabels {name}", arguments)
    return settings_from(configs[0], context.params)


@pytest.fixture(scope="module")
def settings(stages: dict[str, Any]) -> dict[str, Config]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return {name: settings_of(stage) for name, stage in stages.items()}


def paths_of(config: Config) -> Iterator[str]:
    """Every value of a configuration that names something a stage writes."""
    for value in config.as_dict().values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and item.split("/")[0] in FOLDERS:
                yield item


def test_every_command_has_the_options_it_is_given(settings: dict[str, Config]) -> None:
    kinds = {name.split("@")[0] for name in settings}
    assert kinds == {"fit-teacher", "dump", "train", "evaluate", "compress", "report"}


def test_each_student_meets_each_method_and_is_evaluated(stages: dict[str, Any]) -> None:
    trained = {name.removeprefix("train@") for name in stages if name.startswith("train@")}
    evaluated = {name.removeprefix("evaluate@") for name in stages if name.startswith("evaluate@")}
    assert trained == evaluated and len(trained) >= 4


def test_every_path_that_a_command_names_is_declared(stages: dict[str, Any], settings: dict[str, Config]) -> None:
    for name, stage in stages.items():
        for path in paths_of(settings[name]):
            outs = outputs(stage)
            written = is_under(path, outs) or any(is_under(out, [path]) for out in outs)
            read = is_under(path, inputs(stage)) or any(is_under(dep, [path]) for dep in inputs(stage))
            assert written or read, f"{name} names {path}, which is neither in its deps nor in its outs"


def test_every_dependency_exists_or_is_made(stages: dict[str, Any]) -> None:
    made = [out for stage in stages.values() for out in outputs(stage)]
    for name, stage in stages.items():
        for dep in inputs(stage):
            gathered = any(is_under(out, [dep]) for out in made)
            assert gathered or is_under(dep, made) or (ROOT / dep).is_file(), f"{name} needs {dep}, which nothing makes"


def test_code_dependencies_are_modules_not_folders(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        code = [dep for dep in inputs(stage) if dep.split("/")[0] in ("pipeline", "stages")]
        assert code, f"{name} names no module"
        assert all(Path(dep).suffix for dep in code), name


def test_another_temperature_retrains_students_and_leaves_the_teacher_alone(
    stages: dict[str, Any], tmp_path: Path
) -> None:
    others = resolved(tmp_path, temperature="8.5")
    for name, stage in stages.items():
        same = others[name].cmd == stage.cmd and parameters(others[name]) == parameters(stage)
        assert same == (not name.startswith("train@")), name


def test_device_and_workers_are_no_parameters(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        assert not re.search(r"--(device|workers)\b", stage.cmd), name


def test_what_dvc_keeps_is_ignored_by_git_and_metrics_are_not(stages: dict[str, Any]) -> None:
    from pathspec import GitIgnoreSpec

    ignored = GitIgnoreSpec.from_lines((ROOT / ".gitignore").read_text(encoding="utf-8").splitlines())
    for stage in stages.values():
        for out in stage.outs:
            path = str(out.def_path)
            directory = "." not in Path(path).name
            assert ignored.match_file(f"{path}/" if directory else path) == out.use_cache, path


def test_methods_that_are_switched_off_could_be_switched_on() -> None:
    """Lines of params.yaml behind a #: options as train takes them."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    lines = re.findall(r"(?m)^  # ([a-z-]+): (\{.*\})$", text)
    assert len(lines) >= 7
    shared = yaml.safe_load(text)["train"]
    for name, options in lines:
        own = yaml.safe_load(options)
        given = shared | {"cache": "caches/digits", "out": Path("runs") / name} | own
        assert TrainConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}).cached
