"""Options from a configuration class, parameter files, exit statuses."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pipeline.configuration import REQUIRED, Config, option
from pipeline.errors import CacheMismatchError
from stages.options import options_of, stage_command
from stages.parameters import read_params


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """Options of a stage that does not exist."""

    out: Path = option(REQUIRED, "where to write")
    epochs: int = option(3, "passes over the data")
    learning_rate: float = option(0.1, "step size")
    amp: bool = option(True, "mixed precision")
    compiled: bool | None = option(None, "compile the model")
    weights: Path | None = option(None, "a file of weights")
    temperature: tuple[float, ...] = option((1.0, 4.0), "temperatures")
    tags: tuple[str, ...] = option((), "free words", metavar="WORD")
    runs: tuple[Path, ...] = option((), "directories")
    loss: str = option("kl", "what to minimise", choices=("kl", "logits"))

    def problems(self) -> Iterator[str]:
        if self.epochs < 1:
            yield f"--epochs should be at least 1; found {self.epochs}"
        if self.learning_rate <= 0:
            yield f"--learning-rate should be above 0; found {self.learning_rate}"


@dataclass(frozen=True)
class Done:
    settings: Settings

    @property
    def summary(self) -> str:
        return f"{self.settings.out}: done"

    def as_dict(self) -> dict[str, Any]:
        return self.settings.as_dict()


def finish(settings: Settings, progress: Any) -> Done:
    progress.log("working")
    with progress.bar("work", 10, "steps") as bar:
        bar.update(3)
    return Done(settings)


def invoke(*arguments: str, run: Callable[..., Any] = finish) -> Any:
    return CliRunner().invoke(stage_command("stage", Settings, run, "A stage."), arguments)


def parsed(*arguments: str) -> dict[str, Any]:
    result = invoke("--json", "--out", "o", *arguments)
    assert result.exit_code == 0, result.output
    assert "working" in result.stderr
    return dict(json.loads(result.stdout))


def test_defaults_are_those_of_the_class() -> None:
    assert parsed() == Settings(out=Path("o")).as_dict()


def test_values_arrive_with_their_types() -> None:
    found = parsed(
        "--epochs", "5", "--no-amp", "--compiled", "--weights", "w", "--temperature", "2", "--tags", "a", "--tags", "b"
    )
    assert found["epochs"] == 5 and found["amp"] is False and found["compiled"] is True
    assert found["weights"] == "w" and found["temperature"] == [2.0] and found["tags"] == ["a", "b"]


def test_underscores_mean_dashes() -> None:
    assert parsed("--learning_rate", "0.5")["learning_rate"] == 0.5
    assert parsed("--no_amp")["amp"] is False


def test_a_summary_line_without_json() -> None:
    result = invoke("--out", "o")
    assert result.stdout == "o: done\n"


def test_a_command_lists_its_own_options_before_those_it_shares() -> None:
    @dataclass(frozen=True, kw_only=True)
    class More(Settings):
        student: str = option("mlp", "which model")

    names = [found.name for found in options_of(More)]
    assert names == ["student", *(found.name for found in options_of(Settings))]


def test_help_gives_choices_defaults_and_repetition() -> None:
    text = " ".join(invoke("-h").stdout.split())
    assert "A stage." in text and "[kl|logits]" in text and "[default: 1.0, 4.0]" in text and "[default: 0.1]" in text
    assert "--amp / --no-amp" in text and "[required]" in text and "free words (may be repeated)" in text


def test_all_problems_together_with_status_2() -> None:
    result = invoke("--out", "o", "--epochs", "0", "--learning-rate", "-1", "--loss", "nonsense")
    assert result.exit_code == 2
    assert "3 problems" in result.stderr and "kl, logits" in result.stderr
    assert "--epochs should" in result.stderr and "--learning-rate should" in result.stderr
    assert "stage --help" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["--epochs", "three"], ["--nothing"], [], ["--out", "o", "extra"]])
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2 and result.stdout == ""


def failing(error: BaseException) -> Callable[..., Any]:
    def run(settings: Settings, progress: Any) -> Done:
        raise error

    return run


def test_a_named_error_is_status_1_and_one_message() -> None:
    result = invoke("--out", "o", run=failing(CacheMismatchError("another teacher")))
    assert result.exit_code == 1 and result.stderr == "error: another teacher\n" and result.stdout == ""


def test_a_disk_that_does_not_take_it_is_status_1_and_a_missing_file_in_our_code_a_bug() -> None:
    result = invoke("--out", "o", run=failing(OSError(errno.EROFS, "Read-only file system", "/mnt/o")))
    assert result.exit_code == 1
    assert result.stderr == "error: /mnt/o: Read-only file system. Put that right and run the same command again\n"
    result = invoke("--out", "o", run=failing(FileNotFoundError(errno.ENOENT, "No such file", "gone")))
    assert isinstance(result.exception, FileNotFoundError)


@pytest.mark.parametrize(("out", "status"), [("s3://bucket/run", 2), ("file:///tmp/run", 2), ("C:/run", 0)])
def test_the_output_is_a_local_directory(out: str, status: int) -> None:
    result = invoke("--out", out)
    assert result.exit_code == status and ("--out should be a local directory" in result.stderr) == bool(status)


def test_an_interrupt_is_status_130_and_says_how_to_go_on() -> None:
    result = invoke("--out", "o", run=failing(KeyboardInterrupt()))
    assert result.exit_code == 130 and "run the same command again to resume" in result.stderr


def test_a_bug_keeps_its_traceback() -> None:
    result = invoke("--out", "o", run=failing(ZeroDivisionError("a bug")))
    assert isinstance(result.exception, ZeroDivisionError)


YAML = """
train: {learning_rate: 0.5, epochs: 7, amp: false, weights: null, temperature: [2, 3]}
methods:
  soft: {tags: [a, b], epochs: 9, out: from-file}
