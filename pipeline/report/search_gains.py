"""What a search over recipes found, in plain sentences: how many were tried, which are worth having, within what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report.artefacts import BASELINE
from pipeline.report.sizes import joined, kilobytes, percent

BUDGETS = (0.0, 0.005, 0.01, 0.02, 0.05)
"""Losses of validation accuracy that people allow."""

SMALLER = 0.99
"""What is gained by allowing more has to show in the size."""


def figure_of(table: Mapping[str, Any]) -> str:
    """What a search chose by: validation where every point has it."""
    points = table.get("front") or ()
    return "validation_accuracy" if all(p.get("validation_accuracy") is not None for p in points) else "accuracy"


def tried(table: Mapping[str, Any]) -> list[str]:
    """How many recipes were tried, and which no other beats."""
    points = table.get("front") or ()
    front = [str(point["name"]) for point in points if point.get("on_front")]
    if not front:
        return []
    return [
        f"{len(points)} recipes were tried; {len(front)} are worth having, since no other is as accurate"
        f"{_where(table)}, as small and as fast: {joined(front)}."
    ]


def budgets(table: Mapping[str, Any]) -> list[str]:
    """The smallest file within each loss of accuracy that brings another one."""
    chosen = within(table)
    if not chosen:
        return []
    told = [
        f"{allowed(budget)}: {point['name']} ({kilobytes(point['bytes'])}, {percent(point[figure_of(table)])})"
        for budget, point in chosen
    ]
    start = _reference(table)[1]
    return [f"The smallest file by what it may lose{_where(table)}, from {start}: {'; '.join(told)}."]


def within(table: Mapping[str, Any]) -> list[tuple[float, Mapping[str, Any]]]:
    """(loss allowed, the smallest point of the front within it), where it is smaller than within less."""
    key = figure_of(table)
    front = [p for p in table.get("front") or () if p.get("on_front") and p.get("bytes")]
    if not front:
        return []
    reference = _reference(table)[0]
    found: list[tuple[float, Mapping[str, Any]]] = []
    for budget in BUDGETS:
        # Shares of the same examples: a part in a million is the noise of floating point alone.
        good = [p for p in front if p[key] >= reference - budget - 1e-6]
        if good:
            best = min(good, key=lambda p: (p["bytes"], -p[key]))
            if not found or best["bytes"] < SMALLER * found[-1][1]["bytes"]:
                found.append((budget, best))
    return found


def _reference(table: Mapping[str, Any]) -> tuple[float, str]:
    """What a loss is counted from: the student before compression, or the best point."""
    key = figure_of(table)
    points = table.get("front") or ()
    rows = [*points, *table.get("rows", ())]
    for row in rows:
        if row["name"] == BASELINE and row.get(key) is not None:
            return float(row[key]), f"{percent(row[key])} of the student before compression"
    best = max(float(p[key]) for p in points)
    return best, f"{percent(best)} of the best"


def _where(table: Mapping[str, Any]) -> str:
    return " on validation" if figure_of(table) != "accuracy" else ""


def allowed(budget: float) -> str:
    """A loss in words."""
    return "nothing" if not budget else f"{100 * budget:g} point{'' if budget == 0.01 else 's'}"
