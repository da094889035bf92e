"""The tables of the page: results, comparisons, losses, tutors, claims, costs, provenance and commands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath

from pipeline import metrics
from pipeline.report import claims as claimed
from pipeline.report import commands, cost, losses, tutors, words
from pipeline.report.methods import OMITTED
from pipeline.report.reading import Cell, Findings
from pipeline.report.tables import Entry, Head, Table, grouped, number, table, verdict


def contrasts(found: Sequence[words.Contrast]) -> Table | None:
    """Pairs of labels, student by student, with verdicts."""
    heads = (
        Head("Setting", left=True, wrap=True),
        "Student",
        Head("Compared", left=True, wrap=True),
        Head("First, %"),
        Head("Second, %"),
        Head("Difference, points"),
        "Verdict",
    )
    rows = [
        (
            Entry(c.first.method.setting_title),
            Entry(c.first.student),
            Entry(f"{c.first.method.title} against {c.second.method.title}"),
            number(c.first.mean(), 1, 100),
            number(c.second.mean(), 1, 100),
            Entry(c.points, c.result.difference),
            verdict(c.verdict, c.verdict),
        )
        for c in found
    ]
    return table("Labels compared, paired by seed and test example", heads, rows)


def results(findings: Findings) -> Table | None:
    """Every cell with its figures."""
    omitted = any(cell.omitted for cell in findings.cells)

    def row(cell: Cell) -> list[Entry]:
        flat, values = cell.metrics, list(cell.accuracy.values())
        reach = metrics.half_width(values)
        own = cell.omitted and cell.method.setting == OMITTED
        missing = metrics.spread(list(cell.omitted.values()))[0] if own else None
        return [
            Entry(f"{cell.student}, {cell.method.title}"),
            number(
                metrics.spread(values)[0],
                1,
                100,
                strong=True,
                minor="" if math.isnan(reach) else f"± {100 * reach:.1f}",
            ),
            number(cell.validation, 1, 100),
            *([number(missing, 1, 100) if own else Entry("", math.nan)] if omitted else []),
            number(flat.get("nll"), 3),
            number(flat.get("brier"), 3),
            number(flat.get("ece"), 1, 100),
            number(flat.get("teacher_agreement"), 1, 100),
            number(flat.get("kl_to_teacher"), 3),
            number(float(cell.parameters), 0),
            number(float(cell.seeds), 0),
        ]

    heads = [
        Head("Student and labels", left=True, wrap=True),
        Head("Accuracy, %", better="higher"),
        Head("On validation, %", better="higher"),
        *([Head("On the omitted class, %", better="higher")] if omitted else []),
        Head("NLL, nats", better="lower"),
        Head("Brier score", better="lower"),
        Head("ECE, points", better="lower"),
        Head("Agrees with teacher, %"),
        Head("KL to teacher, nats"),
        Head("Parameters", better="lower"),
        Head("Seeds"),
    ]
    titles = dict.fromkeys(cell.method.setting_title for cell in findings.cells)
    groups = [(title, [row(c) for c in findings.cells if c.method.setting_title == title]) for title in titles]
    return grouped("All results", heads, groups)


def loss_table(families: Sequence[losses.Family]) -> Table | None:
    """Ways of training that differ in their loss alone, a group per student and setting."""

    def row(line: losses.Line) -> list[Entry]:
        flat = line.cell.metrics
        tone = line.contrast.verdict if line.contrast and line.verdict != "within noise" else "noise"
        return [
            Entry(line.name),
            number(line.cell.mean(), 1, 100, strong=True),
            number(line.deviation),
            Entry(line.contrast.points, line.contrast.result.difference) if line.contrast else Entry(""),
            verdict(line.verdict, tone) if line.verdict else Entry(""),
            number(flat.get("nll"), 3),
            number(flat.get("ece"), 1, 100),
            number(flat.get("teacher_agreement"), 1, 100),
        ]

    heads = (
        Head("Loss", left=True, wrap=True),
        Head("Mean, %", better="higher"),
        Head("s over seeds"),
        Head("Against the reference, points", better="higher"),
        "Verdict",
        Head("NLL, nats", better="lower"),
        Head("ECE, points", better="lower"),
        Head("Agrees with teacher, %"),
    )
    return grouped("Losses compared", heads, [(f.title, [row(line) for line in f.lines]) for f in families])


def tutor_table(gaps: Sequence[tutors.Gap]) -> Table | None:
    """Students by their tutors."""
    heads = (
        "Tutor",
        Head("Parameters"),
        Head("Its accuracy, %"),
        Head("Student of it alone, %", better="higher"),
        Head("s"),
        Head("Against the teacher alone, points", better="higher"),
        Head("Of both, %", better="higher"),
        Head("s, of both"),
        Head("Of both against the teacher alone, points", better="higher"),
    )
    names = ("own", "alone", "alone_spread", "alone_points", "both", "both_spread", "both_points")
    groups = []
    for gap in gaps:
        title = gap.student
        title += f": {100 * gap.teacher.mean():.1f}% by the teacher alone" if gap.teacher else ""
        title += f", {100 * gap.hard.mean():.1f}% on hard labels" if gap.hard else ""
        lines = [
            [
                Entry(row["tutor"]),
                Entry(row["parameters"], float(step.tutor.parameters)),
                *(Entry(row[name], _leading_number(row[name]), strong=name in ("alone", "both")) for name in names),
            ]
            for row, step in zip(tutors.rows(gap), gap.steps, strict=True)
        ]
        groups.append((title, lines))
    return grouped("Students by their tutors", heads, groups)


def claim_table(claims: Sequence[claimed.Claim]) -> Table | None:
    """What was claimed, and what was seen."""
    heads = (
        Head("Claim", left=True, wrap=True),
        Head("Source", left=True, wrap=True),
        Head("Compared", left=True, wrap=True),
        Head("Figure", left=True, wrap=True),
        Head("First and second"),
        Head("Seeds"),
        Head("Expected", left=True, wrap=True),
        Head("Difference"),
        "Outcome",
    )
    rows = [
        (
            row["claim"],
            row["source"],
            f"{row['first']} against {row['second']}",
            row["figure"],
            row["values"],
            Entry(row["seeds"], _leading_number(row["seeds"])),
            row["expected"],
            Entry(row["difference"], _leading_number(row["difference"])),
            verdict(row["outcome"], row["tone"]),
        )
        for row in claimed.rows(claims)
    ]
    return table("Claims and outcomes", heads, rows)


def cost_table(findings: Findings) -> Table | None:
    """What the cache cost and saved."""
    rows = [(Entry(what), Entry(figure), Entry(origin)) for what, figure, origin in cost.lines(findings)]
    return table("Costs", ("What", Head("Figure"), Head("Where it comes from", left=True, wrap=True)), rows, fixed=True)


def provenance_table(pairs: Sequence[tuple[str, str]]) -> Table | None:
    """What decides the figures."""
    heads = ("What", Head("Value", left=True, mono=True))
    return table("Provenance", heads, pairs, fixed=True)


def command_table(findings: Findings) -> Table | None:
    """The commands of every teacher, cache, run and evaluation, as far as they are recorded."""
    single = [("teacher", commands.teacher(findings)), ("cache", commands.dump(findings))]
    rows = [(name, command) for name, command in single if command]
    for cell in findings.cells:
        rows += [(cell.name, command) for command in (commands.train(cell), commands.evaluate(cell)) if command]
    evaluated = {cell.run.as_posix() for cell in findings.cells if cell.run is not None}
    for folder, record in findings.runs.items():
        if folder not in evaluated and (command := commands.train_run(folder, record)):
            rows.append((PurePath(folder).name, command))
    if findings.compressed:
        rows += [("compressed", command) for command in commands.compress_all(findings.compressed)]
    if findings.models.get("command"):
        rows.append(("models", str(findings.models["command"])))
    return table("Commands", ("Makes", Head("Command", left=True, mono=True)), rows, fixed=True)


def _leading_number(text: str) -> float:
    """The number that a text starts with; NaN without one."""
    head = text.split(" ")[0].replace(words.MINUS, "-").replace(",", "").rstrip("%")
    try:
        return float(head)
    except ValueError:
        return math.nan
