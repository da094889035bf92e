"""The figure of a search over recipes: every point that was tried, and the front that no other point beats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from pipeline.report.artefacts import BASELINE, TEACHER
from pipeline.report.charts import draw_front, legend_below, logarithmic, mark
from pipeline.report.search_gains import figure_of
from pipeline.report.series import milliseconds
from pipeline.report.style import COLOURS, INK, MUTED, Drawing, clean, finish, new_figure, style

Row = Mapping[str, Any]
Cost = Callable[[Row], float | None]
_LANDMARKS = ((TEACHER, "teacher", "*", INK), (BASELINE, "student before compression", "p", COLOURS["hard"]))


def front(compressed: Row) -> Drawing | None:
    """Accuracy against bytes and, where it was timed, latency. None without the points of a search.

    The line of a panel is the front of what it shows; what is named is on the front of accuracy, size and latency.
    """
    points = [point for point in compressed.get("front") or () if point.get("bytes")]
    if not points:
        return None
    panels: list[tuple[str, Cost]] = [("size of the file, kB", _kilobytes)]
    if any(milliseconds(point) is not None for point in points):
        panels.append(("latency, ms (median)", milliseconds))
    key = figure_of(compressed)
    rows = {row["name"]: row for row in compressed.get("rows", []) if row.get(key) is not None}
    marks = [(rows[name], *how) for name, *how in _LANDMARKS if name in rows]
    with style():
        figure = new_figure(5.4 * len(panels), 4.6)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (label, cost) in zip(grid, panels, strict=True):
            _panel(axes, points, marks, cost, key)
            axes.set_xlabel(label)
        grid[0].set_ylabel("accuracy on validation, %" if key != "accuracy" else "accuracy, %")
        legend_below(figure, grid[0])
        return finish(
            "front", figure, "Accuracy of every point of the search against its size and latency, with the front."
        )


def _kilobytes(row: Row) -> float | None:
    return row["bytes"] / 1e3 if row.get("bytes") else None


def _panel(axes: Axes, points: Sequence[Row], marks: Sequence[tuple[Any, ...]], cost: Cost, key: str) -> None:
    names = {str(row["name"]) for row, *_ in marks}
    placed = [(x, 100 * float(p[key]), p) for p in points if (x := cost(p)) is not None]
    if not placed:
        return
    draw_front(axes, [(x, y) for x, y, _ in placed])
    tried = [(x, y) for x, y, p in placed if not p.get("on_front") and str(p["name"]) not in names]
    if tried:
        axes.plot(*zip(*tried, strict=True), "o", ms=5, mfc="white", mec=MUTED, mew=1.1, zorder=2, label="tried")
    chosen = [one for one in placed if one[2].get("on_front")]
    for number, (x, y, point) in enumerate(chosen):
        mark(axes, number, x, y, label=str(point["name"]))
    axes.margins(y=0.08)
    held = [(x, 100 * float(row[key]), *how) for row, *how in marks if (x := cost(row)) is not None]
    for x, y, label, marker, colour in held:
        axes.plot(
            x,
            y,
            marker,
            ms=15 if marker == "*" else 11,
            color=colour,
            mec="white",
            mew=0.8,
            ls="none",
            label=label,
            zorder=4,
        )
    logarithmic(axes, [x for x, *_ in (*placed, *held)])
    clean(axes)
