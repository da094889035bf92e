"""Rows of a table of artefacts: which one the page speaks of, and what it was held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import metrics

Row = Mapping[str, Any]
BASELINE, TEACHER = "baseline", "teacher"


def is_language(rows: Sequence[Row]) -> bool:
    """Whether rows are of language models."""
    return any(row.get("perplexity") is not None for row in rows)


def gap_of(row: Row, key: str) -> Row | None:
    """The difference that a row is judged by: in accuracy, of language models in negative log-likelihood.

    None where there is none; where only the accuracy of a language model was held against another's, too.
    """
    gap = row.get(key) or None
    return (gap or {}).get("nll") if is_language([row]) else gap


def baseline_of(table: Mapping[str, Any]) -> str:
    """The name of the row that others are held against: an evaluation records its own."""
    return str(table.get("baseline") or BASELINE)


def deployable(table: Mapping[str, Any]) -> list[Row]:
    """The measured files that are no controls and not the baseline itself, from the smallest."""
    rows = [
        row
        for row in table.get("rows", [])
        if row.get("bytes")
        and row.get("accuracy") is not None
        and not row.get("control")
        and row["name"] not in (BASELINE, baseline_of(table))
    ]
    return sorted(rows, key=lambda row: (row["bytes"], row["name"]))


def smallest(table: Mapping[str, Any]) -> Row | None:
    """The smallest file that is no control and not the student itself; None without one that was measured."""
    return next(iter(deployable(table)), None)


def smallest_as_good(table: Mapping[str, Any]) -> Row | None:
    """The smallest file that is not shown to be worse than the baseline; None where no interval is known."""
    for row in deployable(table):
        gap = gap_of(row, "against_baseline") or {}
        worse = "higher" if is_language([row]) else "lower"
        if gap.get("half_width") is not None and gap.get("verdict") != worse:
            return row
    return None


def with_teacher(row: Row, examples: int | None) -> dict[str, Any]:
    """The row, with how it does against the teacher where its table of McNemar's test says so."""
    gap = against_teacher(row, examples)
    return {**row, "against_teacher": gap} if gap else dict(row)


def named(compressed: Mapping[str, Any], name: str) -> Row | None:
    """The row of that name, where it was measured."""
    rows = {row["name"]: row for row in compressed.get("rows", []) if row.get("accuracy") is not None}
    return rows.get(name)


def against_teacher(row: Row, examples: int | None) -> Row | None:
    """A row against the teacher on the same ``examples``: difference, half width, verdict; None where not tested.

    McNemar's table holds all that a paired interval needs: how many examples only one of the two recognised. Not of
    language models, whose tokens are no examples of their own.
    """
    test = row.get("mcnemar_teacher") or {}
    if row.get("against_teacher") or not examples or "only_first" not in test or is_language([row]):
        return row.get("against_teacher")
    first, second = int(test["only_first"]), int(test["only_second"])
    gaps = np.zeros(examples)
    gaps[:first], gaps[first : first + second] = 1.0, -1.0
    share = (first - second) / examples
    found = metrics.compare({0: share}, {0: 0.0}, gaps, np.zeros(examples))
    return {"difference": share, "half_width": found.half_width, "verdict": found.verdict}
