"""Train the students of a grid, many at once: those that differ in what they minimise see each batch together.

Each is kept as a run of train. It equals that run up to rounding: same initial weights, order, steps and learning
rate. Dropout alone draws other masks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.devices import torchrun_rank
from pipeline.errors import ConfigError, ModelError, some
from pipeline.identity import digest, short
from pipeline.models import check_model
from pipeline.outputs import json_bytes, read_finished, write_beside
from pipeline.progress import Progress, Silent
from pipeline.training.cohort import together
from pipeline.training.fitted import DivergedError
from pipeline.training.grid import Cell, SweepConfig, plain_value
from pipeline.training.grouping import Group, Preparations, plan
from pipeline.training.loop import fit
from pipeline.training.preparation import Prepared
from pipeline.training.recipe import outcome_options
from pipeline.training.shared import Shared
from pipeline.training.stage import (
    RECORD,
    STATE,
    clear_scratch,
    environment,
    finished_seed,
    initial_student,
    keep_student,
    run_record,
)
from pipeline.workspace import Workspace, refuse_strangers, write_atomic

TABLE = "sweep.json"
FORMAT = 1


@dataclass(frozen=True)
class SweepReport:
    """What a sweep did. ``cells``: a record per cell, best first; ``seconds`` are of this process, 0 for none."""

    out: str
    identity: str
    cells: list[dict[str, Any]]
    seconds: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)
    unchecked: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The table, and one line."""
        did = f"{self.seconds:.1f} s" if self.seconds else "found finished"
        students = sum(cell["seeds"] for cell in self.cells)
        best = f", best {self.cells[0]['cell']}" if len(self.cells) > 1 and "accuracy" in self.cells[0] else ""
        line = (
            f"{self.out}: {students} students in {len(self.cells)} cells{best}, {did}; identity {short(self.identity)}"
        )
        return f"{table(self.cells)}\n{line}"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dict(vars(self))


def run(config: SweepConfig, progress: Progress | None = None) -> SweepReport:
    """Train, resume, or find the same sweep finished.

    Writes for each cell ``out``/KEY, laid out as a run of train, and ``out``/sweep.json, the table; times go to
    ``out``.report.json.

    Raises what ``training.run`` raises; ConfigError with what is wrong in any cell, before anything is trained.
    """
    started, progress = time.perf_counter(), progress or Silent()
    if torchrun_rank()[1] > 1:
        raise ConfigError(
            "a sweep is of one process: start it without torchrun, or train its cells with softlabels train"
        )
    preparations = Preparations()
    cohorts = plan(config, preparations, progress)
    out, unchecked = Path(config.out), preparations.unchecked
    keys = [cell.key for cohort in cohorts for cell in cohort.cells]
    identity = digest({cell.key: cohort.identity(cell) for cohort in cohorts for cell in cohort.cells})
    if config.overwrite:
        refuse_strangers(out, (TABLE, *keys, "*=*"))
    options = outcome_options(config)
    found = read_finished(out, TABLE, identity, overwrite=config.overwrite, options=options)
    if found is not None:
        report = SweepReport(str(config.out), identity, found["cells"], unchecked=unchecked)
        write_beside(out, report.as_dict(), again=True)
        return report
    with Workspace(out, identity) as space:
        timings: dict[str, Any] = {}
        for number, cohort in enumerate(cohorts):
            name = f"{out.name}, cohort {number + 1} of {len(cohorts)}"
            timings[name] = _train(cohort, preparations, space.path, name, progress)
        records = _best_first([_row(cell, cohort, space.path) for cohort in cohorts for cell in cohort.cells])
        record = {"format": FORMAT, "identity": identity, "config": config.as_dict(), "cells": records}
        write_atomic(space.path / TABLE, json_bytes(record))
        clear_scratch(space.path)
        for folder in space.path.glob(".cohort-*"):
            folder.rmdir()
        space.commit()
    report = SweepReport(
        out=str(config.out),
        identity=identity,
        cells=records,
        seconds=round(time.perf_counter() - started, 3),
        environment={**environment(preparations.device), "cohorts": timings},
        unchecked=unchecked,
    )
    write_beside(out, report.as_dict())
    return report


