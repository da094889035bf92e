"""Ways of training that differ in their loss alone: a table, a figure and a sentence for each student.

What they are compared with is plain KL of the same student on the same labels, paired by seed and by test example.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pipeline import metrics
from pipeline.report.methods import FIXED, HARD, KIND_NOUNS, KL, OMITTED, REPLAYED, SOFT
from pipeline.report.reading import Cell, Findings, compare
from pipeline.report.style import COLOURS, INK, MUTED, Drawing, clean, finish, new_figure, style
from pipeline.report.words import Contrast

REFERENCE = "reference"
JUDGED = {"higher": "better", "lower": "worse", "within noise": "within noise"}
_LOOKS = {
    REFERENCE: ("D", COLOURS[SOFT]),
    "better": ("^", COLOURS[REPLAYED]),
    "worse": ("v", COLOURS[HARD]),
    "within noise": ("o", MUTED),
    "": ("o", MUTED),
}


@dataclass(frozen=True)
class Line:
    """One way of training among its family; ``contrast`` is with the reference, None for itself and without one."""

    cell: Cell
    name: str
    contrast: Contrast | None
    reference: bool

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``within noise``, ``reference``, or nothing where there is none."""
        if self.contrast is None:
            return REFERENCE if self.reference else ""
        return JUDGED[self.contrast.verdict]

    @cached_property
    def values(self) -> list[float]:
        """What the setting is about, a percentage per seed."""
        return [100 * value for value in self.cell.headline.values()]

    @property
    def deviation(self) -> float:
        """Sample standard deviation over seeds, in points; NaN for a single one."""
        return metrics.spread(self.values)[1] if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Family:
    """The ways of training of one student in one setting, the best first."""

    student: str
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        return f"{self.student}: {self.lines[0].cell.method.setting_title}"

    @cached_property
    def reference(self) -> Line | None:
        return next((line for line in self.lines if line.reference), None)

    def judged(self, verdict: str) -> list[Line]:
        """Lines with one verdict, in order."""
        return [line for line in self.lines if line.verdict == verdict]


def families(findings: Findings) -> list[Family]:
    """Every student and setting with several losses; none in most reports."""
    return [_family(cells) for cells in findings.families]


def _family(cells: Sequence[Cell]) -> Family:
    plain = {cell.method.kind: cell for cell in reversed(cells) if cell.method.loss_title == KL}
    reference = next((plain[kind] for kind in (REPLAYED, SOFT, FIXED) if kind in plain), None)
    names = _names(cells)
    lines = [
        Line(
            cell,
            names[cell.name],
            None if reference is None or cell is reference else Contrast(cell, reference, compare(cell, reference)),
            cell is reference,
        )
        for cell in cells
    ]
    lines.sort(key=lambda line: (-line.cell.mean(), line.name))
    return Family(cells[0].student, tuple(lines))


def _names(cells: Sequence[Cell]) -> dict[str, str]:
    """What each cell is called: its loss; with its labels, temperature and own name, where that is not enough."""
    names = {cell.name: cell.method.loss_title for cell in cells}
    for more in (_of_labels, _of_temperature, lambda cell: f" ({cell.name})"):
        twins: dict[str, list[Cell]] = {}
        for cell in cells:
            twins.setdefault(names[cell.name], []).append(cell)
        for same in twins.values():
            if len({more(cell) for cell in same}) > 1:
                names.update({cell.name: names[cell.name] + more(cell) for cell in same})
    return names


def _of_labels(cell: Cell) -> str:
    return f" on {KIND_NOUNS[cell.method.kind]}"


def _of_temperature(cell: Cell) -> str:
    temperature = (cell.details.get("config") or {}).get("temperature")
    return "" if temperature is None else f" at T = {float(temperature):g}"


def expected_by_chance(found: Sequence[Family]) -> str:
    """How many comparisons there are, and how many of them chance alone calls different."""
    count = sum(line.contrast is not None for family in found for line in family.lines)
    return f"{count} comparisons at 95%: chance alone would call about {count / 20:.1f} of them different."


def summary(findings: Findings) -> list[tuple[str, str]]:
    """(lead, sentence) for each family that has a reference."""
    return [(f"Losses, {f.student}", _sentence(f)) for f in families(findings) if f.reference]


def _sentence(family: Family) -> str:
    parts = []
    for verdict in ("better", "worse"):
        members = [f"{line.name} ({line.contrast.points})" for line in family.judged(verdict) if line.contrast]
        parts.append(f"{verdict.capitalize()}: {'; '.join(members) or 'none'}.")
    noise = len(family.judged("within noise"))
    reference = family.reference.name if family.reference else ""
    return f"Against {reference}, points of accuracy. {' '.join(parts)} Within noise: {noise or 'none'}."


def figure(findings: Findings) -> Drawing | None:
    """A panel per family: every seed, the mean and its 95% interval, sorted, in the colour of the verdict."""
    found = families(findings)
    if not found:
        return None
    heights = [len(family.lines) for family in found]
    with style():
        drawn = new_figure(8.6, sum(0.26 * n + 0.85 for n in heights) + 0.3)
        grid = drawn.subplots(len(found), 1, squeeze=False, height_ratios=[n + 1.5 for n in heights])[:, 0]
        for axes, family in zip(grid, found, strict=True):
            _panel(axes, family)
        seen = [v for v in _LOOKS if v and any(f.judged(v) for f in found)]
        handles = [Line2D([], [], ls="none", marker=_LOOKS[v][0], color=_LOOKS[v][1], ms=7, label=v) for v in seen]
        if handles:
            drawn.legend(handles=handles, loc="outside lower center", ncols=4, handletextpad=0.2)
        return finish("losses", drawn, "Accuracy of every loss, sorted, a point per seed, with means and intervals.")


def _panel(axes: Axes, family: Family) -> None:
    for y, line in enumerate(family.lines):
        marker, colour = _LOOKS[line.verdict]
        mean, reach = float(np.mean(line.values)), metrics.half_width(line.values)
        if not math.isnan(reach):
            axes.plot([mean - reach, mean + reach], [y, y], color=colour, lw=2.2, alpha=0.45, solid_capstyle="round")
        axes.plot(line.values, [y] * len(line.values), "o", ms=3.6, mfc="white", mec=colour, mew=1.0, zorder=3)
        axes.plot(mean, y, marker, ms=7.5, color=colour, mec="white", mew=0.8, zorder=4)
        axes.annotate(f"{mean:.1f}", (1.015, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK)
    if family.reference:
        mean = float(np.mean(family.reference.values))
        axes.axvline(mean, color=COLOURS[SOFT], lw=1, ls=(0, (4, 3)), zorder=1)
    axes.set_yticks(range(len(family.lines)), [line.name for line in family.lines])
    axes.set_ylim(len(family.lines) - 0.4, -0.6)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -3), min(max(high, low + 2), 100.8))
    axes.set_title(family.title)
    first = family.lines[0].cell
    omitted = first.method.setting == OMITTED and bool(first.omitted)
    axes.set_xlabel(f"accuracy on “{first.method.detail}”, %" if omitted else "test accuracy, %")
    clean(axes, grid="x")
    axes.spines["left"].set_visible(False)
