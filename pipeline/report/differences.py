"""Two reports held against each other: what both have and how it differs, what only one has, what was set otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import metrics
from pipeline.evaluation.comparing import ACCURACY, FIGURES, OMITTED_CLASS, by_seed, compared
from pipeline.report.columns import Column, columns_of
from pipeline.report.record import details_of, read_record
from pipeline.report.words import MINUS, NONE

Record = Mapping[str, Any]
UNTESTED, SAME, EXACT = "not tested", "the same", "exact"
"""Verdicts beside those of a comparison; ``exact`` is a count, where chance has no part."""
_ASIDE = frozenset({"out", "threads", "device", "workers", "overwrite", "checkpoint_every", "cache_dir", "cache_bytes"})
"""Options that decide no result."""


@dataclass(frozen=True)
class Difference:
    """One figure that both reports have. ``half_width`` is NaN where nothing says how far chance reaches.

    ``better``: which way is good; texts carry the unit of the figure.
    """

    name: str
    figure: str
    unit: str
    first: float
    second: float
    difference: float
    half_width: float
    verdict: str
    better: str
    first_text: str
    second_text: str
    text: str

    @property
    def tone(self) -> str:
        """``higher`` for a gain, ``lower`` for a loss, whichever way the figure goes; ``noise`` otherwise."""
        if self.verdict not in ("higher", "lower", EXACT) or not self.better:
            return "noise"
        return "higher" if (self.difference > 0) == (self.better == "higher") else "lower"


@dataclass(frozen=True)
class Changed:
    """An option of a run that the two reports have set differently."""

    name: str
    option: str
    first: str
    second: str


@dataclass(frozen=True)
class Differences:
    """Everything between two reports, the second seen from the first: a positive difference is more in the second."""

    first: Path
    second: Path
    cells: tuple[Difference, ...]
    rows: tuple[Difference, ...]
    changed: tuple[Changed, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; what is not known is null."""

        def plain(one: Difference) -> dict[str, Any]:
            return {**vars(one), "half_width": one.half_width if math.isfinite(one.half_width) else None}

        return {
            "first": self.first.as_posix(),
            "second": self.second.as_posix(),
            "cells": [plain(one) for one in self.cells],
            "rows": [plain(one) for one in self.rows],
            "changed": [vars(one) for one in self.changed],
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "notes": list(self.notes),
        }


def between(first: Path, second: Path) -> Differences:
    """Hold the report at ``second`` against that at ``first``. Raises ConfigError where one is none."""
    a, b = read_record(first), read_record(second)
    shared = [name for name in b["cells"] if name in a["cells"]]
    notes: list[str] = []
    cells = [d for name in shared for d in _cells(name, a["cells"][name], b["cells"][name], notes)]
    rows_a, rows_b = _rows(a), _rows(b)
    both = [name for name in rows_b if name in rows_a]
    for key in ("compressed", "models_environment"):
        machines = [(record.get(key) or {}).get("processor") for record in (a, b)]
        if both and None not in machines and machines[0] != machines[1]:
            notes.append("Artefacts were timed on different processors: their times do not compare.")
    if not shared and not both:
        notes.append("The two reports have no run and no artefact of one name.")
    return Differences(
        first,
        second,
        tuple(cells),
        tuple(d for name in both for d in _row(name, rows_a[name], rows_b[name])),
        tuple(d for name in shared for d in _changed(name, a["cells"][name], b["cells"][name])),
        tuple([*(n for n in a["cells"] if n not in b["cells"]), *(f"artefact {n}" for n in rows_a if n not in rows_b)]),
        tuple([*(n for n in b["cells"] if n not in a["cells"]), *(f"artefact {n}" for n in rows_b if n not in rows_a)]),
        tuple(dict.fromkeys(notes)),
    )


def _cells(name: str, a: Record, b: Record, notes: list[str]) -> Iterator[Difference]:
    ours, theirs = details_of(a), details_of(b)
    if a["examples_digest"] != b["examples_digest"]:
        notes.append(f"{name} was evaluated on other examples: its figures are shown and not tested.")
    for key, figure in FIGURES.items():
        mine, yours = by_seed(ours, key), by_seed(theirs, key)
        if not mine or not yours:
            continue
        paired = sorted(mine.keys() & yours.keys())
        means = [
            metrics.spread([v for seed, v in values.items() if seed in paired or not paired])[0]
            for values in (mine, yours)
        ]
        if a["examples_digest"] == b["examples_digest"]:
            result = compared(theirs, ours, key)
            reach, verdict = result.half_width, result.verdict
        else:
            reach, verdict = math.inf, UNTESTED
        if math.isinf(reach):
            reach, verdict = math.nan, UNTESTED
        gap = means[1] - means[0]
        around = "" if math.isnan(reach) else f" ± {figure.text(reach)}"
        if mine == yours and (a["hits"] == b["hits"] or key not in (ACCURACY, OMITTED_CLASS)):
            verdict, around = SAME, ""
        unit = "%" if figure.unit == "points" else figure.unit
        yield Difference(
            name, figure.title, unit, means[0], means[1], gap, reach, verdict, _better(key),
            figure.text(means[0]), figure.text(means[1]), f"{_signed(figure.text(gap, True))}{around}",
        )  # fmt: skip