def _train(cohort: Group, preparations: Preparations, folder: Path, name: str, progress: Progress) -> dict[str, Any]:
    """Train a cohort, seed by seed, and write the run of each of its cells; what the fits took."""
    timings: dict[str, Any] = {}
    identities = {cell.key: cohort.identity(cell) for cell in cohort.cells}
    if all(read_finished(folder / k, RECORD, i, overwrite=True) is not None for k, i in identities.items()):
        return timings
    prepared = preparations.prepared(cohort.first)
    prepared = replace(prepared, lineage=cohort.lineage)
    for seed in cohort.seeds:
        held = [finished_seed(folder / cell.key / f"seed-{seed}", seed) for cell in cohort.cells]
        if any(record is None for record in held):
            timings[str(seed)] = _one_seed(cohort, prepared, folder, seed, f"{name}, seed {seed}", progress)
    for cell in cohort.cells:
        records = [finished_seed(folder / cell.key / f"seed-{seed}", seed) for seed in cohort.seeds]
        found = [record for record in records if record is not None]
        record = run_record(cell.config, identities[cell.key], found, cohort.lineage)
        write_atomic(folder / cell.key / RECORD, json_bytes(record))
    return timings


def _one_seed(
    cohort: Group, prepared: Prepared, folder: Path, seed: int, name: str, progress: Progress
) -> dict[str, Any]:
    """Train the students of one seed together, and keep each; what it took."""
    dataset, task = prepared.dataset, prepared.task
    models = [initial_student(cell.config, dataset, seed) for cell in cohort.cells]
    check_model(models[0], classes=len(dataset.classes), example_input=task.example)
    members, alone = together([model.to(task.device) for model in models], task.example.to(task.device))
    if alone and len(models) > 1:
        progress.log(f"{name}: the {len(models)} students run one after another in each step: {alone}")
    goal = Shared(tuple(cell.config.objective for cell in cohort.cells))
    state = folder / f".cohort-{digest(cohort.lineage['cohort'])[:12]}-{seed}" / STATE
    description = f"{name}, {len(models)} student{'s' * (len(models) > 1)}"
    own = replace(task, objective=goal)
    try:
        fitted = fit(members, own, cohort.first, seed=seed, state=state, progress=progress, description=description)
    except DivergedError as error:
        lost = [cohort.cells[number].key for number in error.members]
        raise ModelError(f"{error}. That is so for {some(lost, 5)}: without them the others can be trained") from error
    for number, (cell, model) in enumerate(zip(cohort.cells, members.members(), strict=True)):
        place = folder / cell.key / f"seed-{seed}"
        keep_student(cell.config, prepared, model, place, seed, fitted.of(number))
    state.unlink(missing_ok=True)
    return {
        "seconds": round(fitted.seconds, 3),
        "students_per_minute": round(60 * len(models) / max(fitted.seconds, 1e-9), 2),
        "stacked": not alone,
    }


def _row(cell: Cell, cohort: Group, folder: Path) -> dict[str, Any]:
    """A cell's line of the table: its options, and mean and standard deviation over the seeds."""
    found = read_finished(folder / cell.key, RECORD, cohort.identity(cell), overwrite=True)
    seeds = [] if found is None else found["seeds"]
    plain = cell.config.as_dict()
    options = {name: plain[name] for name in cell.options}
    row: dict[str, Any] = {"cell": cell.key, "options": options, "identity": cohort.identity(cell), "seeds": len(seeds)}
    for figure in ("accuracy", "nll"):
        values = [seed[figure] for seed in seeds if figure in seed]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            row[figure] = {"mean": statistics.mean(values), "s": spread}
    return row


def _best_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By validation accuracy, then likelihood; in the order of the grid where neither is there."""
    if not all("accuracy" in row for row in rows):
        return rows
    return sorted(rows, key=lambda row: (-row["accuracy"]["mean"], row["nll"]["mean"]))


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """The cells as text for people, a line each."""
    names = list(cells[0]["options"])
    lines = [[*(name.replace("_", "-") for name in names), "seeds", "accuracy", "s", "nll", "s"]]
    for cell in cells:
        options = (cell["options"][name] for name in names)
        said = [plain_value(tuple(value) if isinstance(value, list) else value) for value in options]
        figures = [_figure(cell.get(figure, {}).get(of)) for figure in ("accuracy", "nll") for of in ("mean", "s")]
        lines.append([*said, str(cell["seeds"]), *figures])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
