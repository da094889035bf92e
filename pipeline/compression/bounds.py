"""What a ``check`` step asks for, held against the rows that were measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.compression.steps import Check
from pipeline.evaluation.table import Row


def broken(step: Check, rows: Sequence[Row]) -> Iterator[str]:
    """A sentence for each bound that does not hold; a row that is missing or was skipped holds none."""
    by_name = {row.name: row for row in rows}
    row, other = by_name.get(step.of), by_name.get(step.against)
    if row is None or row.skipped:
        yield f"{step.of} was not made" + (f" ({row.skipped})" if row is not None else "")
        return
    found: list[tuple[str, float | None, float | None, bool]] = [
        ("max_drop", step.max_drop, _less(other, row), False),
        ("agreement", step.agreement, row.agreement, True),
        ("max_bytes", step.max_bytes, row.bytes, False),
        ("max_ms", step.max_ms, row.milliseconds, False),
        ("smaller", step.smaller, _ratio(other.bytes if other else None, row.bytes), True),
        ("faster", step.faster, _ratio(other.milliseconds if other else None, row.milliseconds), True),
    ]
    for name, bound, value, at_least in found:
        if bound is None:
            continue
        against = f" against {step.against}" if name in ("max_drop", "smaller", "faster") else ""
        if value is None:
            yield f"{step.of}: {name} of {bound:g} cannot be told{against}, for it was not measured"
        elif value < bound if at_least else value > bound:
            limit = "at least" if at_least else "at most"
            yield f"{step.of}: {name} should be {limit} {bound:g}{against}; found {value:.4g}"


def _less(other: Row | None, row: Row) -> float | None:
    return None if other is None or other.accuracy is None or row.accuracy is None else other.accuracy - row.accuracy


def _ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before is not None and after else None