def _better(key: str) -> str:
    if any(word in key for word in ("accuracy", "acceptance", "tokens_per_call")):
        return "higher"
    return "lower" if any(word in key for word in ("nll", "brier", "ece", "perplexity", "bits_per", "entropy")) else ""


def _rows(record: Record) -> dict[str, Record]:
    """Artefacts by name; models of an evaluation of several say so."""
    found = {str(row["name"]): row for row in record["compressed"].get("rows", []) if not row.get("skipped")}
    models = {f"{row['name']} (model)": row for row in record.get("models") or () if not row.get("skipped")}
    return {**found, **models}


def _row(name: str, a: Record, b: Record) -> Iterator[Difference]:
    for column in columns_of([a, b]):
        if column.difference or column.key in ("seeds", "accuracy_std", "perplexity_std"):
            continue
        before, after = column.value(a), column.value(b)
        if before is None or after is None:
            continue
        reach = _reach(column, a, b)
        gap = after - before
        verdict = UNTESTED if math.isnan(reach) else ("within noise" if abs(gap) <= reach else _way(gap))
        if math.isclose(before, after, rel_tol=1e-9):  # a mean of equal numbers is off by a rounding
            reach, verdict = math.nan, SAME
        elif column.exact:
            verdict = EXACT
        around = "" if math.isnan(reach) else f" ± {column.text(reach)}"
        text = _signed(f"{column.scale * gap:+,.{column.digits}f}") + around
        if before > 0 and gap and column.key.startswith(("bytes", "latency", "parameters", "macs", "memory", "load")):
            text += f" ({after / before:.2f} times)"
        yield Difference(
            name, column.title, column.unit, before, after, gap, reach, verdict, column.better,
            column.text(before), column.text(after), text,
        )  # fmt: skip


def _reach(column: Column, a: Record, b: Record) -> float:
    """Half the 95% interval of a difference of two rows from the intervals that both have; NaN without them.

    Their examples are the same, but which were right is not kept: the intervals are added in quadrature, which is
    wider than a paired comparison would be. Where rows are means over seeds, their spread is added too.
    """
    halves = []
    for row in (a, b):
        bounds = row.get(column.interval) if column.interval else None
        if isinstance(bounds, Sequence) and len(bounds) == 2:
            halves.append(math.hypot((float(bounds[1]) - float(bounds[0])) / 2, _over_seeds(row)))
    return math.hypot(*halves) if len(halves) == 2 else math.nan


def _over_seeds(row: Record) -> float:
    """Half the 95% interval of a mean accuracy over trainings (Student's t); 0 of one, where it is not known."""
    seeds, spread = int(row.get("seeds") or 1), float(row.get("accuracy_std") or 0.0)
    return metrics.student_t95(seeds - 1) * spread / math.sqrt(seeds) if seeds > 1 else 0.0


def _changed(name: str, a: Record, b: Record) -> Iterator[Changed]:
    before, after = a.get("config") or {}, b.get("config") or {}
    for option in dict.fromkeys([*before, *after]):
        if option not in _ASIDE and before.get(option) != after.get(option):
            yield Changed(name, option, _plain(before.get(option)), _plain(after.get(option)))


def _plain(value: Any) -> str:
    if value is None or value == []:
        return NONE
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _way(gap: float) -> str:
    return "higher" if gap > 0 else "lower"


def _signed(text: str) -> str:
    """A signed number with a real minus, and no sign before nothing."""
    return text.replace("-", MINUS) if any(digit in text for digit in "123456789") else text.lstrip("+-")


def lines(found: Differences) -> list[str]:
    """A short table for a terminal: accuracies of runs, then those of artefacts and their sizes, then what changed."""
    picked = [d for d in found.cells if d.figure.startswith(("accuracy", "perplexity"))]
    picked += [d for d in found.rows if d.figure in ("Perplexity", "Accuracy", "Size")]
    same = sum(d.verdict == SAME for d in picked)
    picked = [d for d in picked if d.verdict != SAME]
    table = [(d.name, f"{d.figure.lower()}, {d.unit}", d.first_text, d.second_text, d.text, d.verdict) for d in picked]
    head = ("", "", found.first.name or str(found.first), found.second.name or str(found.second), "difference", "")
    widths = [max(len(line[i]) for line in [head, *table]) for i in range(len(head))]
    out = [
        "  ".join(
            c.ljust(w) if i in (0, 1, 5) else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *table]
    ]
    out += [f"the same in both: {same} of {same + len(picked)} accuracies and sizes"] if same else []
    counts: dict[str, int] = {}
    for one in found.changed:
        counts[f"{one.option} {one.first} → {one.second}"] = (
            counts.get(f"{one.option} {one.first} → {one.second}", 0) + 1
        )
    out += [f"changed in {count} run{'' if count == 1 else 's'}: {what}" for what, count in counts.items()]
    out += [f"only in {found.first}: {', '.join(found.only_first)}"] if found.only_first else []
    out += [f"only in {found.second}: {', '.join(found.only_second)}"] if found.only_second else []
    return [line.rstrip() for line in [*out, *found.notes]]
