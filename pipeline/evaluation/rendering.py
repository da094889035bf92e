"""The table as lines of text: columns that some row has, warnings and reasons below their row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.evaluation.table import Row


def _number(value: float | None, pattern: str, unit: float = 1.0) -> str:
    return "" if value is None or math.isnan(value) else pattern.format(value / unit)


def _gap(row: Row) -> str:
    gap = row.against_baseline
    if gap is None:
        return ""
    around = "" if gap["half_width"] is None else f" ± {100 * gap['half_width']:.2f}"
    return f"{100 * gap['difference']:+.2f}{around}"


def _acceptance(row: Row) -> str:
    if row.acceptance is None and row.acceptance_between is not None:
        return " to ".join(f"{end:.3f}" for end in row.acceptance_between)
    return _number(row.acceptance, "{:.3f}")


def _p_value(row: Row) -> str:
    return "" if row.mcnemar_source is None else f"{row.mcnemar_source['p_value']:.2g}"


def _columns(rows: Sequence[Row]) -> list[tuple[str, Callable[[Row], str]]]:
    sizes = sorted({int(size) for row in rows for size in row.latency or {}})

    def latency(size: int) -> Callable[[Row], str]:
        return lambda row: _number(((row.latency or {}).get(str(size)) or {}).get("p50"), "{:.3f}")

    return [
        ("", lambda row: row.name + (" (control)" if row.control else "")),
        ("perplexity", lambda row: _number(row.perplexity, "{:,.2f}")),
        ("bits/byte", lambda row: _number(row.bits_per_byte, "{:.3f}")),
        ("KL", lambda row: _number(None if row.perplexity is None else row.kl_to_teacher, "{:.3f}")),
        ("acceptance", _acceptance),
        ("accuracy", lambda row: _number(row.accuracy, "{:.2%}")),
        ("± seeds", lambda row: _number(row.accuracy_std if (row.seeds or 0) > 1 else None, "{:.2f}", 0.01)),
        ("against baseline", _gap),
        ("p, row before", _p_value),
        ("NLL", lambda row: _number(row.nll, "{:.3f}")),
        ("ECE", lambda row: _number(row.ece, "{:.1%}")),
        ("corrupted", lambda row: _number(row.corrupted_accuracy, "{:.1%}")),
        ("kB", lambda row: _number(row.bytes, "{:,.1f}", 1e3)),
        ("MMAC", lambda row: _number(row.macs, "{:,.2f}", 1e6)),
        *((f"ms at {size}", latency(size)) for size in sizes),
        ("MB", lambda row: _number(row.memory, "{:,.0f}", 1e6)),
        ("agrees", lambda row: _number(row.agreement, "{:.1%}")),
    ]


def timed_on(environment: Mapping[str, Any]) -> str:
    """What latencies were measured on."""
    if not environment["timed"]:
        return "not timed"
    return f"timed on {environment['processor']}, {environment['runtime_threads'] or 'all'} thread(s)"


def render(rows: Sequence[Row]) -> list[str]:
    """Aligned lines; a column that no row fills is left out."""
    columns = [(title, [of(row) for row in rows]) for title, of in _columns(rows)]
    columns = [(title, cells) for title, cells in columns if any(cells)]
    widths = [max(len(title), *map(len, cells)) for title, cells in columns]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

    lines = [line([title for title, _ in columns])]
    for number, row in enumerate(rows):
        lines.append(line([cells[number] for _, cells in columns]))
        lines.extend(f"    {note}" for note in ([f"skipped: {row.skipped}"] if row.skipped else []) + row.warnings)
    return lines
