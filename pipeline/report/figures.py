"""The figures about students: accuracy with its spread, calibration, confusions, training curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline import metrics
from pipeline.report import language
from pipeline.report.methods import AUGMENTED, KIND_TITLES, OMITTED, PLAIN, SETTINGS, SOFT
from pipeline.report.reading import Cell, Findings
from pipeline.report.style import (
    COLOURS,
    FAINT,
    INK,
    MARKERS,
    MUTED,
    ON_FILL,
    Drawing,
    clean,
    finish,
    new_figure,
    style,
)

MOST_CLASSES = 25
"""A confusion matrix with more classes is drawn without numbers."""


def accuracy(findings: Findings) -> Drawing | None:
    """One panel per setting, one line per student and kind of labels: every seed, the mean and its 95% interval."""
    panels = [(setting, findings.of(setting)) for setting in SETTINGS if findings.of(setting)]
    if not panels:
        return None
    rows = math.ceil(len(panels) / 2)
    tallest = [max(len(cells) for _, cells in panels[2 * r : 2 * r + 2]) for r in range(rows)]
    with style():
        figure = new_figure(10.6, sum(0.36 * n + 1.25 for n in tallest))
        grid = figure.subplots(rows, min(len(panels), 2), squeeze=False, height_ratios=[n + 2 for n in tallest])
        for axes, (setting, cells) in zip(grid.flat, panels, strict=False):
            _accuracy_panel(axes, setting, cells, findings)
        for row in grid:
            lowest = max(axes.get_ylim()[0] for axes in row)  # the same distance between lines in both panels
            for axes in row:
                axes.set_ylim(lowest, -0.75)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        return finish("accuracy", figure, "Accuracy of every student by setting and kind of labels, a point per seed.")


def _accuracy_panel(axes: Axes, setting: str, cells: Sequence[Cell], findings: Findings) -> None:
    positions, labels, heads = [], [], []
    y = 0.0
    for number, cell in enumerate(cells):
        if number == 0 or cell.student != cells[number - 1].student:
            y += 0.55 if number else 0.0
            heads.append((y, cell.student))
        positions.append(y)
        labels.append(cell.method.title)
        y += 1.0
    for position, cell in zip(positions, cells, strict=True):
        colour, marker = COLOURS[cell.method.kind], MARKERS[cell.method.kind]
        values = [100 * v for v in cell.headline.values()]
        mean = float(np.mean(values))
        reach = metrics.half_width(values)
        if not math.isnan(reach):
            axes.plot(
                [mean - reach, mean + reach], [position] * 2, color=colour, lw=2.2, alpha=0.45, solid_capstyle="round"
            )
        axes.plot(values, [position] * len(values), "o", ms=3.6, mfc="white", mec=colour, mew=1.0, zorder=3)
        axes.plot(mean, position, marker, ms=7.5, color=colour, mec="white", mew=0.8, zorder=4)
        axes.annotate(
            f"{mean:.1f}", (1.015, position), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK
        )
    reference = _reference(setting, cells, findings)
    if reference is not None:
        axes.axvline(100 * reference, color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
        axes.annotate("teacher", (100 * reference, 1.0), xycoords=("data", "axes fraction"), ha="right", va="bottom",
                      fontsize=8, color=MUTED, xytext=(2, 1), textcoords="offset points")  # fmt: skip
    several = len({cell.student for cell in cells}) > 1
    axes.set_yticks(
        positions,
        [f"{_student_head(heads, p) if several else ''}{text}" for p, text in zip(positions, labels, strict=True)],
    )
    axes.set_ylim(y - 0.35, -0.75)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -3), min(max(high, low + 2), 100.8))
    axes.set_title(cells[0].method.setting_title, pad=16)
    axes.set_xlabel(
        f"accuracy on “{cells[0].method.detail}”, %" if setting == OMITTED and cells[0].omitted else "test accuracy, %"
    )
    clean(axes, grid="x")
    axes.spines["left"].set_visible(False)


def _student_head(heads: Sequence[tuple[float, str]], position: float) -> str:
    found = [name for start, name in heads if start == position]
    return f"{found[0]}   " if found else ""


def _reference(setting: str, cells: Sequence[Cell], findings: Findings) -> float | None:
    """The teacher's figure that belongs beside those of a panel."""
    if setting != OMITTED or not cells[0].omitted:
        return findings.teacher_accuracy
    teacher = cells[0].details.get("teacher") or {}
    value = teacher.get("omitted_class_accuracy")
    return None if value is None else float(value)


