"""Train the students of one configuration, seed by seed, and keep them with where they came from."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.datasets import Dataset
from pipeline.errors import DiskFullError, some
from pipeline.identity import digest, short
from pipeline.models import build_model, check_model, save_weights, state_digest
from pipeline.outputs import json_bytes, read_finished, write_beside
from pipeline.progress import Progress, Silent
from pipeline.training.config import TrainConfig
from pipeline.training.fitted import DivergedError, Fitted
from pipeline.training.loop import fit
from pipeline.training.peers import Peers, peer_records, save_peers, with_peers
from pipeline.training.preparation import Prepared, prepare
from pipeline.training.ranks import Ranks
from pipeline.training.recipe import Recipe, outcome_options
from pipeline.workspace import Workspace, refuse_strangers, write_atomic

RECORD = "run.json"
SEED_RECORD = "seed.json"
STATE = "state.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class TrainReport:
    """What a training run did: a record per student; ``seconds`` are of this process, 0 when it was found finished."""

    out: str
    identity: str
    seeds: list[dict[str, Any]]
    lineage: dict[str, Any]
    seconds: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)
    unchecked: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line for people."""
        if "rank" in self.environment:
            return f"{self.out}: took part as rank {self.environment['rank']} of {self.environment['ranks']}"
        accuracies = [s["accuracy"] for s in self.seeds if "accuracy" in s]
        judged = ""
        if accuracies:
            spread = f" (s = {statistics.stdev(accuracies):.4f})" if len(accuracies) > 1 else ""
            judged = f", validation accuracy {statistics.mean(accuracies):.4f}{spread}"
        did = f"{self.seconds:.1f} s" if self.seconds else "found finished"
        plural = "s" if len(self.seeds) > 1 else ""
        return f"{self.out}: {len(self.seeds)} student{plural}{judged}, {did}; identity {short(self.identity)}"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dict(vars(self))


def run(config: TrainConfig, progress: Progress | None = None) -> TrainReport:
    """Train, resume, or find the same run finished.

    Writes ``out``/run.json and, per seed, seed-K/model.safetensors and seed-K/history.json. Nothing in them depends on
    the clock, so that equal options and data give equal bytes; times go to ``out``.report.json, beside it.

    Under torchrun all ranks train each student together, on one filesystem; rank 0 alone writes and reports.

    Raises ConfigError, DataError, ModelError or CacheError before the first step; BusyError when another process
    is writing ``out``; DiskFullError when a file does not fit, with the state of before kept; KeyboardInterrupt after
    Ctrl-C or SIGTERM, with the state saved.
    """
    prepared = prepare(config)
    with Ranks.of_this_process(prepared.task.device, config.parallel) as ranks:
        # A step of N ranks is that of one with N times the accumulation, and so is what comes of it.
        config = replace(config, accumulate=config.accumulate * ranks.world)
        if ranks.rank:
            return _follow(config, prepared, ranks)
        return _run(config, prepared, ranks, progress or Silent())


def _follow(config: TrainConfig, prepared: Prepared, ranks: Ranks) -> TrainReport:
    """Take part in the fits of rank 0, which reads and writes whatever is to be kept."""
    folder, seeds = ranks.told(None)
    for seed in seeds:
        state = Path(folder) / f"seed-{seed}" / STATE
        fit(_learner(config, prepared, seed), prepared.task, config, seed=seed, state=state, ranks=ranks)
    who = {**environment(prepared.task.device), "rank": ranks.rank, "ranks": ranks.world}
    return TrainReport(str(config.out), run_identity(config, prepared.lineage), [], prepared.lineage, environment=who)


