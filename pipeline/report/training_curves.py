"""Training curves of runs that were not evaluated one by one: language models stand in one table of several."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import MaxNLocator

from pipeline.report import commands, language
from pipeline.report.reading import Findings
from pipeline.report.style import SERIES, Drawing, clean, finish, new_figure, style
from pipeline.report.tables import Entry, Head, Table, number, table

MOST = len(SERIES)
"""Of more runs the first are drawn; the series has all."""

_LARGEST = 700.0
"""Of a negative log-likelihood whose exponential is still a number."""


@dataclass(frozen=True)
class Curve:
    """What a run, at its ``place``, came to on validation: ``values`` (seeds, epochs), cut to the shortest seed."""

    name: str
    place: str
    values: npt.NDArray[np.float64]


def measure_of(findings: Findings) -> str:
    """What curves are of: perplexity, where the runs learnt from tokens, or accuracy, in per cent."""
    configs = [record.get("config") or {} for record in findings.runs.values()]
    of_tokens = findings.tokens or any(str(config.get("data", "")).startswith("tokens:") for config in configs)
    return "perplexity" if of_tokens else "accuracy"


def curves_of(findings: Findings) -> list[Curve]:
    """A curve for each run that recorded two epochs or more; none where evaluations tell of the runs."""
    if findings.cells:
        return []
    perplexity, found = measure_of(findings) == "perplexity", []
    for place, seeds in findings.histories.items():
        key = "nll" if perplexity else "accuracy"
        lines = [[float(epoch[key]) for epoch in epochs if epoch.get(key) is not None] for epochs in seeds.values()]
        shortest = min((len(line) for line in lines), default=0)
        if shortest > 1:
            values = np.array([line[:shortest] for line in lines])
            values = np.exp(np.minimum(values, _LARGEST)) if perplexity else 100 * values
            found.append(Curve(PurePath(place).name, place, values))
    return found


def rows(findings: Findings) -> Iterator[tuple[str, int, float, float, float]]:
    """Run, epoch, and the mean, lowest and highest over seeds."""
    for curve in curves_of(findings):
        for epoch, values in enumerate(curve.values.T, start=1):
            yield curve.name, epoch, float(values.mean()), float(values.min()), float(values.max())


def figure(findings: Findings) -> Drawing | None:
    """Every run's mean over seeds by epoch, and from lowest to highest; None without two recorded epochs."""
    found = curves_of(findings)[:MOST]
    if not found:
        return None
    measure = measure_of(findings)
    looks = language.looks(findings.models)
    # A run that is in the table of models looks there as it does here; the others take what is left.
    left = [colour for colour in SERIES if colour not in {looks[c.name][0] for c in found if c.name in looks}]
    with style():
        drawn = new_figure(7.4, 3.2)
        axes = drawn.subplots()
        for curve in found:
            colour = looks[curve.name][0] if curve.name in looks else left.pop(0) if left else SERIES[0]
            epochs = np.arange(1, curve.values.shape[1] + 1)
            axes.fill_between(
                epochs, curve.values.min(axis=0), curve.values.max(axis=0), color=colour, alpha=0.16, lw=0
            )
            axes.plot(epochs, curve.values.mean(axis=0), color=colour, lw=1.6, label=curve.name)
        axes.set_ylim(*_limits(found, measure))
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation perplexity" if measure == "perplexity" else "validation accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        clean(axes)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, handlelength=1.4)
        return finish("curves", drawn, f"Validation {measure} of every run by epoch.")


def _limits(found: list[Curve], measure: str) -> tuple[float, float]:
    """What is shown: all but the first tenth of the epochs, to tell the ends apart."""
    later: list[Any] = [curve.values[:, max(1, curve.values.shape[1] // 10) :] for curve in found]
    lowest, highest = min(float(v.min()) for v in later), max(float(v.max()) for v in later)
    if measure == "accuracy":
        return max(0.0, lowest - 4), 100.6
    room = 0.08 * max(highest - lowest, 0.02 * highest)
    return max(0.0, lowest - room), highest + room


def curves_table(findings: Findings, shown: int = 10) -> Table | None:
    """What the figure shows, at about ``shown`` epochs."""
    found = curves_of(findings)[:MOST]
    if not found:
        return None
    measure = measure_of(findings)
    last = max(curve.values.shape[1] for curve in found)
    step = max(1, round(last / shown))
    made = []
    for epoch in sorted({1, *range(step, last + 1, step), last}):
        means = [c.values[:, epoch - 1].mean() if epoch <= c.values.shape[1] else math.nan for c in found]
        made.append([Entry(str(epoch), epoch), *(number(float(mean)) for mean in means)])
    unit = "" if measure == "perplexity" else ", %"
    heads = [Head("Epoch", left=True), *(Head(f"{curve.name}{unit}", wrap=True) for curve in found)]
    return table(f"Mean validation {measure} by epoch", heads, made)


def trained(findings: Findings) -> str:
    """The command of the first run that is drawn; empty without one."""
    return next((commands.train_run(c.place, findings.runs[c.place]) or "" for c in curves_of(findings)), "")
