"""The figure of a search over recipes: every point that was tried, and the front that no other point beats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from pipeline.report.series import milliseconds
from pipeline.report.style import COLOURS, FAINT, INK, MUTED, SERIES, Drawing, clean, finish, new_figure, style

Row = Mapping[str, Any]
_LANDMARKS = (("teacher", "teacher", "*", SERIES[3]), ("baseline", "student before compression", "s", COLOURS["hard"]))


def front(compressed: Row) -> Drawing | None:
    """Accuracy against bytes and, where it was timed, latency. None without the points of a search."""
    points = list(compressed.get("front") or ())
    panels: list[tuple[str, Callable[[Row], float | None]]] = [("size of the file, kB", _kilobytes)]
    if any(milliseconds(point) is not None for point in points):
        panels.append(("latency, ms (median)", milliseconds))
    if not any(point.get("bytes") for point in points):
        return None
    # A search chooses by validation: what nothing beats there is the front, whatever it does on test.
    figure_of = "validation_accuracy" if all("validation_accuracy" in point for point in points) else "accuracy"
    rows = {row["name"]: row for row in compressed.get("rows", []) if row.get("accuracy") is not None}
    with style():
        figure = new_figure(5.4 * len(panels), 4.2)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (label, cost) in zip(grid, panels, strict=True):
            drawn = [(cost(p), 100 * float(p[figure_of]), p) for p in points]
            marks = [
                (cost(rows[n]), 100 * float(rows[n][figure_of]), *how)
                for n, *how in _LANDMARKS
                if n in rows and rows[n].get(figure_of) is not None
            ]
            _panel(axes, [d for d in drawn if d[0] is not None], [m for m in marks if m[0] is not None])
            axes.set_xlabel(label)
        grid[0].set_ylabel("accuracy on validation, %" if figure_of != "accuracy" else "accuracy, %")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, columnspacing=1.6, handletextpad=0.4)
        return finish(
            "front", figure, "Accuracy of every point of the search against its size and latency, with the front."
        )


def _kilobytes(row: Row) -> float | None:
    return row["bytes"] / 1e3 if row.get("bytes") else None


def _panel(axes: Axes, drawn: Sequence[tuple[Any, ...]], marks: Sequence[tuple[Any, ...]]) -> None:
    ahead = sorted((cost, accuracy) for cost, accuracy, point in drawn if point.get("on_front"))
    behind = [(cost, accuracy) for cost, accuracy, point in drawn if not point.get("on_front")]
    axes.set_xscale("log")
    axes.plot(*_columns(behind), "o", ms=5, mfc="white", mec=MUTED, mew=1.1, zorder=2, label="tried")
    axes.plot(*_columns(ahead), "o-", ms=7, color=COLOURS["soft"], lw=1.6, zorder=3, label="on the front")
    for cost, accuracy, label, marker, colour in marks:
        axes.plot(
            [cost], [accuracy], marker, ms=11 if marker == "*" else 8, color=colour, ls="none", label=label, zorder=4
        )
    numbers = {id(point): number for number, (*_, point) in enumerate(drawn, start=1)}
    for cost, accuracy, point in drawn:
        if point.get("on_front"):
            axes.annotate(str(point.get("name") or numbers[id(point)]), (cost, accuracy), xytext=(4, -11),
                          textcoords="offset points", fontsize=7.5, color=INK)  # fmt: skip
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.12)
    axes.spines["bottom"].set_color(FAINT)
    clean(axes)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