def _run(config: TrainConfig, prepared: Prepared, ranks: Ranks, progress: Progress) -> TrainReport:
    """What rank 0 does, or a process alone."""
    started = time.perf_counter()
    out = Path(config.out)
    for what in prepared.unchecked:
        progress.log(f"cannot be checked: {what}")
    for note in prepared.notes:
        progress.log(note)
    identity = run_identity(config, prepared.lineage)
    if config.overwrite:
        refuse_strangers(out, (RECORD, "seed-*"))
    options = {**outcome_options(config), **prepared.lineage}
    found = read_finished(out, RECORD, identity, overwrite=config.overwrite, options=options)
    if found is not None:
        ranks.told((None, []))
        report = TrainReport(str(config.out), identity, found["seeds"], found["lineage"], unchecked=prepared.unchecked)
        write_beside(out, report.as_dict(), again=True)
        return report
    with Workspace(out, identity) as space:
        records, timings = _all_seeds(config, prepared, space.path, identity, ranks, progress)
        space.commit()
    report = TrainReport(
        out=str(config.out),
        identity=identity,
        seeds=records,
        lineage=prepared.lineage,
        seconds=round(time.perf_counter() - started, 3),
        environment={**environment(prepared.task.device), "fits": timings},
        unchecked=prepared.unchecked,
    )
    write_beside(out, report.as_dict())
    return report


def run_identity(config: Recipe, lineage: dict[str, Any]) -> str:
    """Digest of everything that decides the outcome: options but for where and how fast, and the lineage."""
    return digest({"options": outcome_options(config), "lineage": lineage})


