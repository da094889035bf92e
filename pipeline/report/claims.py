"""What was published, and whether it was seen here: a table and a figure of the results of ``softlabels compare``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pipeline.evaluation.comparing import AS_EXPECTED, FIGURES, OTHER_WAY, Figure
from pipeline.report.methods import HARD, REPLAYED
from pipeline.report.style import COLOURS, FAINT, INK, MUTED, Drawing, clean, finish, new_figure, style

Claim = Mapping[str, Any]
_LOOKS = {AS_EXPECTED: ("^", COLOURS[REPLAYED]), OTHER_WAY: ("v", COLOURS[HARD])}
_OTHERS = ("o", MUTED)
_TONES = {AS_EXPECTED: "higher", OTHER_WAY: "lower"}
_WIDTH = 46


def rows(claims: Sequence[Claim]) -> list[dict[str, str]]:
    """The table as text, a line per claim."""
    found = []
    for claim in claims:
        figure = FIGURES[claim["metric"]]
        found.append(
            {
                "claim": _title(claim),
                "source": str(claim.get("source") or ""),
                "first": Path(claim["first"]).name,
                "second": Path(claim["second"]).name,
                "figure": figure.title,
                "values": figure.pair(claim["first_mean"], claim["second_mean"]),
                "expected": figure.expected(claim["expect"], claim.get("margin")) if claim.get("expect") else "",
                "difference": claim["text"],
                "seeds": f"{claim.get('paired_seeds') or ''}",
                "outcome": claim["outcome"] or claim["verdict"],
                "tone": _TONES.get(claim["outcome"], "noise"),
            }
        )
    return found


def summary(claims: Sequence[Claim]) -> list[tuple[str, str]]:
    """(lead, sentence): how many came out how."""
    outcomes = [claim["outcome"] for claim in claims if claim["outcome"]]
    if not outcomes:
        return []
    counts = [f"{outcomes.count(one)} {one}" for one in dict.fromkeys((AS_EXPECTED, *outcomes))]
    return [("Claims", f"Of {len(outcomes)}: {', '.join(counts)}.")]


def figure(claims: Sequence[Claim]) -> Drawing | None:
    """A panel per unit: the difference of each claim with its 95% interval, in the colour of its outcome."""
    units = {unit: [c for c in claims if FIGURES[c["metric"]].unit == unit] for unit in ("points", "nats", "")}
    panels = {unit: found for unit, found in units.items() if found}
    if not panels:
        return None
    heights = [len(found) for found in panels.values()]
    with style():
        drawn = new_figure(9.2, sum(0.46 * n + 0.8 for n in heights) + 0.3)
        grid = drawn.subplots(len(panels), 1, squeeze=False, height_ratios=[n + 0.8 for n in heights])[:, 0]
        for axes, (unit, found) in zip(grid, panels.items(), strict=True):
            _panel(axes, found, unit)
        seen = {claim["outcome"] for claim in claims if claim["outcome"]}
        handles = [
            Line2D([], [], ls="none", marker=_looks(one)[0], color=_looks(one)[1], ms=7, label=one)
            for one in sorted(seen)
        ]
        if handles:
            drawn.legend(handles=handles, loc="outside lower center", ncols=4, handletextpad=0.2)
        return finish("claims", drawn, "The difference that each claim is about, with its 95% interval.")


def _panel(axes: Axes, claims: Sequence[Claim], unit: str) -> None:
    axes.axvline(0, color=FAINT, lw=1)
    for y, claim in enumerate(claims):
        shown: Figure = FIGURES[claim["metric"]]
        marker, colour = _looks(claim["outcome"])
        middle, reach = shown.scale * claim["difference"], shown.scale * (claim["half_width"] or 0.0)
        axes.plot([middle - reach, middle + reach], [y, y], color=colour, lw=2.2, alpha=0.45, solid_capstyle="round")
        axes.plot(middle, y, marker, ms=7.5, color=colour, mec="white", mew=0.8, zorder=4)
        if claim.get("margin"):
            axes.plot([-claim["margin"], claim["margin"]], [y, y], "|", color=MUTED, ms=13)
        axes.annotate(claim["text"], (1.015, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(claims)), [textwrap.fill(_title(claim), _WIDTH) for claim in claims])
    axes.set_ylim(len(claims) - 0.4, -0.6)
    axes.set_xlabel(f"difference, {unit}" if unit else "difference")
    clean(axes, grid="x")
    axes.spines["left"].set_visible(False)


def _looks(outcome: str) -> tuple[str, str]:
    return _LOOKS.get(outcome, _OTHERS)


def _title(claim: Claim) -> str:
    return str(claim.get("claim") or f"{Path(claim['first']).name} against {Path(claim['second']).name}")
