"""What the figures say, in sentences made from the numbers. A difference that chance explains is called noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.metrics import Comparison
from pipeline.report.artefacts import BASELINE, named, smallest
from pipeline.report.methods import AUGMENTED, FEW, FIXED, HARD, KIND_NOUNS, OMITTED, PLAIN, REPLAYED, SOFT
from pipeline.report.reading import Cell, Findings, compare

NONE, MINUS = "\u2013", "\u2212"
PAIRS = (
    (PLAIN, SOFT, HARD),
    (AUGMENTED, REPLAYED, FIXED),
    (AUGMENTED, REPLAYED, HARD),
    (FEW, SOFT, HARD),
    (OMITTED, SOFT, HARD),
)
"""What is compared: (setting, first, second)."""


@dataclass(frozen=True)
class Contrast:
    """Two cells of one student and setting, and how they compare."""

    first: Cell
    second: Cell
    result: Comparison

    @property
    def points(self) -> str:
        """The difference in percentage points with its 95% half width."""
        reach = self.result.half_width
        around = "" if math.isinf(reach) else f" ± {100 * reach:.1f}"
        return f"{signed(100 * self.result.difference)}{around}"

    @property
    def verdict(self) -> str:
        return self.result.verdict


def contrasts(findings: Findings) -> list[Contrast]:
    """Every pair of PAIRS that was run, student by student."""
    found = []
    for setting, one, other in PAIRS:
        for student in findings.students:
            first, second = findings.cell(setting, one, student), findings.cell(setting, other, student)
            if first is not None and second is not None:
                found.append(Contrast(first, second, compare(first, second)))
    return found


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, a real minus, and one decimal unless told.

    >>> signed(1.25), signed(-0.04), signed(-2.0) == MINUS + "2.0"
    ('+1.2', '0.0', True)
    """
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS) if any(digit in "123456789" for digit in text) else text[1:]


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; a dash where there is none."""
    return NONE if value is None or math.isnan(value) else f"{100 * value:.{digits}f}%"


def summary(findings: Findings) -> list[tuple[str, str]]:
    """(lead, sentence) for each setting that was compared, then for compression."""
    lines: list[tuple[str, str]] = []
    found = contrasts(findings)
    for setting, one, other in PAIRS:
        group = [
            c
            for c in found
            if (c.first.method.setting, c.first.method.kind, c.second.method.kind) == (setting, one, other)
        ]
        if group:
            lines.append((group[0].first.method.setting_title, _contrast_sentence(group, one, other)))
    lines.extend(_compression(findings.compressed))
    return lines


def _contrast_sentence(group: Sequence[Contrast], one: str, other: str) -> str:
    omitted = group[0].first.method.setting == OMITTED
    what = f"accuracy on “{group[0].first.method.detail}”" if omitted else "test accuracy"
    clauses = []
    for verdict in ("higher", "lower", "within noise"):
        members = [_member(c, omitted) for c in group if c.verdict == verdict]
        if members:
            clauses.append(f"{verdict} for {' and '.join(members)}")
    head = f"{KIND_NOUNS[one][0].upper()}{KIND_NOUNS[one][1:]} against {KIND_NOUNS[other]}: {what} is "
    return head + "; ".join(clauses) + "."


def _member(contrast: Contrast, omitted: bool) -> str:
    if omitted:
        both = f"{percent(contrast.first.mean(), 0)} against {percent(contrast.second.mean(), 0)}"
        return f"{contrast.first.student} ({both})"
    return f"{contrast.first.student} ({contrast.points} points)"


def _compression(compressed: Mapping[str, Any]) -> list[tuple[str, str]]:
    base, last = named(compressed, BASELINE), smallest(compressed)
    if not base or not last or not base.get("bytes"):
        return []
    smaller = base["bytes"] / last["bytes"]
    text = f"{last['name']} takes {last['bytes'] / 1e3:,.1f} kB, {smaller:.1f} times less than the student in float32"
    if last.get("latency") and base.get("latency"):
        ratios = {
            size: base["latency"][size]["p50"] / last["latency"][size]["p50"]
            for size in sorted(last["latency"].keys() & base["latency"].keys(), key=int)
        }
        text += "; it is " + " and ".join(f"{_times(ratio)} at batch {size}" for size, ratio in ratios.items())
    gap = last.get("against_baseline")
    if gap:
        around = "" if gap["half_width"] is None else f" ± {100 * gap['half_width']:.1f}"
        change = f"{signed(100 * gap['difference'])}{around} points"
        text += (
            f". Its accuracy is {gap['verdict']}"
            + (" of" if gap["verdict"] == "within noise" else " than")
            + f" that of the student ({change})"
        )
    return [("Compression", text + ".")]


def _times(ratio: float) -> str:
    if 0.95 < ratio < 1.05:
        return "as fast"
    return f"{ratio:.1f} times faster" if ratio > 1 else f"{1 / ratio:.1f} times slower"


def sample(findings: Findings) -> str:
    """How much stands behind the figures: examples, split and seeds."""
    if not findings.cells:
        return _sample_of_tables(findings)
    first = findings.cells[0].details
    counts = findings.seed_counts
    seeds = (
        f"{counts[0]} seed{'s' if counts[0] != 1 else ''}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    )
    return f"n = {counted(first)}, {seeds}"


def counted(details: Mapping[str, Any], count: int | None = None) -> str:
    """How much was looked at, by the record of an evaluation; ``count`` examples where that does not say."""
    examples, of = int(details.get("examples") or count or 0), details.get("split") or "test"
    if not details.get("tokens"):
        return f"{examples:,} {of} examples"
    return f"{details['tokens']:,} {of} tokens of {examples:,} sequences"


def _sample_of_tables(findings: Findings) -> str:
    """Of a page without evaluations of students."""
    table = findings.compressed or findings.models
    count = findings.compressed.get("test_examples") or findings.models.get("examples")
    kept: Mapping[str, Any] = next(iter((table.get("models") or {}).values()), {}) if findings.tokens else {}
    rows = [*findings.compressed.get("rows", []), *findings.models.get("rows", [])]
    seeds = sorted({int(row["seeds"]) for row in rows if row.get("seeds")})
    found = [f"n = {counted({'split': split(findings), 'tokens': kept.get('tokens')}, count)}"] if count else []
    if seeds:
        most = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
        found.append(f"{most} seed{'' if seeds == [1] else 's'} a row")
    return ", ".join(found) or "Figures of artefacts"


def split(findings: Findings) -> str:
    """Which examples the figures are about."""
    return str(findings.cells[0].details["split"] if findings.cells else findings.models.get("split") or "test")


def noise_note(findings: Findings) -> str:
    """What the intervals cover, said where they are shown."""
    if not findings.cells:
        return ""
    if min(findings.seed_counts) < 2:
        return (
            "Some cells have a single seed: how much a training varies is not known there, and the intervals cover the "
            "finite number of test examples alone."
        )
    return (
        "Intervals are 95%: Student's t over paired seeds, and the finite number of test examples (paired "
        "proportions), added in quadrature. "
        "“Within noise” means that the interval covers zero."
    )
