"""What is measured: trained runs with all of their seeds, files of weights, artefacts. Each is a row of the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.artefacts.checking import Predictor as Timed
from pipeline.artefacts.opening import Artefact, open_artefact
from pipeline.configuration import parse_arguments
from pipeline.datasets import Dataset
from pipeline.errors import ConfigError, ModelError, first_line
from pipeline.evaluation.batches import Predictor
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.scoring import torch_predictor
from pipeline.identity import digest_bytes
from pipeline.models import check_model, read_metadata
from pipeline.models.loading import check_metadata
from pipeline.progress import Progress
from pipeline.runs import Run, build_student, load_trained, parameter_count, read_json, read_run, read_trained

TABLE = "table.json"
"""What ``compress`` leaves in its directory beside the files."""


@dataclass(frozen=True)
class Candidate:
    """One row: ``predictors`` by seed; ``models`` are the torch modules among them, ``artefacts`` the open files.

    ``what`` says what builds it; ``source`` names the row it was made from, ``control`` that it is there to compare
    with; ``runtime`` computes its answers; ``files`` are what was named, one of each seed.
    """

    name: str
    what: str
    predictors: Mapping[int, Predictor]
    runtime: str
    models: Mapping[int, nn.Module] = field(default_factory=dict)
    artefacts: Mapping[int, Artefact] = field(default_factory=dict)
    run: Run | None = None
    files: tuple[Path, ...] = ()
    source: str | None = None
    control: bool = False

    @property
    def parameters(self) -> int | None:
        """Of the torch module; None for a file that holds none."""
        return parameter_count(next(iter(self.models.values()))) if self.models else None

    @property
    def bytes(self) -> int | None:
        """Of a file and of what belongs to it, on disk; the mean over the seeds."""
        sizes = [artefact.bytes for artefact in self.artefacts.values()] or [p.stat().st_size for p in self.files]
        return round(sum(sizes) / len(sizes)) if sizes else None

    def timed(self, seed: int) -> Timed:
        """One seed from array to array, as it is timed."""
        if seed in self.artefacts:
            return self.artefacts[seed].predict
        predict = self.predictors[seed]
        return lambda inputs: predict(torch.from_numpy(inputs))


@dataclass(frozen=True)
class Named:
    """A row that was asked for: its name, and the path of each seed of it; ``listed``: by a directory of compress."""

    name: str
    paths: Mapping[int, Path]
    source: str | None = None
    control: bool = False
    listed: bool = False


def named_models(texts: Sequence[str]) -> list[Named]:
    """``PATH`` or ``NAME=PATH`` each; a directory of ``compress`` stands for its files, as its table names them.

    A name that is given several times is one row of several seeds; so are rows of one name of several directories of
    ``compress``. Raises ConfigError for a path that is not there, and for paths that come to one name by chance.
    """
    found: dict[str, Named] = {}
    chosen: set[str] = set()
    for text in texts:
        name, sign, rest = text.partition("=")
        path, given = (Path(rest), name) if sign and not Path(text).exists() else (Path(text), None)
        if not path.exists():
            raise ConfigError(f"a model should be a run, a directory of compress, or a file; there is no {path}")
        table = (path / TABLE).is_file()
        if path.is_dir() and not any((path / record).is_file() for record in (TABLE, "run.json", "report.json")):
            weights = path / "model.safetensors"
            hint = f". Name {weights}" if weights.is_file() else ""
            raise ConfigError(
                f"a model should be a directory of train (run.json), fit-teacher (report.json) or compress ({TABLE}), "
                f"or a file; {path} is a folder without any of them{hint}"
            )
        for one in _compressed(path, given) if table else [Named(given or _name(path), {0: path})]:
            before, meant = found.get(one.name), bool(given) or table
            if before is not None and not (meant and one.name in chosen):
                raise ConfigError(
                    f"{next(iter(before.paths.values()))} and {path} would both be called {one.name}. Write NAME=PATH, "
                    "with one name for seeds of one model"
                )
            chosen |= {one.name} if meant else set()
            found[one.name] = one if before is None else _joined(before, one)
    return list(found.values())


def _joined(before: Named, one: Named) -> Named:
    """Another seed of the same row; a number that is taken becomes the next that is free."""
    paths = dict(before.paths)
    for seed, path in one.paths.items():
        if path.resolve() in [known.resolve() for known in paths.values()]:
            raise ConfigError(f"{path} is named twice as {one.name}: it would count as two seeds")
        paths[seed if seed not in paths else max(paths) + 1] = path
    return replace(before, paths=paths)


def _name(path: Path) -> str:
    """A run's own name; for its model.safetensors the run and the seed."""
    if path.is_dir():
        return path.resolve().name
    if path.stem == "model":
        folders = path.resolve().parent.parts[-2:]
        return "/".join(folders) if folders[-1].startswith("seed-") else folders[-1]
    return path.stem


