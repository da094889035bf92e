"""Everything the page shows, read from what the other stages wrote and checked to belong together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.errors import ConfigError
from pipeline.evaluation.comparing import ACCURACY, OMITTED_CLASS, by_seed, compared, read_comparison
from pipeline.metrics import Comparison
from pipeline.report.artefacts import TEACHER, is_language, named
from pipeline.report.merging import read_compressed, read_models
from pipeline.report.methods import KINDS, OMITTED, SETTINGS, Method, is_soft, method_of
from pipeline.runs import read_json


@dataclass(frozen=True)
class Cell:
    """One student trained by one method: its evaluation, and what its training run recorded.

    ``accuracy`` and ``omitted`` map a seed to the accuracy on the split and on the omitted class; ``histories`` maps
    a seed to its epochs; ``record`` is the run's run.json and ``timing`` its report of how long it took: both may be
    empty. ``folder`` and ``run`` are where the evaluation and the run lie, as they were named; ``called`` is the
    name of its row, of a model in a table.
    """

    name: str
    student: str
    method: Method
    metrics: Mapping[str, Any]
    details: Mapping[str, Any]
    histories: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    run: Path | None = None
    called: str = ""

    @property
    def label(self) -> str:
        """What it is called where its student is said elsewhere: ``called``, or by its method."""
        return self.called or self.method.full_title

    @cached_property
    def accuracy(self) -> dict[int, float]:
        return by_seed(self.details, ACCURACY)

    @cached_property
    def omitted(self) -> dict[int, float]:
        return by_seed(self.details, OMITTED_CLASS)

    @cached_property
    def headline(self) -> dict[int, float]:
        """What the setting is about: accuracy on the omitted class where one was, accuracy elsewhere."""
        return self.omitted if self.method.setting == OMITTED and self.omitted else self.accuracy

    @cached_property
    def validation(self) -> float:
        """Mean accuracy on validation over seeds, NaN when it was not measured."""
        values = [v["validation"]["accuracy"] for v in self.details["seeds"].values() if v.get("validation")]
        return float(np.mean(values)) if values else math.nan

    @property
    def parameters(self) -> int:
        return int(self.details["parameters"])

    @property
    def seeds(self) -> int:
        return len(self.accuracy)

    def mean(self) -> float:
        """Mean of the headline figure over seeds."""
        return metrics.spread(list(self.headline.values()))[0]


def compare(first: Cell, second: Cell) -> Comparison:
    """How much better ``first`` does on the figure their setting is about, paired by seed and by test example."""
    omitted = first.method.setting == OMITTED and first.omitted and second.omitted
    return compared(first.details, second.details, OMITTED_CLASS if omitted else ACCURACY)


@dataclass(frozen=True)
class Findings:
    """All that was measured. ``cells`` in the order of settings, kinds and sizes.

    ``runs``: records by place; ``histories``: by the place of a run that no cell is of, the epochs of each seed.
    """

    cells: tuple[Cell, ...]
    teacher: Mapping[str, Any]
    dump: Mapping[str, Any]
    manifest: Mapping[str, Any]
    compressed: Mapping[str, Any]
    claims: tuple[Mapping[str, Any], ...] = ()
    models: Mapping[str, Any] = field(default_factory=dict)
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    histories: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]] = field(default_factory=dict)

    @cached_property
    def students(self) -> tuple[str, ...]:
        """Students from the smallest to the largest."""
        sizes = {cell.student: cell.parameters for cell in self.cells}
        return tuple(sorted(sizes, key=lambda s: (sizes[s], s)))

    @cached_property
    def leading(self) -> tuple[Cell, ...]:
        """The cells without those that differ from another in their loss alone: the usual loss leads, or the first."""
        usual: dict[tuple[str, str, str, str], str] = {}
        for cell in self.cells:
            usual.setdefault(_labels_of(cell), cell.method.variant)
        return tuple(cell for cell in self.cells if cell.method.variant == usual[_labels_of(cell)])

    @cached_property
    def families(self) -> tuple[tuple[Cell, ...], ...]:
        """The cells of one setting and student each, where some of them differ in their loss alone."""
        groups: dict[tuple[str, ...], list[Cell]] = {}
        for cell in self.cells:
            setting, detail, student, _ = _labels_of(cell)
            groups.setdefault((setting, detail, student), []).append(cell)
        return tuple(tuple(cells) for cells in groups.values() if _several_losses(cells))

    def of(self, setting: str, student: str | None = None) -> tuple[Cell, ...]:
        """Leading cells of one setting, of one student or of all."""
        return tuple(c for c in self.leading if c.method.setting == setting and student in (None, c.student))

    def cell(self, setting: str, kind: str, student: str) -> Cell | None:
        """The cell of one student and method, None when it was not run."""
        found = [c for c in self.of(setting, student) if c.method.kind == kind]
        return found[0] if found else None

    @cached_property
    def best(self) -> Cell:
        """The best cell by validation accuracy; ties go to the smaller student."""

        def rank(cell: Cell) -> tuple[float, int]:
            return (-1.0 if math.isnan(cell.validation) else cell.validation), -cell.parameters

        return max(self.cells, key=rank)

    @cached_property
    def featured(self) -> str:
        """The student that figures of a single one show: that of the most cells, then the best on validation."""

        def rank(student: str) -> tuple[int, float]:
            own = [cell for cell in self.cells if cell.student == student]
            return len(own), max(-1.0 if math.isnan(cell.validation) else cell.validation for cell in own)

        return max(self.students, key=rank)

    @cached_property
    def teacher_parameters(self) -> int | None:
        """The teacher's size, where its training recorded it, or a table has the teacher as a row."""
        value = self.teacher.get("parameters") or (self._teacher_row or {}).get("parameters")
        return None if value is None else int(value)

    @cached_property
    def _teacher_row(self) -> Mapping[str, Any] | None:
        """Of a page without evaluations of students: the teacher in a table."""
        if self.cells:
            return None
        return named(self.compressed, TEACHER) or named(self.models, TEACHER)

    @cached_property
    def teacher_accuracy(self) -> float | None:
        """The teacher's accuracy on the split, from its cached labels or its row; mixtures of several do not count."""
        for cell in self.cells:
            if cell.details.get("teacher") and not isinstance(cell.details.get("cache"), list):
                return float(cell.details["teacher"]["accuracy"])
        return float(self._teacher_row["accuracy"]) if self._teacher_row else None

    @cached_property
    def tokens(self) -> bool:
        """Whether the figures are of language models: of tokens, not of examples."""
        return any(is_language(table.get("rows") or ()) for table in (self.models, self.compressed))

    @property
    def seed_counts(self) -> tuple[int, ...]:
        """The distinct numbers of seeds over the cells."""
        return tuple(sorted({cell.seeds for cell in self.cells}))