def environment(device: torch.device) -> dict[str, Any]:
    """Where a run took place: for reports, never for records."""
    return {
        "device": str(device),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _all_seeds(
    config: TrainConfig, prepared: Prepared, folder: Path, identity: str, ranks: Ranks, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Fill ``folder`` with everything that a run leaves behind, and nothing else; the records, and what they took."""
    finished = read_finished(folder, RECORD, identity, overwrite=True)
    timings: dict[str, Any] = {}
    seeds = range(config.seed, config.seed + config.seeds)
    held = {seed: finished_seed(folder / f"seed-{seed}", seed) for seed in seeds} if finished is None else {}
    ranks.told((str(folder), [seed for seed, record in held.items() if record is None]))
    if finished is None:
        records = []
        for seed, record in held.items():
            timing: dict[str, Any] = {}
            if record is None:
                record, timing = _one_seed(config, prepared, folder / f"seed-{seed}", seed, ranks, progress)
            records.append(record)
            timings[str(seed)] = timing
        finished = run_record(config, identity, records, prepared.lineage)
        write_atomic(folder / RECORD, json_bytes(finished))
    # Only now: a kill before the record is there must not send finished seeds back to their first step.
    clear_scratch(folder)
    return list(finished["seeds"]), timings


def run_record(
    config: TrainConfig, identity: str, records: list[dict[str, Any]], lineage: dict[str, Any]
) -> dict[str, Any]:
    """What run.json holds: ``records`` are those of the seeds."""
    return {
        "format": FORMAT,
        "identity": identity,
        "config": config.as_dict(),
        "seeds": records,
        "lineage": lineage,
    }


def finished_seed(folder: Path, seed: int) -> dict[str, Any] | None:
    """The record of a student that an earlier process finished in ``folder``."""
    found = read_finished(folder, SEED_RECORD, str(seed), overwrite=True)
    return None if found is None else dict(found["record"])


def _one_seed(
    config: TrainConfig, prepared: Prepared, folder: Path, seed: int, ranks: Ranks, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train one student into ``folder``; its record, and what it took."""
    dataset = prepared.dataset
    model = _learner(config, prepared, seed)
    if not isinstance(model, Peers):  # those are checked before they are stacked
        check_model(model, classes=len(dataset.classes), example_input=dataset.prepare(dataset.load(0))[None])
    elif model.apart:
        name = f"{Path(config.out).name}, seed {seed}"
        progress.log(f"{name}: the {model.group.count} peers run one after another in each step: {model.apart}")
    try:
        record, timing = _train(config, prepared, model, folder, seed, ranks, progress)
    except DiskFullError as error:
        left = config.seed + config.seeds - seed
        size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        raise error.adding(
            f"The {left:,} student{'s' * (left > 1)} still to be kept take about {left * size:,} bytes in all, besides "
            "the training state"
        ) from error
    (folder / STATE).unlink(missing_ok=True)  # a run of many seeds should not hold all of their states
    return record, timing


def _train(
    config: TrainConfig,
    prepared: Prepared,
    model: nn.Module,
    folder: Path,
    seed: int,
    ranks: Ranks,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train ``model``, a student or one with its peers, and keep it in ``folder``; its record, and what it took."""
    name = f"{Path(config.out).name}, seed {seed}"
    state = folder / STATE
    try:
        fitted = fit(
            model, prepared.task, config, seed=seed, state=state, progress=progress, description=name, ranks=ranks
        )
    except DivergedError as error:
        if not isinstance(model, Peers):
            raise
        lost = [model.whose[number] for number in error.members]
        raise DivergedError(f"{error}. That is so for {some(lost, 5)}", error.members) from error
    return keep_student(config, prepared, model, folder, seed, fitted), {
        "seconds": round(fitted.seconds, 3),
        "examples_per_second": round(ranks.world * fitted.examples / max(fitted.seconds, 1e-9), 1),
        **({"stacked": bool(model.group.stacked)} if isinstance(model, Peers) else {}),
    }


def keep_student(
    config: TrainConfig, prepared: Prepared, model: nn.Module, folder: Path, seed: int, fitted: Fitted
) -> dict[str, Any]:
    """Write a trained student to ``folder``, with its peers where ``model`` holds them too; the record of it.

    That is written last, so that ``finished_seed`` finds it.
    """
    models = model.members() if isinstance(model, Peers) else [model]
    student = models[0]
    record = {
        "seed": seed,
        "epochs": len(fitted.history),
        "best_epoch": fitted.best_epoch,
        "kept_epoch": fitted.kept_epoch,
        "steps": fitted.steps,
        "parameters": sum(p.numel() for p in student.parameters()),
        "state": state_digest(student),
        "loss": fitted.history[-1]["loss"],
        **fitted.figures,
    }
    metadata = {**model_metadata(*config.model, prepared.dataset), "seed": seed, "cache": prepared.lineage["cache"]}
    save_model(folder, student, metadata, fitted)
    if isinstance(model, Peers):
        found = peer_records(model, models, config, prepared.task, fitted)
        own = {key: found["peers"][0][key] for key in ("loss", "accuracy", "nll") if key in found["peers"][0]}
        record |= {"best_epoch": fitted.of(0).best_epoch, **own, **found}
        save_peers(folder, models, config, metadata)
    write_atomic(folder / SEED_RECORD, json_bytes({"identity": str(seed), "record": record}))
    return record


def clear_scratch(folder: Path) -> None:
    """Remove what only a run that goes on needs: training states, records of single seeds, files half written."""
    for name in (STATE, SEED_RECORD, "*.partial"):
        for scratch in folder.rglob(name):
            scratch.unlink()


def initial_student(config: TrainConfig, dataset: Dataset, seed: int) -> nn.Module:
    """The student of one seed before its first step."""
    torch.manual_seed(seed)
    reference, arguments = config.model
    return build_model(
        reference,
        arguments,
        classes=len(dataset.classes),
        input_shape=dataset.input_shape,
        discrete=dataset.discrete,
    )


def _learner(config: TrainConfig, prepared: Prepared, seed: int) -> nn.Module:
    """What is fitted: the student of one seed before its first step, with its peers where it has any."""
    student = initial_student(config, prepared.dataset, seed)
    if not config.exchanging:
        return student
    return with_peers(student, config, prepared.dataset, seed, prepared.task.device)


def model_metadata(reference: str, arguments: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """What a weights file says about its model: enough to build it again, and to refuse data it does not fit."""
    return {
        "reference": reference,
        "args": arguments,
        "classes": len(dataset.classes),
        "class_names": list(dataset.classes),
        "preprocessing": dataset.preprocessing,
        "input_shape": list(dataset.input_shape),
    }


def save_model(folder: Path, model: nn.Module, metadata: dict[str, Any], fitted: Fitted) -> None:
    """model.safetensors and history.json of one fit."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "history.json", json_bytes(fitted.history))
    save_weights(folder / "model.safetensors", model, metadata)
