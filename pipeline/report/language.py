"""Language models in a table: how well each seed predicts, how sure it is, how often the teacher takes its drafts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pipeline import metrics
from pipeline.report.artefacts import Row, is_language
from pipeline.report.methods import method_of
from pipeline.report.reading import Cell, Findings
from pipeline.report.style import INK, MUTED, SERIES, SHAPES, Drawing, clean, finish, new_figure, style
from pipeline.report.tables import Entry, Head, Table, number, table

Measured = Mapping[str, Any]
MOST = 14
"""Of more models the first are drawn; the table has all."""


@dataclass(frozen=True)
class Panel:
    """A figure of each seed: its ``key`` there, what stands under the axis, and as what a mean is printed."""

    key: str
    label: str
    scale: float
    digits: int


PANELS = (
    Panel("perplexity", "perplexity (less is better)", 1.0, 1),
    Panel("ece", "ECE, points (less is better)", 100.0, 1),
    Panel("acceptance", "accepted by the teacher, %", 100.0, 1),
)


def seeds_of(measured: Measured, name: str) -> Mapping[str, Mapping[str, Any]]:
    """The figures of each seed of a model, by seed; empty where they were not kept."""
    return ((measured.get("models") or {}).get(name) or {}).get("seeds") or {}


def teacher_of(measured: Measured) -> Mapping[str, Any]:
    """What the teacher itself made of the split, of language models; empty where it was not asked."""
    for details in (measured.get("models") or {}).values():
        if (details.get("teacher") or {}).get("perplexity") is not None:
            return dict(details["teacher"])
    return {}


def drawn(measured: Measured) -> list[Row]:
    """The rows of the figure: those of which figures of seeds are kept."""
    rows = measured.get("rows") or []
    return [row for row in rows if is_language([row]) and seeds_of(measured, str(row["name"]))][:MOST]


def values(measured: Measured, name: str, panel: Panel) -> list[float]:
    """The figure of each seed of a model that has it, scaled."""
    found = [seed.get(panel.key) for seed in seeds_of(measured, name).values()]
    return [panel.scale * float(value) for value in found if value is not None]


def panels_of(measured: Measured) -> list[Panel]:
    """The panels that some model has a figure for."""
    return [panel for panel in PANELS if any(values(measured, str(row["name"]), panel) for row in drawn(measured))]


def predicting(measured: Measured) -> Drawing | None:
    """A line per model, a panel per figure: every seed, the mean and its 95% interval. None without language models."""
    rows, panels = drawn(measured), panels_of(measured)
    if not rows:
        return None
    teacher, shown = teacher_of(measured), looks(measured)
    with style():
        figure = new_figure(10.6, 0.42 * len(rows) + 1.3)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(grid, panels, strict=True):
            _panel(axes, measured, shown, panel, teacher.get(panel.key) if panel.key == "perplexity" else None)
        grid[0].set_yticks(range(len(rows)), [str(row["name"]) for row in rows])
        grid[0].tick_params(axis="y", labelcolor=INK)
        grid[0].set_ylim(len(rows) - 0.4, -0.75)
        return finish("predicting", figure, "Perplexity, calibration error and acceptance of every model, by seed.")


def _panel(
    axes: Axes, measured: Measured, shown: Mapping[str, tuple[str, str]], panel: Panel, teacher: float | None
) -> None:
    for place, (name, (colour, shape)) in enumerate(shown.items()):
        found = values(measured, name, panel)
        if not found:
            continue
        mean, reach = float(np.mean(found)), metrics.half_width(found)
        if not math.isnan(reach):
            ends = [max(0.0, mean - reach), mean + reach]
            axes.plot(ends, [place] * 2, color=colour, lw=2.2, alpha=0.45, solid_capstyle="round")
        axes.plot(found, [place] * len(found), "o", ms=3.6, mfc="white", mec=colour, mew=1.0, zorder=3)
        axes.plot(mean, place, shape, ms=7.5, color=colour, mec="white", mew=0.8, zorder=4)
        axes.annotate(
            f"{mean:,.{panel.digits}f}", (1.015, place), xycoords=("axes fraction", "data"),
            va="center", fontsize=9, color=INK,
        )  # fmt: skip
    if teacher is not None:
        axes.axvline(panel.scale * teacher, color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
        axes.annotate("teacher", (panel.scale * teacher, 1.0), xycoords=("data", "axes fraction"), ha="left",
                      va="bottom", fontsize=8, color=MUTED, xytext=(-2, 1), textcoords="offset points")  # fmt: skip
    axes.margins(x=0.09)
    axes.set_xlabel(panel.label)
    clean(axes, grid="x")
    axes.spines["left"].set_visible(False)


def predicting_table(measured: Measured) -> Table | None:
    """What the figure shows."""
    panels = panels_of(measured)

    def row(one: Row) -> list[Entry]:
        cells = [Entry(str(one["name"]), strong=True)]
        for panel in panels:
            found = values(measured, str(one["name"]), panel)
            cells += [
                Entry(", ".join(f"{value:,.{panel.digits}f}" for value in found)),
                number(float(np.mean(found)) if found else math.nan, panel.digits, strong=True),
                number(metrics.half_width(found) if found else math.nan, panel.digits),
            ]
        return cells

    titles = {"perplexity": "Perplexity", "ece": "ECE, points", "acceptance": "Accepted, %"}
    heads: list[Head | str] = ["Model"]
    for panel in panels:
        title = titles[panel.key]
        heads += [Head(f"{title}, each seed", left=True, wrap=True), Head(f"{title}, mean"), Head("±")]
    return table(
        "Figures of every seed, with means and half their 95% intervals", heads, [row(one) for one in drawn(measured)]
    )


def looks(measured: Measured) -> dict[str, tuple[str, str]]:
    """Colour and shape of each model, by name."""
    rows = drawn(measured)
    return {str(row["name"]): (SERIES[n % len(SERIES)], SHAPES[n % len(SHAPES)]) for n, row in enumerate(rows)}


def as_cells(findings: Findings, most: int = 5) -> tuple[Cell, ...]:
    """The first models of a table of language models as the figure of calibration takes them: called by their names.

    Trained runs come before files.
    """
    measured, found = findings.models, []
    for row in sorted(drawn(measured), key=lambda one: not measured["models"][str(one["name"])].get("config")):
        details = measured["models"][str(row["name"])]
        if not details.get("reliability") or row.get("control"):
            continue
        flat = {"ece": row["ece"]} if row.get("ece") is not None else {}
        if (scaled := (row.get("calibrated") or {}).get("ece")) is not None:
            flat["calibrated_ece"] = scaled
        kind = method_of(details.get("config") or {})
        name = str(row["name"])
        found.append(Cell(name, str(details.get("student") or name), kind, flat, details, called=name))
    return tuple(found[:most])
