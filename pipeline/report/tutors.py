"""Students by the size of their tutor: a figure and a table of what stands between teacher and student.

A tutor is a run that learnt from the teacher alone and was dumped itself (Mirzadeh et al. 2020, "Improved knowledge
distillation via teacher assistant"). Who learnt from whom is told by the digests of weights in the records, never by
names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from pipeline import metrics
from pipeline.report.methods import HARD, SOFT, is_soft
from pipeline.report.reading import Cell, Findings, compare
from pipeline.report.style import COLOURS, FAINT, MUTED, SERIES, Drawing, clean, finish, new_figure, style
from pipeline.report.words import Contrast


@dataclass(frozen=True)
class Step:
    """One tutor, the student that learnt from it ``alone``, and that from the teacher and it at once (``both``)."""

    tutor: Cell
    alone: Cell | None
    both: Cell | None


@dataclass(frozen=True)
class Gap:
    """One student by tutors, the smallest first; ``teacher``: the student of the teacher alone, ``hard``: of none."""

    student: str
    steps: tuple[Step, ...]
    teacher: Cell | None
    hard: Cell | None

    def contrast(self, cell: Cell | None) -> Contrast | None:
        """A student of a tutor against that of the teacher alone."""
        if cell is None or self.teacher is None:
            return None
        return Contrast(cell, self.teacher, compare(cell, self.teacher))


def gaps(findings: Findings) -> list[Gap]:
    """Every student with two tutors or more; none in most reports, and none without the teacher's own record."""
    teacher = str(findings.teacher.get("state") or "")
    if not teacher:
        return []
    tutors = {
        str(seed["state"]): cell
        for cell in findings.cells
        if _taught_by(cell) == (teacher,)
        for seed in cell.record.get("seeds") or ()
        if seed.get("state")
    }
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in findings.cells:
        groups.setdefault((cell.student, cell.method.setting), []).append(cell)
    found = [_gap(cells, tutors, teacher) for cells in groups.values()]
    return [gap for gap in found if len(gap.steps) > 1]


def _gap(cells: Sequence[Cell], tutors: Mapping[str, Cell], teacher: str) -> Gap:
    by_teachers = {_taught_by(cell): cell for cell in reversed(cells)}
    steps: dict[str, Step] = {}
    for state, tutor in tutors.items():
        alone, both = by_teachers.get((state,)), by_teachers.get(tuple(sorted((teacher, state))))
        if alone is not None or both is not None:
            steps[tutor.name] = Step(tutor, alone, both)
    ordered = sorted(steps.values(), key=lambda step: (step.tutor.parameters, step.tutor.name))
    hard = next((cell for cell in cells if cell.method.kind == HARD and not cell.method.variant), None)
    return Gap(cells[0].student, tuple(ordered), by_teachers.get((teacher,)), hard)


def _taught_by(cell: Cell) -> tuple[str, ...]:
    """Digests of the weights of whom it learnt from, in order; empty for hard labels, a route and what is not known."""
    lineage = cell.record.get("lineage") or {}
    if not is_soft(cell.details.get("config") or {}) or (cell.details["config"]).get("route"):
        return ()
    teachers: Any = lineage.get("teacher") or ()
    listed = [teachers] if isinstance(teachers, Mapping) else teachers
    return tuple(sorted(str(one.get("state") or "") for one in listed))


def figure(findings: Findings) -> Drawing | None:
    """A panel per student: its accuracy against the parameters of its tutor."""
    found = gaps(findings)
    if not found:
        return None
    with style():
        drawn = new_figure(8.6, 3.6 * len(found) + 0.3)
        for axes, gap in zip(drawn.subplots(len(found), 1, squeeze=False)[:, 0], found, strict=True):
            _panel(axes, gap)
        handles, labels = drawn.axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=4)
        return finish("tutors", drawn, "Accuracy of the student against the parameters of its tutor, with intervals.")


def _panel(axes: Axes, gap: Gap) -> None:
    for cell, label, colour, dashes in (
        (gap.teacher, "the teacher alone", COLOURS[SOFT], (4, 3)),
        (gap.hard, "hard labels", COLOURS[HARD], (1, 2)),
    ):
        if cell is not None:
            axes.axhline(100 * cell.mean(), color=colour, lw=1.3, ls=(0, dashes), label=label, zorder=1)
    axes.set_xscale("log")
    for number, name in enumerate(("alone", "both")):
        colour, marker, shift = (SERIES[2], "^", 0.985) if name == "alone" else (SERIES[3], "D", 1.015)
        cells = [(step.tutor.parameters * shift, getattr(step, name)) for step in gap.steps]
        known = [(x, [100 * value for value in cell.headline.values()]) for x, cell in cells if cell is not None]
        for x, values in known:
            axes.plot([x] * len(values), values, "o", ms=3.2, mfc="white", mec=colour, mew=0.9, zorder=3)
            if not math.isnan(reach := metrics.half_width(values)):
                mean = float(np.mean(values))
                axes.plot([x, x], [mean - reach, mean + reach], color=colour, lw=2.2, alpha=0.4, zorder=2 + number)
        label = "the tutor alone" if name == "alone" else "teacher and tutor at once"
        means = [float(np.mean(values)) for _, values in known]
        axes.plot([x for x, _ in known], means, marker=marker, ms=7, mec="white", color=colour, label=label, zorder=4)
    names = [f"{step.tutor.name}\n{step.tutor.parameters:,}" for step in gap.steps]
    # Every other name a line lower: sizes may lie close together.
    labels = [f"{chr(10) * 2 * (place % 2)}{name}" for place, name in enumerate(names)]
    axes.set_xticks([step.tutor.parameters for step in gap.steps], labels)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(f"{gap.student}, by its tutor")
    axes.set_xlabel("tutor and its parameters", color=MUTED)
    axes.set_ylabel("test accuracy, %")
    axes.spines["bottom"].set_color(FAINT)
    clean(axes, grid="y")


def rows(gap: Gap) -> list[dict[str, str]]:
    """The table of a gap as text, a line per tutor."""
    return [
        {
            "tutor": step.tutor.name,
            "parameters": f"{step.tutor.parameters:,}",
            "own": f"{100 * step.tutor.mean():.1f}",
            **_columns(gap, "alone", step.alone),
            **_columns(gap, "both", step.both),
        }
        for step in gap.steps
    ]


def _columns(gap: Gap, name: str, cell: Cell | None) -> dict[str, str]:
    if cell is None:
        return {name: "", f"{name}_spread": "", f"{name}_points": ""}
    values = [100 * value for value in cell.headline.values()]
    mean, deviation = metrics.spread(values)
    contrast = gap.contrast(cell)
    return {
        name: f"{mean:.1f}",
        f"{name}_spread": f"{deviation:.1f}" if len(values) > 1 else "",
        f"{name}_points": contrast.points if contrast else "",
    }