"""


@pytest.fixture
def params(tmp_path: Path) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(YAML)
    return str(path)


def test_options_from_a_file_and_the_command_line_wins(params: str) -> None:
    found = parsed("--params", f"{params}:train", "--learning-rate", "0.25")
    assert found["learning_rate"] == 0.25 and found["epochs"] == 7 and found["amp"] is False
    assert found["temperature"] == [2.0, 3.0] and found["weights"] is None


def test_a_later_section_wins_and_satisfies_what_is_required(params: str) -> None:
    result = invoke("--json", "--params", f"{params}:train", "--params", f"{params}:methods.soft")
    found = json.loads(result.stdout)
    assert (
        found["epochs"] == 9
        and found["learning_rate"] == 0.5
        and found["tags"] == ["a", "b"]
        and found["out"] == "from-file"
    )


def test_a_json_file_without_sections(tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    path.write_text('{"learning-rate": 0.75}')
    assert parsed("--params", str(path))["learning_rate"] == 0.75


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}:tain", "'tain'.*train, methods"),
        ("{}:methods.hard", "'hard'.*methods.*soft"),
        ("{}:train.epochs", "section of options"),
        ("{}:methods", "does not know: soft"),
        ("{}.missing:train", "No such file"),
    ],
)
def test_a_wrong_parameter_file_is_wrong_usage(params: str, text: str, words: str) -> None:
    import re

    result = invoke("--out", "o", "--params", text.format(params))
    assert result.exit_code == 2 and re.search(words, result.stderr), result.stderr


def test_names_in_paths_are_filled_from_lists(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("students: [a, b]\nmethods: {hard: {}, soft: {alpha: 1}}\nseed: 0\n")
    found = parsed("--each", str(path), "--runs", "runs/{students}-{methods}", "--runs", "other")
    assert found["runs"] == ["runs/a-hard", "runs/a-soft", "runs/b-hard", "runs/b-soft", "other"]
    assert parsed("--runs", "runs/{students}")["runs"] == ["runs/{students}"]
    result = invoke("--out", "o", "--each", str(path), "--runs", "runs/{seed}")
    assert result.exit_code == 2 and "students, methods" in result.stderr
    result = invoke("--out", "o", "--each", f"{path}.missing", "--runs", "runs/{seed}")
    assert result.exit_code == 2 and "--each should name a file" in result.stderr


def test_a_parameter_file_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("train: !!python/object/apply:os.getcwd []")
    with pytest.raises(ValueError, match="neither YAML nor JSON"):
        read_params(f"{path}:train")


def test_every_annotation_has_an_option() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Config):
        pairs: dict[str, int] = option(None, "no option can hold these")

    with pytest.raises(TypeError, match="no command-line option"):
        options_of(Odd)
    assert all(isinstance(found, click.Option) for found in options_of(Settings))