def _compressed(folder: Path, given: str | None) -> Iterator[Named]:
    """The files that a directory of ``compress`` names, under ``given``/ where a name is given."""
    table = read_json(folder / TABLE, "the table of softlabels compress")
    rows, seed = table.get("rows"), table.get("seed")
    held = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    files = [(row, str(row.get("file") or row.get("weights"))) for row in held if row.get("file") or row.get("weights")]
    if not files:
        raise ConfigError(f"{folder} should hold files of softlabels compress; its {TABLE} names none")
    prefix = f"{given}/" if given else ""
    names = {str(row["name"]) for row, _ in files}
    for row, file in files:
        path = folder / file
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{folder / TABLE} should name files in its folder; found {file!r}")
        source = f"{prefix}{row['source']}" if row.get("source") in names else None
        number = seed if isinstance(seed, int) else 0
        yield Named(f"{prefix}{row['name']}", {number: path}, source, bool(row.get("control")), listed=True)


def trained_run(named: Sequence[Named], allow: Sequence[str]) -> Run | None:
    """The first training run among what is named, whose data and cache count unless others are given."""
    for one in named:
        for path in one.paths.values():
            for folder in (path, path.parent.parent):
                if (folder / "run.json").is_file():
                    return read_run(folder, allow)
    return None


def open_candidates(
    config: EvaluateConfig, named: Sequence[Named], dataset: Dataset, device: torch.device, progress: Progress
) -> list[Candidate]:
    """Every model, opened and tried with one example. Raises ConfigError or ModelError that names the first bad one.

    A ``.pt2`` that a directory of compress lists, and that nobody vouches for, is left out with a line in the log.
    """
    example = dataset.prepare(dataset.load(int(dataset.rows(config.split)[0])))[None]
    found = []
    for one in named:
        unknown = [path for path in one.paths.values() if one.listed and _is_strange(config, path)]
        if unknown:
            names = ", ".join(f"{path} (sha256 {digest_bytes(path.read_bytes())})" for path in unknown)
            progress.log(f"{one.name} is left out: a .pt2 runs what it carries. Pass --trust for {names}")
            continue
        found.append(_open(config, one, dataset, device, example))
    return found


def _is_strange(config: EvaluateConfig, path: Path) -> bool:
    """Whether opening a file would run what it carries, and nobody vouches for it."""
    return path.suffix == ".pt2" and digest_bytes(path.read_bytes()) not in config.trust


def of_run(run: Run, dataset: Dataset, device: torch.device, name: str | None = None) -> Candidate:
    """All seeds of a training run."""
    models = {seed: run.build(dataset, seed) for seed in run.weights}
    files = tuple(run.weights.values())
    return _of_models(name or run.name, str(run.config["student"]), models, device, run=run, files=files)


def of_weights(config: EvaluateConfig, dataset: Dataset, device: torch.device) -> Candidate:
    """``--weights`` with ``--student``."""
    weights = Path(str(config.weights))
    model = build_student(str(config.student), config.student_args, weights, dataset)
    return _of_models(str(config.weights), str(config.student), {0: model}, device, files=(weights,))