def calibrated_cells(findings: Findings) -> tuple[Cell, ...]:
    """What the reliability figure shows: the featured student with all hard labels, each kind of labels."""
    if not findings.cells:
        return language.as_cells(findings)
    chosen = (*findings.of(PLAIN, findings.featured), *findings.of(AUGMENTED, findings.featured))
    return chosen[:5] or (findings.best,)


def reliability(findings: Findings) -> Drawing | None:
    """Accuracy against confidence, with the number of examples in every bin below. None without evaluations."""
    cells = calibrated_cells(findings)
    if not cells:
        return None
    with style():
        figure = new_figure(10.6 if len(cells) > 2 else 3.4 * len(cells), 3.9)
        grid = figure.subplots(2, len(cells), squeeze=False, height_ratios=[3, 1], sharex=True)
        most = max(max(cell.details["reliability"]["counts"]) for cell in cells)
        looks = language.looks(findings.models)
        for column, cell in enumerate(cells):
            look = looks.get(cell.called) or (COLOURS[cell.method.kind], MARKERS[cell.method.kind])
            _reliability_panel(grid[0][column], grid[1][column], cell, most, look)
        grid[0][0].set_ylabel("accuracy, %")
        unit = "tokens" if findings.tokens else "examples"
        grid[1][0].set_ylabel(unit)
        return finish("reliability", figure, f"Accuracy against confidence in bins, with the number of {unit} per bin.")


def _reliability_panel(upper: Axes, lower: Axes, cell: Cell, most: int, look: tuple[str, str]) -> None:
    bins = cell.details["reliability"]
    count = len(bins["counts"])
    edges = 100 * np.arange(count) / count
    width = 100 / count
    colour, shape = look
    full = [b for b in range(count) if bins["counts"][b]]
    upper.plot([0, 100], [0, 100], color=FAINT, lw=1)
    for b in full:
        confidence, right = 100 * bins["confidence"][b], 100 * bins["accuracy"][b]
        upper.plot([confidence, confidence], [confidence, right], color=colour, lw=1.2, alpha=0.5)
    sizes = [18 + 70 * math.sqrt(bins["counts"][b] / most) for b in full]
    upper.scatter(
        [100 * bins["confidence"][b] for b in full], [100 * bins["accuracy"][b] for b in full],
        s=sizes, color=colour, marker=shape, edgecolor="white", linewidth=0.8, zorder=3,
    )  # fmt: skip
    upper.set(xlim=(0, 102), ylim=(-3, 104))
    errors = [cell.metrics[name] for name in ("ece", "calibrated_ece") if name in cell.metrics]
    before_and_after = " → ".join(f"{100 * error:.1f}" for error in errors)
    upper.set_title(f"{cell.label}\nECE {before_and_after} points", fontsize=9)
    lower.bar(edges + width / 2, bins["counts"], width=0.86 * width, color=colour, alpha=0.75)
    lower.set_yscale("symlog", linthresh=1)
    lower.set_ylim(0, most * 2)
    lower.set_yticks([t for t in (0, 1, 10, 100, 1000, 10_000, 100_000) if t <= most])
    lower.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    lower.yaxis.set_minor_locator(MaxNLocator(1))
    lower.set_xlabel("confidence, %")
    for axes in (upper, lower):
        clean(axes)


def confused_cells(findings: Findings) -> tuple[Cell, ...]:
    """What the confusion figure shows: the best cell, and the featured student without one class."""
    if not findings.cells:
        return ()
    omitted = [c for c in findings.of(OMITTED, findings.featured) if c is not findings.best]
    return tuple(cell for cell in (findings.best, *omitted[:2]) if cell.details.get("confusion"))


