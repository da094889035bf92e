"""The rows that compression ends in: one per artefact and control, each figure with its source, each doubt in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline import metrics
from pipeline.artefacts.checking import Check
from pipeline.artefacts.latency import Latency
from pipeline.metrics import Scores

SLOWER = 1.05
SMALLER = 0.95
AGREES = 0.95


@dataclass
class Row:
    """One artefact or control, filled in as it is made, tried and timed.

    ``source``: the row it was made from; ``control`` rows are there to compare with, not to deploy; ``runtime`` names
    what computed the figures; ``skipped`` says why there are none.
    """

    name: str
    what: str
    source: str | None = None
    control: bool = False
    runtime: str | None = None
    file: str | None = None
    bytes: int | None = None
    parameters: int | None = None
    accuracy: float | None = None
    validation_accuracy: float | None = None
    nll: float | None = None
    ece: float | None = None
    agreement: float | None = None
    against_baseline: dict[str, Any] | None = None
    check: dict[str, Any] | None = None
    latency: dict[str, dict[str, float]] | None = None
    seconds: float | None = None
    skipped: str | None = None
    warnings: list[str] = field(default_factory=list)

    def tried(self, check: Check) -> None:
        """Note how the file behaved against its source."""
        self.check = asdict(check)
        self.warnings.extend(check.problems())

    def scored(self, test: Scores, validation: Scores | None) -> None:
        """Note how well it does on test, and on validation."""
        self.accuracy, self.nll = test.accuracy, test.nll
        self.ece = metrics.reliability(test.confidence, test.correct).ece
        self.validation_accuracy = None if validation is None else validation.accuracy

    def timed(self, latencies: Mapping[int, Latency]) -> None:
        """Note the latency by batch size, in milliseconds per call."""
        self.latency = {str(size): asdict(latency) for size, latency in latencies.items()}


def compare_scores(rows: Sequence[Row], scores: Mapping[str, Scores], baseline: str) -> None:
    """Fill in, for every scored row, how often it agrees with its source and how it does against the baseline."""
    for row in rows:
        if row.name not in scores:
            continue
        own = scores[row.name]
        if row.source in scores:
            row.agreement = float((own.predictions == scores[str(row.source)].predictions).mean())
            if row.agreement < AGREES and not row.control:
                row.warnings.append(f"agrees with {row.source} on {row.agreement:.1%} of the test examples only")
        if row.name != baseline and baseline in scores:
            hits, others = own.correct.astype(float), scores[baseline].correct.astype(float)
            result = metrics.compare({0: own.accuracy}, {0: scores[baseline].accuracy}, hits, others)
            row.against_baseline = {
                "difference": result.difference,
                "half_width": result.half_width,
                "verdict": result.verdict,
            }


def warn(rows: Sequence[Row]) -> None:
    """Say by default where a step made the model slower, or no smaller, than what it was made from."""
    by_name = {row.name: row for row in rows}
    for row in rows:
        source = by_name.get(row.source or "")
        if source is None:
            continue
        if row.bytes is not None and source.bytes is not None and row.bytes > SMALLER * source.bytes:
            row.warnings.append(f"no smaller than {source.name}: {row.bytes:,} B against {source.bytes:,} B")
        for size in (row.latency or {}).keys() & (source.latency or {}).keys():
            mine, before = (row.latency or {})[size]["p50"], (source.latency or {})[size]["p50"]
            if mine > SLOWER * before:
                row.warnings.append(f"slower than {source.name} at batch {size}: {mine:.3g} ms against {before:.3g} ms")
        row.warnings.sort()


def flat(rows: Sequence[Row], baseline: str) -> dict[str, Any]:
    """The few figures that ``dvc metrics show`` prints, per artefact: accuracy, size, and ratios to the baseline."""
    by_name = {row.name: row for row in rows}
    figures: dict[str, Any] = {}
    for row in rows:
        if row.accuracy is None:
            continue
        key = row.name.replace("-", "_")
        figures[f"{key}_accuracy"] = round(row.accuracy, 4)
        if row.bytes is not None:
            figures[f"{key}_kilobytes"] = round(row.bytes / 1e3, 1)
        base = by_name.get(baseline)
        if row.latency and base is not None and base.latency and row.name != baseline:
            for size in sorted(row.latency, key=int):
                figures[f"{key}_speedup_{size}"] = round(base.latency[size]["p50"] / row.latency[size]["p50"], 2)
    return figures


def render(rows: Sequence[Row]) -> list[str]:
    """The table as aligned lines of text, warnings and reasons below their row."""
    sizes = sorted({int(size) for row in rows for size in row.latency or {}})
    head = ("", "accuracy", "against baseline", "kB", *(f"ms at {size}" for size in sizes), "agrees")
    body: list[tuple[str, ...]] = [head]
    notes: dict[int, list[str]] = {}
    for row in rows:
        latency = row.latency or {}
        gap = row.against_baseline
        body.append(
            (
                row.name + (" (control)" if row.control else ""),
                _shown(row.accuracy, "{:.2%}"),
                "" if gap is None else f"{100 * gap['difference']:+.2f} ± {100 * gap['half_width']:.2f}",
                _shown(row.bytes, "{:,.1f}", 1e3),
                *(_shown(latency.get(str(size), {}).get("p50"), "{:.3f}") for size in sizes),
                _shown(row.agreement, "{:.1%}"),
            )
        )
        notes[len(body) - 1] = ([f"skipped: {row.skipped}"] if row.skipped else []) + row.warnings
    widths = [max(len(line[column]) for line in body) for column in range(len(head))]
    lines = []
    for number, line in enumerate(body):
        cells = [
            cell.ljust(w) if column == 0 else cell.rjust(w)
            for column, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
        lines.extend(f"    {note}" for note in notes.get(number, []))
    return lines


def _shown(value: float | None, pattern: str, unit: float = 1.0) -> str:
    return "" if value is None or math.isnan(value) else pattern.format(value / unit)
