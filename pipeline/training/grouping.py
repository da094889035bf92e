"""Which students of a sweep are trained together: those that differ in what they minimise alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError, SoftlabelsError, some
from pipeline.identity import digest
from pipeline.progress import Progress
from pipeline.sources.mixing import OF_PROBABILITIES
from pipeline.training.config import TrainConfig
from pipeline.training.grid import Cell, SweepConfig
from pipeline.training.preparation import Prepared, prepare
from pipeline.training.recipe import OUTCOME_FREE, outcome_options
from pipeline.training.stage import run_identity

OF_OBJECTIVE = frozenset(
    {
        "alpha",
        "alpha_epochs",
        "beta",
        "temperature",
        "loss",
        "loss_args",
        "standardise",
        "bare_topk",
        "label_smoothing",
    }
)
"""Options that say what a student minimises: students that differ in these alone are trained together."""
OF_STUDENT = frozenset(
    {"student", "student_args", "seed", "seeds", "epochs", "batch_size", "accumulate", "optimizer", "lr"}
    | {"weight_decay", "momentum", "schedule", "warmup", "precision", "first_window", "drop_last"}
)
"""Options that preparation does not look at."""


@dataclass(frozen=True)
class Group:
    """Cells that are trained together, with the lineage of each as its record has it."""

    cells: tuple[Cell, ...]
    lineage: dict[str, Any]

    @property
    def first(self) -> TrainConfig:
        """The options of the first cell, which all have but for the objective."""
        return self.cells[0].config

    @property
    def seeds(self) -> range:
        return range(self.first.seed, self.first.seed + self.first.seeds)

    def identity(self, cell: Cell) -> str:
        """Of one cell's run: that it was trained in this cohort counts, for its bytes differ from those of train."""
        return run_identity(cell.config, self.lineage)


class Preparations:
    """Preparations of cells, of which many are the same: the last one is kept, and the lineage of all."""

    def __init__(self) -> None:
        self._lineages: dict[str, dict[str, Any]] = {}
        self._last: tuple[str, Prepared] | None = None
        self._said: set[str] = set()
        self.unchecked: tuple[str, ...] = ()

    @property
    def device(self) -> Any:
        """Of the last preparation."""
        if self._last is None:
            raise RuntimeError("nothing was prepared yet")
        return self._last[1].task.device

    def lineage(self, config: TrainConfig, progress: Progress) -> dict[str, Any]:
        """Where everything that a cell learns from comes from, once it has been checked."""
        key = digest(_of_preparation(config))
        if key not in self._lineages:
            prepared = self.prepared(config)
            for line in (*(f"cannot be checked: {what}" for what in prepared.unchecked), *prepared.notes):
                if line not in self._said:
                    progress.log(line)
                self._said.add(line)
            self.unchecked = tuple(dict.fromkeys([*self.unchecked, *prepared.unchecked]))
            self._lineages[key] = prepared.lineage
        return self._lineages[key]

    def prepared(self, config: TrainConfig) -> Prepared:
        """What ``prepare`` gives for this cell but for its objective."""
        key = digest(_of_group(config, without=OF_STUDENT))
        checked = digest(_of_preparation(config))
        if self._last is None or self._last[0] != key or checked not in self._lineages:
            self._last = None  # labels of two should not be held at once
            self._last = key, prepare(config)
        return self._last[1]


def plan(config: SweepConfig, preparations: Preparations, progress: Progress) -> list[Group]:
    """The cells in cohorts of at most ``at_once``, every one of them prepared once to see that it can be trained.

    Raises ConfigError with the problems of all cells; where all have one and the same, as it is.
    """
    groups: dict[str, tuple[list[Cell], dict[str, Any]]] = {}
    failed: dict[str, tuple[SoftlabelsError, list[str]]] = {}
    for cell in config.cells:
        try:
            lineage = preparations.lineage(cell.config, progress)
        except SoftlabelsError as error:
            failed.setdefault(str(error), (error, []))[1].append(cell.key)
            continue
        groups.setdefault(digest([_of_group(cell.config), lineage]), ([], lineage))[0].append(cell)
    if len(failed) == 1 and len(next(iter(failed.values()))[1]) == len(config.cells):
        raise next(iter(failed.values()))[0]
    if failed:
        count = len(config.cells)
        raise ConfigError(
            [f"{text} (in {len(keys)} of {count} cells: {some(keys, 3)})" for text, (_, keys) in failed.items()]
        )
    cohorts = []
    for cells, lineage in groups.values():
        for start in range(0, len(cells), config.at_once):
            chosen = tuple(cells[start : start + config.at_once])
            others = digest([outcome_options(cell.config) for cell in chosen])
            cohorts.append(Group(chosen, {**lineage, "cohort": {"students": len(chosen), "digest": others}}))
    return cohorts


def _of_group(config: TrainConfig, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """What students that are trained together have in common; those that use soft, or hard, labels use other rows."""
    objective = config.objective
    own = {name: value for name, value in config.as_dict().items() if name not in OF_OBJECTIVE | without | OUTCOME_FREE}
    averaged = len(config.labels) > 1 and config.mix in OF_PROBABILITIES
    return own | {
        "soft": bool(objective.alpha),
        "hard": bool(objective.beta),
        "temperature": config.temperature if averaged else None,
    }


def _of_preparation(config: TrainConfig) -> dict[str, Any]:
    """What preparation looks at, to find or to refuse."""
    return _of_group(config, without=OF_STUDENT) | {
        name: getattr(config, name) for name in ("temperature", "loss", "standardise", "bare_topk")
    }
