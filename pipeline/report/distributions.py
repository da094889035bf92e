"""The figures of a cache's card: how entropy and largest probability are spread, by split and temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from pipeline.caches.describing import RANDOM, Sureness
from pipeline.report.style import MUTED, SERIES, Drawing, clean, finish, new_figure, style

POINTS = 400
"""A line is drawn through so many of its values at most."""


def entropy_figure(found: Sequence[Sureness], classes: int) -> Drawing:
    """How the entropy in nats is spread, from 0 to that of the uniform distribution or to the largest there is."""
    most = math.log(classes) if classes > 1 else 1.0
    largest = max(float(one.entropies.max()) for one in found)
    high = most if largest > 0.4 * most else max(1.1 * largest, 0.01 * most)
    words = "entropy of the teacher's distribution, nats"
    limit = (most, f"uniform over {classes:,} classes, {most:.2f}") if high == most else None
    values = [one.entropies for one in found]
    return _figure("entropy", found, values, (0.0, high), words, limit)


def confidence_figure(found: Sequence[Sureness], classes: int) -> Drawing:
    """How the largest probability is spread, from that of the uniform distribution to 1."""
    least = 1 / classes
    limit = (least, f"uniform over {classes:,} classes, {least:.2g}") if classes > 1 else None
    values = [one.confidences for one in found]
    return _figure("confidence", found, values, (least if classes > 1 else 0.0, 1.0), "largest probability", limit)


def _figure(
    name: str,
    found: Sequence[Sureness],
    values: Sequence[npt.NDArray[np.float32]],
    span: tuple[float, float],
    words: str,
    limit: tuple[float, str] | None,
) -> Drawing:
    """A panel for each temperature, a line for each kind of views of each split."""
    temperatures = sorted({one.temperature for one in found})
    splits = list(dict.fromkeys(one.split for one in found))
    with style():
        figure = new_figure(4.4 * len(temperatures) + 0.6, 3.6)
        panels = figure.subplots(1, len(temperatures), sharey=True, squeeze=False)[0]
        for axes, temperature in zip(panels, temperatures, strict=True):
            for one, numbers in zip(found, values, strict=True):
                if one.temperature == temperature:
                    _line(axes, one, numbers, SERIES[splits.index(one.split) % len(SERIES)])
            _finish_panel(axes, f"T = {temperature:g}", words, span, limit)
        panels[0].set_ylabel("share of distributions up to it, %")
        panels[0].set_ylim(-2, 102)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(2 * len(panels), len(labels)), columnspacing=1.6
        )
        return finish(
            name, figure, f"Share of distributions up to each {words}, by split, at T = {_listed(temperatures)}."
        )


def _line(axes: Axes, one: Sureness, numbers: npt.NDArray[np.float32], colour: str) -> None:
    """The share of distributions up to each value: no bins, so that small splits are as smooth as they are."""
    ordered = np.sort(numbers)
    at = np.unique(np.linspace(0, len(ordered) - 1, min(POINTS, len(ordered))).astype(np.int64))
    dashed = one.views == RANDOM
    axes.plot(
        np.concatenate([ordered[:1], ordered[at]]),
        100 * np.concatenate([[0.0], (at + 1) / len(ordered)]),
        color=colour,
        linewidth=1.8,
        linestyle=(0, (3, 1.5)) if dashed else "-",
        drawstyle="steps-post" if len(ordered) <= POINTS else "default",
        label=f"{one.split}, random views" if dashed else one.split,
    )


def _finish_panel(
    axes: Axes, title: str, words: str, span: tuple[float, float], limit: tuple[float, str] | None
) -> None:
    axes.set_title(title)
    axes.set_xlabel(words if limit is None else f"{words}\n(dotted: {limit[1]})")
    room = 0.02 * (span[1] - span[0])
    axes.set_xlim(span[0] - room, span[1] + room)
    if limit is not None:
        axes.axvline(limit[0], color=MUTED, linewidth=1.2, linestyle=":")
    clean(axes)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
