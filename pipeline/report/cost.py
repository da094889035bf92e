"""What the cache cost and what it saved, each figure with where it comes from: measured, or computed from what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report.methods import HARD, is_soft
from pipeline.report.reading import Cell, Findings
from pipeline.report.words import NONE


def soft_reads(cell: Cell) -> int:
    """Soft labels that one run took from the cache, over all its seeds and epochs; 0 for hard labels."""
    if cell.method.kind == HARD:
        return 0
    visits = int(cell.record.get("lineage", {}).get("visits_per_epoch", 0))
    return visits * sum(int(seed["epochs"]) for seed in cell.record.get("seeds", []))


def runs(findings: Findings) -> tuple[Cell, ...]:
    """A cell of each run: one may have been evaluated twice, with a bias corrected and without."""
    return tuple({str(cell.details.get("run")): cell for cell in findings.cells}.values())


def labels_read(findings: Findings) -> int:
    """Soft labels read over all runs: what a live teacher would have had to answer anew; of sequences, of each one."""
    if findings.cells:
        return sum(soft_reads(cell) for cell in runs(findings))
    return sum(_visits(record) * epochs for record, epochs in _cached(findings))


def _cached(findings: Findings) -> list[tuple[Mapping[str, Any], int]]:
    """Runs that learnt from a cache, with their epochs over all seeds, where no evaluation of one is on the page."""
    found = []
    for record in findings.runs.values():
        config = record.get("config") or {}
        if is_soft(config) and any(config.get(name) for name in ("cache", "labels", "route")):
            found.append((record, sum(int(seed.get("epochs") or 0) for seed in record.get("seeds") or ())))
    return found


def _visits(record: Mapping[str, Any]) -> int:
    return int((record.get("lineage") or {}).get("visits_per_epoch") or 0)


def epoch_seconds(findings: Findings) -> float | None:
    """What the teacher takes for one epoch of one student: its time per answer, times what an epoch visits."""
    each = per_answer(findings.dump)
    visits = max((_visits(record) for record, _ in _cached(findings)), default=0)
    return each * visits if each is not None and visits else None


def training_seconds(cell: Cell) -> float | None:
    """Wall time of one run over all its seeds, as it recorded it."""
    value = cell.timing.get("seconds")
    return float(value) if value else None


def per_answer(dump: Mapping[str, Any]) -> float | None:
    """Seconds of teacher per answer during the dump; None when it was not measured for all of its parts."""
    seconds, entries = dump.get("teacher_seconds"), dump.get("entries")
    return float(seconds) / int(entries) if seconds and entries and not dump.get("resumed") else None


def live_seconds(findings: Findings) -> float | None:
    """What the teacher alone would have taken with no cache: its time per answer, times the labels read."""
    each, reads = per_answer(findings.dump), labels_read(findings)
    return each * reads if each is not None and reads else None


def bars(findings: Findings) -> list[tuple[str, float, bool]]:
    """(what, seconds, measured) for the figure; empty without a dump that measured its teacher."""
    live = live_seconds(findings)
    if live is None:
        return []
    once = float(findings.dump["teacher_seconds"])
    found = [("teacher, once, for the cache", once, True), ("teacher, live in every epoch", live, False)]
    if findings.tokens and (epoch := epoch_seconds(findings)) is not None:
        found.insert(1, ("teacher, live in one epoch", epoch, False))
    trained = [s for s in map(training_seconds, runs(findings)) if s is not None]
    if trained:
        found.append((f"training of all {len(trained)} runs", sum(trained), True))
    return found


def lines(findings: Findings) -> list[tuple[str, str, str]]:
    """(what, figure, where it comes from) for the table."""
    dump = findings.dump
    found: list[tuple[str, str, str]] = []
    if dump.get("entries"):
        size = f"{dump['bytes'] / 1e6:,.2f} MB" if dump.get("bytes") else NONE
        each = f"{dump.get('bytes_per_entry', 0):,.0f} B for each of {dump['entries']:,} entries"
        if findings.tokens and dump.get("positions") and dump.get("bytes"):
            each = (
                f"{dump['bytes'] / dump['positions']:,.1f} B for each of {dump['positions']:,} positions of "
                f"{dump['entries']:,} sequences"
            )
        found.append(("Size of the cache", size, f"measured: all files, {each}"))
    if dump.get("teacher_seconds"):
        found.append(
            (
                "Teacher time of the dump",
                _seconds(dump["teacher_seconds"]),
                f"measured on {dump.get('device', 'its device')}: forward passes alone",
            )
        )
        found.append(
            ("The whole dump", _seconds(dump["seconds"]), "measured: loading, views, encoding and writing too")
        )
    reads = labels_read(findings)
    if reads:
        what = "Sequences whose soft labels were read" if findings.tokens else "Soft labels read in training"
        found.append((what, f"{reads:,}", "counted over all runs, seeds and epochs"))
    if findings.tokens and (epoch := epoch_seconds(findings)) is not None:
        each = f"{epoch / float(dump['teacher_seconds']):,.2f} times the dump's, which asked about all splits"
        found.append(
            (
                "Teacher time of one epoch without a cache",
                _seconds(epoch),
                f"computed: time per answer by visits; {each}",
            )
        )
    live = live_seconds(findings)
    if live is not None and dump.get("teacher_seconds"):
        ratio = live / float(dump["teacher_seconds"])
        found.append(
            (
                "Teacher time without a cache",
                _seconds(live),
                f"computed: time per answer by labels read; {ratio:,.1f} times the dump's",
            )
        )
    trained = [s for s in map(training_seconds, runs(findings)) if s is not None]
    if trained:
        found.append(
            (
                "Training of all students",
                _seconds(sum(trained)),
                f"measured: {len(trained)} runs, all seeds, data loading included",
            )
        )
    bound: Any = findings.manifest.get("bound")
    if bound is not None:
        found.append(
            (
                "Declared bound of the encoding",
                f"{float(bound):.3g}",
                "largest absolute error, from the manifest; 0 is exact",
            )
        )
    return found


def _seconds(value: Any) -> str:
    seconds = float(value)
    if seconds >= 600:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds:,.2f} s" if seconds < 10 else f"{seconds:,.0f} s"
