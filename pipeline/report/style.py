"""How the figures look: one palette that colour-blind readers can tell apart, one shape per meaning, quiet axes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.methods import FIXED, HARD, REPLAYED, SOFT

INK, MUTED, FAINT, GRID = "#1f2933", "#5b6770", "#a9b4bd", "#e3e8ec"
ON_FILL = "#fefefe"
"""Text on a filled cell: the same in both themes, as the fill is."""
# Okabe and Ito's palette; shape says the same as colour, for print and for every kind of sight.
COLOURS = {HARD: "#c44e00", SOFT: "#0072b2", FIXED: "#b8860b", REPLAYED: "#00805c"}
MARKERS = {HARD: "s", SOFT: "o", FIXED: "D", REPLAYED: "^"}
SERIES = ("#0072b2", "#c44e00", "#00805c", "#a2568b", "#b8860b", "#3a9bd1", "#4d4d4d", "#7a5230")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">")

SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "svg.hashsalt": "softlabels",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Drawing:
    """A finished figure: its file name, the two renderings, and what a reader who cannot see it is told."""

    name: str
    svg: bytes
    png: bytes
    alternative: str
    inches: float


def new_figure(width: float, height: float) -> Figure:
    """A figure of ``width`` by ``height`` inches that belongs to no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.06, h_pad=0.08, wspace=0.02, hspace=0.04)
    return figure


def style() -> Any:
    """A context in which figures are made and saved alike."""
    return matplotlib.rc_context(SETTINGS)


def finish(name: str, figure: Figure, alternative: str) -> Drawing:
    """Render as SVG for the page and as PNG for slides. The same figure gives the same bytes."""
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")  # laid out by the first save; doing it again would take as long as all else
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Drawing(name, svg.getvalue(), png.getvalue(), alternative, float(figure.get_figwidth()))


def clean(axes: Axes, *, grid: str = "both") -> None:
    """No tick marks, a faint grid behind the data."""
    axes.tick_params(length=0)
    axes.grid(True, axis=grid)  # type: ignore[arg-type]
