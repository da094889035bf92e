"""What a table of artefacts or models comes to in plain sentences, with no evaluation of a student beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.artefacts import TEACHER, Row, baseline_of, gap_of, named, smallest, smallest_as_good
from pipeline.report.language import teacher_of
from pipeline.report.reading import Findings
from pipeline.report.search_gains import budgets, tried
from pipeline.report.series import milliseconds
from pipeline.report.sizes import joined, kilobytes, percent, points, ratio
from pipeline.report.yardstick import Yardstick, yardstick

Table = Mapping[str, Any]
SMALLER = 0.95
"""Times the size of the baseline: no more is a smaller file."""


@dataclass(frozen=True)
class View:
    """A table, and what its baseline is called in a sentence; ``brief``: something else on the page leads;
    ``corrupted``: another table of the page has accuracies on corrupted images.
    """

    table: Table
    baseline: str
    models: bool = False
    brief: bool = False
    corrupted: bool = False

    @property
    def by(self) -> Yardstick:
        """What its rows are judged by."""
        return yardstick(self.table)


@dataclass(frozen=True)
class Told:
    """The sentences of one table, by question."""

    gained: tuple[str, ...] = ()
    cost: tuple[str, ...] = ()
    significance: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def views(findings: Findings) -> list[View]:
    """The tables to speak of: that of compression, and models, in brief where anything else leads; of language models
    their table leads, which is where students of several methods stand.
    """
    found = []
    if findings.compressed:
        tried = any(row.get("corrupted_accuracy") is not None for row in findings.models.get("rows", []))
        found.append(View(findings.compressed, "the student before compression", corrupted=tried))
    if findings.models:
        baseline = f"the baseline ({baseline_of(findings.models)})"
        if findings.tokens:
            return [View(findings.models, baseline, models=True), *found]
        found.append(View(findings.models, baseline, models=True, brief=bool(found or findings.cells)))
    return found


def told(view: View, *, alone: bool) -> Told:
    """Everything that is said of a table; ``alone``: nothing else on the page says what is missing."""
    row = smallest(view.table)
    if view.brief:
        return Told(gained=tuple(_compared(view)))
    if view.models and view.by.lower:
        return _predicting(view, alone=alone)
    return Told(
        gained=tuple([*_compared(view), *_smallest(view, row), *tried(view.table)]),
        cost=tuple([*_lost(view, row), *_corrupted(view, row), *budgets(view.table)]),
        significance=tuple(_significance(view, row)),
        warnings=tuple(_warnings(view.table)),
        missing=tuple([*(_missing(view, row) if alone else []), *view.table.get("notes", ())]),
    )


def _compared(view: View) -> list[str]:
    """Of models: how many, and which did best."""
    by = view.by
    rows = [row for row in view.table.get("rows", []) if row.get(by.key) is not None]
    if not view.models or len(rows) < 2:
        return []
    best = max(rows, key=lambda row: (by.sign * row[by.key], -(row.get("bytes") or 0)))
    alike = sum(row[by.key] == best[by.key] for row in rows) - 1
    figure = by.phrase(best[by.key]).removesuffix(" right")
    text = f"Of {len(rows)} models on the same {by.unit} {best['name']} is {by.superlative} ({figure})"
    found = [f"{text}; {alike} more are as {'good' if by.lower else 'accurate'}." if alike else f"{text}."]
    return [*found, *_drafting(rows)] if by.lower else found


def _drafting(rows: list[Row]) -> list[str]:
    """Of language models: which of them drafts best for the teacher."""
    known = [row for row in rows if row.get("acceptance") is not None and row.get("tokens_per_call") is not None]
    if not known:
        return []
    best = max(known, key=lambda row: float(row["acceptance"]))
    return [
        f"The teacher would accept {percent(best['acceptance'])} of the tokens that {best['name']} drafts, the most: "
        f"{best['tokens_per_call']:.2f} tokens for each of its calls, with 4 drafted."
    ]


def _predicting(view: View, *, alone: bool) -> Told:
    """Of a table of language models: the best against the baseline and the teacher, and the smallest where it is one.

    Students of different methods are of one size: the smallest file says nothing of them.
    """
    by, rows = view.by, [row for row in view.table.get("rows", []) if row.get(view.by.key) is not None]
    best = min(rows, key=lambda row: float(row[by.key]))
    base, last = named(view.table, baseline_of(view.table)) or {}, smallest(view.table)
    small = [] if last is None or last["bytes"] > SMALLER * (base.get("bytes") or 0) else _smallest(view, last)
    gap, teacher = gap_of(best, "against_baseline"), teacher_of(view.table)
    cost = (
        f"Against the teacher (perplexity {by.text(teacher['perplexity'])}) {best['name']} has "
        f"{best[by.key] / teacher['perplexity']:.2f} times the perplexity."
        if teacher
        else ""
    )
    seeds = int(best.get("seeds") or 1)
    over = f"{seeds} seeds and the test sequences" if seeds > 1 else "the test sequences of one training"
    said = f"{best['name']} against {view.baseline}: {by.verdict(gap)}, over {over}." if gap else ""
    return Told(
        gained=tuple([*_compared(view), *small]),
        cost=tuple(filter(None, [cost])),
        significance=tuple(filter(None, [f"{said[:1].upper()}{said[1:]}"])),
        warnings=tuple(_warnings(view.table)),
        missing=tuple([*(_unknown(rows, bool(teacher)) if alone else []), *view.table.get("notes", ())]),
    )


def _unknown(rows: list[Row], asked: bool) -> list[str]:
    """What a table of language models leaves open; ``asked``: the teacher was."""
    found = [] if asked else ["How good the teacher is: it was not asked. softlabels evaluate --teacher names it."]
    if all(int(row.get("seeds") or 1) < 2 for row in rows):
        found.append("How much another training would vary: every row is of a single seed.")
    if all(milliseconds(row) is None for row in rows):
        found.append("How fast it is: nothing was timed.")
    return found


def _smallest(view: View, row: Row | None) -> list[str]:
    if row is None:
        return []
    text = f"The smallest file, {row['name']}, takes {kilobytes(row['bytes'])}"
    held = []
    for name, called in ((TEACHER, "the teacher"), (baseline_of(view.table), view.baseline)):
        other = named(view.table, name)
        if other and other.get("bytes"):
            times = other["bytes"] / row["bytes"]
            word = f"{ratio(times)} times smaller" if times >= 1 else f"{ratio(1 / times)} times larger"
            held.append(f"{word} than {called}{_speed(row, other)}")
    found = [f"{text}: {'; '.join(held)}." if held else f"{text}."]
    good = smallest_as_good(view.table)
    if good is not None and good["name"] != row["name"]:
        found.append(
            f"The smallest that these test {view.by.unit} do not show to be worse than {view.baseline} is "
            f"{good['name']}: {kilobytes(good['bytes'])}, {view.by.phrase(good[view.by.key])}."
        )
    return found


def _speed(row: Row, other: Row) -> str:
    latency, before = row.get("latency") or {}, other.get("latency") or {}
    said = []
    for size in sorted(latency.keys() & before.keys(), key=int):
        times = before[size]["p50"] / latency[size]["p50"]
        if 0.95 < times < 1.05:
            said.append(f"as fast at batch {size}")
        else:
            said.append(f"{ratio(max(times, 1 / times))} times {'faster' if times > 1 else 'slower'} at batch {size}")
    return f", {' and '.join(said)}" if said else ""


def _against(view: View, row: Row, called: str) -> list[tuple[Row, str]]:
    """What the row was held against, where it was."""
    gaps = ((gap_of(row, "against_teacher"), "the teacher"), (gap_of(row, "against_baseline"), called))
    return [(gap, other) for gap, other in gaps if gap]


def _lost(view: View, row: Row | None) -> list[str]:
    if row is None:
        return []
    called = view.baseline if view.models else "the student it was made from"
    by, seeds = view.by, int(row.get("seeds") or 1)
    spread = row.get(f"{by.key}_std") or 0.0
    over = f" (mean over {seeds} seeds, s = {f'{spread:.2f}' if by.lower else points(spread)})" if seeds > 1 else ""
    what = "the negative log-likelihood" if by.lower else "accuracy"
    return [
        f"Against {other} the smallest file changes {what} by {by.change(gap)}, to "
        f"{by.phrase(row[by.key]).removesuffix(' right')}{over}."
        for gap, other in _against(view, row, called)
    ]


def _corrupted(view: View, row: Row | None) -> list[str]:
    if row is None or row.get("corrupted_accuracy") is None:
        return []
    others = []
    for name, called in ((TEACHER, "the teacher"), (baseline_of(view.table), view.baseline)):
        other = named(view.table, name)
        if other and other.get("corrupted_accuracy") is not None:
            others.append(f"{percent(other['corrupted_accuracy'])} for {called}")
    against = f", against {joined(others)}" if others else ""
    return [f"On corrupted images the smallest file is right for {percent(row['corrupted_accuracy'])}{against}."]


def _significance(view: View, row: Row | None) -> list[str]:
    if row is None:
        return []
    found = []
    seeds = int(row.get("seeds") or 1)
    unit = "sequences" if view.by.lower else "examples"
    over = f"over {seeds} seeds" if seeds > 1 else f"over the test {unit} of one training"
    for gap, other in _against(view, row, view.baseline if view.models else "the student"):
        said = view.by.verdict(gap)
        p_value = (row.get("mcnemar_teacher") or {}).get("p_value") if other == "the teacher" else None
        test = "" if p_value is None else f"; McNemar's p {'< 0.001' if p_value < 0.001 else f'= {p_value:.3f}'}"
        found.append(f"Smallest file against {other}: {said}, {over}{test}.")
    return found


def _warnings(table: Table) -> list[str]:
    """How many there are, of which sort: a warning reads ``slower than teacher at batch 1: ...``."""
    rows = [(row, list(row.get("warnings") or ())) for row in table.get("rows", [])]
    held = [(row, found) for row, found in rows if found]
    skipped = [str(row["name"]) for row, _ in rows if row.get("skipped")]
    told = []
    if held:
        sorts: dict[str, int] = {}
        for _, found in held:
            for sort in dict.fromkeys(_sort(text) for text in found):
                sorts[sort] = sorts.get(sort, 0) + 1
        kinds = joined([f"{sort} ({count})" for sort, count in sorted(sorts.items(), key=lambda one: -one[1])])
        controls = sum(bool(row.get("control")) for row, _ in held)
        among = f", {controls} of them controls" if controls else ""
        told.append(f"{len(held)} of {len(rows)} rows have warnings{among}: {kinds}. They stand beside their rows.")
    if skipped:
        told.append(f"Not made: {joined(skipped)}.")
    return told


def _sort(text: str) -> str:
    for start, called in (
        ("slower", "slower than what it was made from"),
        ("no smaller", "no smaller than what it was made from"),
        ("agrees with", "answers otherwise than what it was made from"),
        ("operators not fused", "operators not fused"),
        ("made for", "not made for every seed"),
    ):
        if start in text.split(" at batch")[0]:
            return called
    return text.split(":")[0]


def _missing(view: View, row: Row | None) -> list[str]:
    table = view.table
    rows = [one for one in table.get("rows", []) if one.get("accuracy") is not None]
    found = []
    if row is None:
        found.append("How small and fast it gets: no compressed file was measured.")
    if named(table, TEACHER) is None and not view.by.lower:
        found.append("How large and fast the teacher is: it has no row here.")
    if named(table, baseline_of(table)) is None:
        found.append("What it was made from: the model before compression has no row here.")
    if all(int(one.get("seeds") or 1) < 2 for one in rows):
        found.append("How much another training would vary: every row is of a single seed.")
    if all(one.get("validation_accuracy") is None for one in rows):
        found.append("What a choice by validation would be: nothing was measured on it.")
    if all(milliseconds(one) is None for one in rows):
        found.append("How fast it is: nothing was timed.")
    if not view.by.lower and not view.corrupted and all(one.get("corrupted_accuracy") is None for one in rows):
        found.append("What happens with corrupted images: none were tried.")
    return found