def _labels_of(cell: Cell) -> tuple[str, str, str, str]:
    """What cells have in common that can differ in their loss alone."""
    return cell.method.setting, cell.method.detail, cell.student, cell.method.kind


def _several_losses(cells: Sequence[Cell]) -> bool:
    """Whether some of the cells of one student and setting learn the same labels by different losses."""
    return len({cell.method for cell in cells}) > len({cell.method.kind for cell in cells})


def read_cell(folder: Path, runs: Mapping[str, Path]) -> Cell:
    """One evaluation directory, with the record of the run it measured where that was given."""
    details = read_json(folder / "details.json", "the details of an evaluation (softlabels evaluate writes them)")
    flat = read_json(folder / "metrics.json", "the metrics of an evaluation")
    config = details.get("config") or {}
    run = runs.get(str(details.get("run")))
    record = read_json(run / "run.json", "the record of a training run") if run else {}
    return Cell(
        name=folder.name,
        student=str(details["student"]),
        method=method_of(config, corrected=_corrected(details)),
        metrics=flat,
        details=details,
        histories=read_histories(run) if run else {},
        record=record,
        timing=read_optional(run.with_name(f"{run.name}.report.json") if run else None),
        folder=folder,
        run=run,
    )


def _with_labels_named(cells: Sequence[Cell]) -> list[Cell]:
    """Where runs learnt from different caches, those that did not learn from the commonest say from which they did."""

    def cache(cell: Cell) -> str:
        config = cell.details.get("config") or {}
        known = (cell.record.get("lineage") or {}).get("cache") or config.get("cache")
        return str(known) if config.get("cache") and is_soft(config) else ""

    found = [cache(cell) for cell in cells]
    distinct = list(dict.fromkeys(filter(None, found)))
    if len(distinct) < 2:
        return list(cells)
    usual = max(distinct, key=found.count)
    return [
        replace(cell, method=method_of(config, PurePath(str(config["cache"])).name, _corrected(cell.details)))
        if own not in ("", usual) and (config := cell.details["config"])
        else cell
        for cell, own in zip(cells, found, strict=True)
    ]