def _open(config: EvaluateConfig, one: Named, dataset: Dataset, device: torch.device, example: Tensor) -> Candidate:
    first = next(iter(one.paths.values()))
    if (first / "run.json").is_file() and len(one.paths) == 1:
        found = of_run(read_run(first, config.allow), dataset, device, one.name)
    elif first.is_dir() or first.suffix == ".safetensors":
        models = {seed: _module(config, path, dataset) for seed, path in one.paths.items()}
        files = tuple(_weights(config, path) for path in one.paths.values())
        what = type(next(iter(models.values()))).__name__
        found = _of_models(one.name, what, models, device, files=files, source=one.source, control=one.control)
    else:
        return _of_files(config, one, dataset, example)
    for model in found.models.values():
        check_model(model, classes=len(dataset.classes), example_input=example.to(device))
    return found


def _weights(config: EvaluateConfig, path: Path) -> Path:
    return read_trained(path, allow=config.allow).weights if path.is_dir() else path


def _module(config: EvaluateConfig, path: Path, dataset: Dataset) -> nn.Module:
    """The model of a directory of ``train`` or ``fit-teacher``, or of a file of weights."""
    if path.is_dir():
        if (path / "run.json").is_file() and len(read_run(path, config.allow).weights) > 1:
            raise ConfigError(
                f"{path} has several seeds, and so have others of its name. Name its files: "
                f"{path / 'seed-0' / 'model.safetensors'} and so on"
            )
        trained = read_trained(path, allow=config.allow)
        arguments = parse_arguments(trained.arguments, "the run's arguments")
        return load_trained(trained.weights, dataset, reference=trained.reference, arguments=arguments)
    if config.student is None or read_metadata(path).get("reference") not in (None, "", config.student):
        return load_trained(path, dataset, config.allow)
    given = parse_arguments(config.student_args, "--student-args")
    return load_trained(path, dataset, config.allow, reference=config.student, arguments=given)


def _of_models(name: str, what: str, models: Mapping[int, nn.Module], device: torch.device, **more: Any) -> Candidate:
    predictors = {seed: torch_predictor(model, device) for seed, model in models.items()}
    on = "" if device.type == "cpu" else f" on {device}"
    return Candidate(name, what, predictors, f"torch {torch.__version__}{on}", models=models, **more)


def _of_files(config: EvaluateConfig, one: Named, dataset: Dataset, example: Tensor) -> Candidate:
    artefacts = {seed: _artefact(config, path, dataset, example) for seed, path in one.paths.items()}
    first = next(iter(artefacts.values()))
    return Candidate(
        one.name,
        first.kind,
        {seed: as_tensors(artefact.predict) for seed, artefact in artefacts.items()},
        first.runtime,
        artefacts=artefacts,
        files=tuple(one.paths.values()),
        source=one.source,
        control=one.control,
    )


def as_tensors(predict: Timed) -> Predictor:
    """A function of arrays as one of tensors."""
    return lambda inputs: predict(np.ascontiguousarray(inputs.numpy()))


def _artefact(config: EvaluateConfig, path: Path, dataset: Dataset, example: Tensor) -> Artefact:
    artefact = open_artefact(path, threads=config.runtime_threads, trusted=config.trust)
    check_metadata(artefact.metadata, dataset, str(path))
    if artefact.discrete != dataset.discrete:
        kinds = ("values", "token sequences")
        raise ModelError(
            f"{path} takes {kinds[artefact.discrete]} ({artefact.dtype}); {dataset.name} has {kinds[dataset.discrete]}"
        )
    try:
        logits = artefact.predict(np.ascontiguousarray(example.numpy()))
    except Exception as error:  # whatever the runtime raises on inputs of another shape
        raise ModelError(
            f"{path} should take inputs of shape {tuple(example.shape)}, those of {dataset.name}, and fails on one: "
            f"{first_line(error)}"
        ) from error
    expected = (1, *(example.shape[1:] if dataset.discrete else ()), len(dataset.classes))
    if logits.shape != expected:
        raise ModelError(
            f"{path} should give logits of shape {expected} for one example of {dataset.name}; found {logits.shape}"
        )
    return artefact
