"""What a training run left behind, read back: its configuration, its seeds and their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.configuration import parse_arguments
from pipeline.datasets import Dataset
from pipeline.errors import ConfigError
from pipeline.models import load_model, read_metadata
from pipeline.models.hydra import PREFIX
from pipeline.references import is_own_code
from pipeline.transforms import BUILT_IN


@dataclass(frozen=True)
class Run:
    """One training run: ``weights`` maps each seed to its file, ``histories`` to its record of epochs."""

    path: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    weights: Mapping[int, Path]
    allowed: frozenset[str] = frozenset()

    def reference(self, option_name: str) -> str:
        """What the run names as its ``student``, ``data``, ``teacher`` or ``transform``; "" for nothing.

        A ``module:factory`` is given back only when it is among ``allowed``, what a person typed: a run may come from
        strangers, and a name found in a file is never imported. Raises ConfigError that says how to allow it.
        """
        found = str(self.config.get(option_name) or "")
        pieces = [piece.strip() for piece in found.split("+")] if option_name == "transform" else [found]
        for piece in pieces:
            if is_own_code(piece) and piece.partition(":")[0] not in BUILT_IN and piece not in self.allowed:
                raise ConfigError(
                    f"{self.path} names its {option_name} {piece!r}, which is code outside Softlabels. Names found in "
                    f"files are never imported: pass --allow {piece} if you have that code and trust it"
                )
        return found

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.name

    def build(self, dataset: Dataset, seed: int) -> nn.Module:
        """The student of one seed, in eval mode, on the CPU."""
        reference, arguments = self.model
        return build_student(reference, arguments, self.weights[seed], dataset)

    @property
    def model(self) -> tuple[str, tuple[str, ...]]:
        """What builds the student, with its arguments. Raises ConfigError as ``reference`` does."""
        reference, arguments = self.reference("student"), tuple(self.config.get("student_args") or ())
        if self.config.get("mix") == "heads":
            return f"{PREFIX}:{reference}", (*arguments, f"heads={len(self.config['labels'])}")
        return reference, arguments


def build_student(reference: str, arguments: tuple[str, ...], weights: Path, dataset: Dataset) -> nn.Module:
    """A model with its trained weights, in eval mode, on the CPU, fit for ``dataset``. Raises ModelError otherwise."""
    parsed = parse_arguments(arguments, "--student-args")
    return load_model(reference, parsed, weights, dataset, whose=f"student {reference}").eval()


def load_trained(
    path: Path,
    dataset: Dataset,
    allow: Sequence[str] = (),
    *,
    reference: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The model of a .safetensors file of ours, pruned ones too, in eval mode, on the CPU, fit for ``dataset``.

    The file says what builds it, unless ``reference`` and ``arguments`` do. A ``module:factory`` that only the file
    names is imported when it is in ``allow``. Raises ConfigError or ModelError otherwise.
    """
    metadata = read_metadata(path)
    named, given = metadata.get("reference"), metadata.get("args")
    if reference is None:
        if not isinstance(named, str) or not named:
            raise ConfigError(f"{path} does not say what builds its model. Name that by --student")
        if is_own_code(named) and named not in allow:
            raise ConfigError(
                f"{path} names its model {named!r}, which is code outside Softlabels. Names found in files are never "
                f"imported: pass --allow {named} if you have that code and trust it"
            )
        reference, arguments = named, given if isinstance(given, dict) else {}
    return load_model(reference, dict(arguments or {}), path, dataset, whose=f"student {reference}").eval()


def parameter_count(model: nn.Module) -> int:
    """Number of trainable and frozen parameters; buffers such as running statistics are not counted."""
    return sum(p.numel() for p in model.parameters())


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file. Raises ConfigError that says ``what`` was expected there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} should be {what}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} should be {what}, but it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} should be {what}; found a JSON {type(value).__name__}")
    return value


def read_run(path: Path, allow: Sequence[str] = ()) -> Run:
    """Read ``runs/<name>``; ``allow`` holds each ``module:factory`` that it may make us import.

    Raises ConfigError when it is no finished run."""
    record = read_json(path / "run.json", "the record of a training run (softlabels train writes it)")
    config = record.get("config")
    if not isinstance(config, dict) or "student" not in config:
        raise ConfigError(
            f"{path / 'run.json'} should hold the configuration of a run; it names no student. Train again"
        )
    weights = {
        int(folder.name.removeprefix("seed-")): folder / "model.safetensors"
        for folder in path.glob("seed-*")
        if folder.name.removeprefix("seed-").isdecimal() and (folder / "model.safetensors").is_file()
    }
    if not weights:
        raise ConfigError(f"{path} should hold seed-*/model.safetensors; found none. Train again")
    return Run(path=path, config=config, record=record, weights=dict(sorted(weights.items())), allowed=frozenset(allow))


@dataclass(frozen=True)
class Trained:
    """One model that a finished run left behind: what builds it, its file, and the classes of a specialist."""

    reference: str
    arguments: tuple[str, ...]
    weights: Path
    classes: tuple[str, ...] = ()


def read_trained(path: Path, seed: int | None = None, allow: Sequence[str] = ()) -> Trained:
    """The model of ``seed`` (the lowest unless given) of a run of ``train``, or the one of a run of ``fit-teacher``.

    Nothing is imported: a ``module:factory`` is given back only when it is in ``allow`` (see ``Run.reference``).
    Raises ConfigError when there is no such finished run or seed, or when its weights say that they are of another
    model than its record does; ModelError when they cannot be read.
    """
    if (path / "run.json").is_file():
        run, kind = read_run(path, allow), "student"
    else:
        run, kind = _read_teacher(path, allow), "teacher"
    if kind == "teacher" and seed is not None:
        raise ConfigError(f"{path} is a run of fit-teacher, which trains one model: leave --run-seed out")
    if seed is not None and seed not in run.weights:
        raise ConfigError(f"{path} has no seed {seed}; it has {', '.join(map(str, run.weights))}")
    weights = run.weights[min(run.weights) if seed is None else seed]
    found = Trained(
        reference=run.reference(kind),
        arguments=_texts(run, f"{kind}_args"),
        weights=weights,
        classes=_texts(run, "classes"),
    )
    says = read_metadata(weights).get("reference")
    if says != found.reference:
        raise ConfigError(
            f"{path} records a {found.reference}, and {weights} says that it is of {says or 'nothing'}: one of the two "
            "was replaced. Train again, or name model and file by --teacher and --weights"
        )
    return found


def _read_teacher(path: Path, allow: Sequence[str]) -> Run:
    expected = "a finished run of softlabels train (run.json) or fit-teacher (report.json)"
    record = read_json(path / "report.json", expected)
    config, weights = record.get("config"), path / "model.safetensors"
    if not isinstance(config, dict) or "teacher" not in config or not weights.is_file():
        raise ConfigError(f"{path} should be {expected}; its report.json names no teacher, or its weights are gone")
    return Run(path=path, config=config, record=record, weights={0: weights}, allowed=frozenset(allow))


def _texts(run: Run, name: str) -> tuple[str, ...]:
    return tuple(str(text) for text in run.config.get(name) or ())