def confusion(findings: Findings) -> Drawing | None:
    """Confusion matrices over all seeds: rows are true classes, each coloured by its shares. None without any."""
    cells = confused_cells(findings)
    if not cells:
        return None
    with style():
        figure = new_figure(3.55 * len(cells) if len(cells) > 1 else 4.6, 4.4 if len(cells) > 1 else 5.2)
        grid = figure.subplots(1, len(cells), squeeze=False)[0]
        for axes, cell in zip(grid, cells, strict=True):
            _confusion_panel(axes, cell)
        grid[0].set_ylabel("true class")
        return finish("confusion", figure, "Confusion matrices: true classes in rows, predicted classes in columns.")


def _confusion_panel(axes: Axes, cell: Cell) -> None:
    counts = np.asarray(cell.details["confusion"], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    fill = np.empty((*shares.shape, 4))  # one blue, the stronger the larger the share: it suits a page in any theme
    fill[..., :3], fill[..., 3] = to_rgb(COLOURS[SOFT]), shares
    axes.imshow(fill)
    names = list(cell.details["class_names"])
    if len(names) <= MOST_CLASSES:
        for i, j in np.argwhere(counts > 0):
            axes.text(j, i, f"{counts[i, j]:.0f}", ha="center", va="center", fontsize=6.8 if len(names) <= 12 else 4.5,
                      color=ON_FILL if shares[i, j] > 0.55 else INK)  # fmt: skip
        axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 90)
        axes.set_yticks(range(len(names)), names)
    left_out = cell.details.get("omitted_class")
    if left_out in names:
        row = names.index(left_out)
        axes.add_patch(_frame(row, len(names)))
    axes.set_title(f"{cell.student}\n{cell.method.full_title}", fontsize=9)
    axes.set_xlabel("predicted class")
    axes.tick_params(length=0, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _frame(row: int, width: int) -> Rectangle:
    return Rectangle((-0.5, row - 0.5), width, 1, fill=False, ec=COLOURS["hard"], lw=1.4)


def curves(findings: Findings) -> Drawing | None:
    """Validation accuracy of the featured student by epoch: the mean over seeds, and from lowest to highest."""
    if not findings.cells:
        return None
    student = findings.featured
    panels = [(s, [c for c in findings.of(s, student) if _curve(c) is not None]) for s in SETTINGS]
    panels = [(setting, cells) for setting, cells in panels if cells]
    if not panels:
        return None
    with style():
        figure = new_figure(10.6 if len(panels) > 2 else 4.2 * len(panels), 2.9)
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (_, cells) in zip(grid, panels, strict=True):
            for cell in cells:
                lines = _curve(cell)
                if lines is None:
                    continue
                epochs, colour = np.arange(1, lines.shape[1] + 1), COLOURS[cell.method.kind]
                axes.fill_between(epochs, lines.min(axis=0), lines.max(axis=0), color=colour, alpha=0.16, lw=0)
                axes.plot(epochs, lines.mean(axis=0), color=colour, lw=1.6, label=KIND_TITLES[cell.method.kind],
                          ls="-" if cell.method.kind != SOFT else (0, (5, 1.5)))  # fmt: skip
            axes.set_title(cells[0].method.setting_title, fontsize=9.5)
            axes.set_ylim(_floor(cells), 100.6)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            clean(axes)
            axes.legend(loc="lower right", fontsize=8, handlelength=1.4)
        grid[0].set_ylabel("validation accuracy, %")
        return finish("curves", figure, f"Validation accuracy of {student} by epoch, for each kind of labels.")


def _floor(cells: Sequence[Cell]) -> float:
    """Where a panel starts: below everything after the first tenth of the epochs, to tell the ends apart."""
    lines = [line for line in map(_curve, cells) if line is not None]
    lowest = min(float(line[:, max(1, line.shape[1] // 10) :].min()) for line in lines)
    return max(0.0, lowest - 4)


def _curve(cell: Cell) -> np.ndarray | None:
    """Validation accuracy in per cent, (seeds, epochs), cut to the shortest seed; None when it was not recorded."""
    lines = [
        [100 * float(e["accuracy"]) for e in epochs if e.get("accuracy") is not None]
        for epochs in cell.histories.values()
    ]
    shortest = min((len(line) for line in lines), default=0)
    return np.array([line[:shortest] for line in lines]) if shortest > 1 else None
