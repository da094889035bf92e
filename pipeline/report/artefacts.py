"""Rows of a table of artefacts: which one the page speaks of, and what it was held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline import metrics

Row = Mapping[str, Any]
BASELINE, TEACHER = "baseline", "teacher"


def smallest(compressed: Mapping[str, Any]) -> Row | None:
    """The smallest file that is no control and not the student itself; None without one that was measured."""
    rows = [
        row
        for row in compressed.get("rows", [])
        if row.get("bytes") and row.get("accuracy") is not None and not row.get("control") and row["name"] != BASELINE
    ]
    return min(rows, key=lambda row: (row["bytes"], row["name"]), default=None)


def named(compressed: Mapping[str, Any], name: str) -> Row | None:
    """The row of that name, where it was measured."""
    rows = {row["name"]: row for row in compressed.get("rows", []) if row.get("accuracy") is not None}
    return rows.get(name)


def against_teacher(row: Row, examples: int | None) -> Row | None:
    """A row against the teacher on the same ``examples``: difference, half width, verdict; None where not tested.

    McNemar's table holds all that a paired interval needs: how many examples only one of the two recognised.
    """
    test = row.get("mcnemar_teacher") or {}
    if row.get("against_teacher") or not examples or "only_first" not in test:
        return row.get("against_teacher")
    first, second = int(test["only_first"]), int(test["only_second"])
    gaps = np.zeros(examples)
    gaps[:first], gaps[first : first + second] = 1.0, -1.0
    share = (first - second) / examples
    found = metrics.compare({0: share}, {0: 0.0}, gaps, np.zeros(examples))
    return {"difference": share, "half_width": found.half_width, "verdict": found.verdict}