def _corrected(details: Mapping[str, Any]) -> Sequence[str]:
    """The classes whose bias was corrected (``evaluate --correct-class``)."""
    return [str(name) for name in (details.get("correction") or {}).get("classes", ())]


def read_histories(run: Path) -> dict[int, list[dict[str, Any]]]:
    """The epochs of each seed of a run, where they were recorded; of students that learnt together, the first one's."""
    found: dict[int, list[dict[str, Any]]] = {}
    for path in sorted(run.glob("seed-*/history.json")):
        number = path.parent.name.removeprefix("seed-")
        try:
            epochs = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            epochs = None
        if not isinstance(epochs, list) or not all(isinstance(e, dict) for e in epochs) or not number.isdecimal():
            raise ConfigError(f"{path} should be the epochs of one seed, as `softlabels train` records them")
        found[int(number)] = [{k: v[0] if isinstance(v, list) and v else v for k, v in e.items()} for e in epochs]
    return found


def read_optional(path: Path | None) -> dict[str, Any]:
    """A JSON object, or an empty one when there is no such file."""
    return read_json(path, "a JSON record") if path is not None and path.is_file() else {}


def read_findings(
    *,
    teacher: Path | None,
    cache: Path | None,
    runs: Sequence[Path],
    evaluations: Sequence[Path],
    compressed: Sequence[Path] = (),
    claims: Sequence[Path] = (),
    models: Path | None = None,
) -> Findings:
    """Read everything. Raises ConfigError when a directory that was named is not what it should be.

    Evaluations on different examples are refused: their accuracies do not compare.
    """
    record = read_json(teacher / "report.json", "what fit-teacher recorded") if teacher else {}
    manifest = read_json(cache / "manifest.json", "the manifest of a cache") if cache else {}
    table = read_compressed(compressed)
    records = {run.as_posix(): read_json(run / "run.json", "the record of a training run") for run in runs}
    named = {run.name: run for run in runs}
    cells = _with_labels_named([read_cell(folder, named) for folder in evaluations])
    digests = {cell.details["examples_digest"] for cell in cells}
    if len(digests) > 1:
        first = cells[0].details["examples_digest"]
        other = next(cell for cell in cells if cell.details["examples_digest"] != first)
        raise ConfigError(
            f"--evaluations should all measure the same examples; {other.name} measured others than {cells[0].name}. "
            f"Evaluate them on the same data and split"
        )
    cells.sort(
        key=lambda c: (
            SETTINGS.index(c.method.setting),
            c.method.detail,
            c.parameters,
            c.student,
            KINDS.index(c.method.kind),
            c.method.variant,
        )
    )
    return Findings(
        cells=tuple(cells),
        teacher=record,
        dump=read_optional(cache.with_name(f"{cache.name}.report.json") if cache else None),
        manifest=manifest,
        compressed=table,
        claims=tuple(read_comparison(path) for path in claims),
        models=read_models(models) if models else {},
        runs=records,
        histories={run.as_posix(): read_histories(run) for run in runs if run not in {cell.run for cell in cells}},
    )
