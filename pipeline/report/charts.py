"""The figures about what things cost: size and latency against accuracy, and teacher time once against every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from pipeline.report.artefacts import TEACHER, Row, baseline_of
from pipeline.report.style import COLOURS, FAINT, INK, MUTED, SERIES, SHAPES, Drawing, clean, finish, new_figure, style


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, accuracy) that no other beats: as cheap and better, or as good and cheaper.

    >>> pareto_front([(1.0, 0.9), (2.0, 0.8), (3.0, 0.95), (3.0, 0.94)])
    [0, 2]
    """
    front: list[int] = []
    best = float("-inf")
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front


def timed_rows(compressed: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows of the table of compression that have a file, an accuracy and a latency."""
    return [
        r for r in compressed.get("rows", []) if r.get("bytes") and r.get("latency") and r.get("accuracy") is not None
    ]


MOST = 14
"""Of more artefacts only those on a front, the teacher and the baseline are told apart; the others are grey."""


def pareto(compressed: Mapping[str, Any], name: str = "pareto") -> Drawing | None:
    """Accuracy, or bits per byte, against bytes and against milliseconds, each with its Pareto front."""
    rows = timed_rows(compressed)
    if not rows:
        return None
    height = _height(rows)
    sizes = sorted(rows[0]["latency"], key=int)
    panels = [("size of the file, kB", [r["bytes"] / 1e3 for r in rows])]
    panels += [
        (f"latency at batch {size}, ms (median)", [r["latency"][size]["p50"] for r in rows]) for size in sizes[:2]
    ]
    told = _told(compressed, rows, height, [costs for _, costs in panels])
    with style():
        figure = new_figure(10.6, 4.0)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (label, costs) in zip(grid, panels, strict=True):
            _pareto_panel(axes, rows, height, costs, told)
            axes.set_xlabel(label)
        grid[0].set_ylabel(height.label)
        legend_below(figure, grid[0])
        what = f"{height.title} against file size and latency, with the Pareto front."
        return finish(name, figure, what)


@dataclass(frozen=True)
class Height:
    """What stands upwards: the ``key`` of a row, times ``scale``; ``lower``: less is better."""

    key: str
    title: str
    label: str
    scale: float = 1.0
    lower: bool = False

    def of(self, row: Row) -> float:
        """As it is drawn."""
        return self.scale * float(row[self.key])


_HEIGHTS = (
    Height("bits_per_byte", "Bits per byte", "bits per byte", lower=True),
    Height("perplexity", "Perplexity", "perplexity", lower=True),
    Height("accuracy", "Test accuracy", "test accuracy, %", 100.0),
)


def _height(rows: Sequence[Row]) -> Height:
    """The first that all rows have; all have an accuracy."""
    return next(height for height in _HEIGHTS if all(row.get(height.key) is not None for row in rows))


def _told(
    compressed: Mapping[str, Any], rows: Sequence[Row], height: Height, costs: Sequence[Sequence[float]]
) -> list[int]:
    """Indices of the rows that are told apart."""
    if len(rows) <= MOST:
        return list(range(len(rows)))
    landmarks = (TEACHER, baseline_of(compressed))
    found = {i for i, row in enumerate(rows) if row["name"] in landmarks}
    for cost in costs:
        sign = -1 if height.lower else 1
        found |= set(pareto_front([(c, sign * height.of(row)) for c, row in zip(cost, rows, strict=True)]))
    return sorted(found)


def _pareto_panel(axes: Axes, rows: Sequence[Row], height: Height, costs: Sequence[float], told: Sequence[int]) -> None:
    points = [(cost, height.of(row)) for cost, row in zip(costs, rows, strict=True)]
    draw_front(axes, points, lower=height.lower)
    others = [points[i] for i in range(len(rows)) if i not in told]
    if others:
        axes.plot(*zip(*others, strict=True), "o", ms=5, mfc="white", mec=MUTED, mew=1.1, zorder=2, label="others")
    for number, i in enumerate(told):
        mark(axes, number, *points[i], label=rows[i]["name"], hollow=bool(rows[i].get("control")))
    logarithmic(axes, costs)
    heights = [y for _, y in points]
    gap = max(heights) - min(heights)
    if height.lower:
        room = max(0.02 * max(heights), 0.15 * gap)
        axes.set_ylim(max(0.0, min(heights) - room), max(heights) + room)
    else:
        room = max(0.4, 0.15 * gap)
        axes.set_ylim(min(heights) - room, min(max(heights) + room, 100.6))
    clean(axes)


def draw_front(axes: Axes, points: Sequence[tuple[float, float]], *, lower: bool = False) -> None:
    """The shaded line of what nothing cheaper beats, through (cost, accuracy); ``lower``: where less is better."""
    front = pareto_front([(cost, -y if lower else y) for cost, y in points])
    most = 10 * max(cost for cost, _ in points)
    axes.step([points[i][0] for i in front] + [most], [points[i][1] for i in front] + [points[front[-1]][1]],
              where="post", color=FAINT, lw=7, alpha=0.4, solid_capstyle="round", zorder=1, label="_front")  # fmt: skip


def mark(axes: Axes, number: int, x: float, y: float, *, label: str, hollow: bool = False) -> None:
    """One of several points, in a colour and a shape of its own."""
    colour = SERIES[number % len(SERIES)]
    axes.plot(x, y, SHAPES[number % len(SHAPES)], ms=8, mec=colour, mew=1.6, ls="none", zorder=3,
              mfc="white" if hollow else colour, label=label)  # fmt: skip


def logarithmic(axes: Axes, costs: Sequence[float]) -> None:
    """A logarithmic axis of costs, with as many numbers as there is room for."""
    axes.set_xscale("log")
    low, high = min(costs), max(costs)
    axes.set_xlim(low / 1.6, high * 1.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    if high / low < 30:
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:g}" if f"{v:e}"[0] in "25" else ""))
    else:
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", labelsize=8, length=0)


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for all panels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 5), columnspacing=1.6, handletextpad=0.3
    )


def costs(entries: Sequence[tuple[str, float, bool]]) -> Drawing | None:
    """Bars of seconds: (what, seconds, measured). Computed ones are hatched."""
    if not entries:
        return None
    with style():
        figure = new_figure(8.2, 0.42 * len(entries) + 0.75)
        axes = figure.subplots()
        most = max(seconds for _, seconds, _ in entries)
        for y, (_, seconds, measured) in enumerate(entries):
            fill, hatch = (COLOURS["soft"], None) if measured else ("white", "////")
            axes.barh(y, seconds, height=0.56, color=fill, edgecolor=COLOURS["soft"], hatch=hatch, linewidth=1.0)
            note = f"{seconds:,.1f} s" if seconds < 100 else f"{seconds:,.0f} s"
            note += "" if measured else " (computed)"
            axes.annotate(
                note, (seconds, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9, color=INK
            )
        axes.set_yticks(range(len(entries)), [what for what, _, _ in entries])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, most * 1.28)
        axes.set_xlabel("seconds")
        axes.spines["left"].set_color(MUTED)
        clean(axes, grid="x")
        return finish("costs", figure, "Seconds spent by the teacher and by the students.")
