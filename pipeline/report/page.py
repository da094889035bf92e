"""From findings and figures to one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pipeline import metrics
from pipeline.errors import some
from pipeline.identity import short
from pipeline.progress import Progress
from pipeline.report import (
    charts,
    claims,
    columns,
    commands,
    cost,
    figures,
    gains,
    losses,
    results,
    search,
    tutors,
    words,
)
from pipeline.report import series as numbers
from pipeline.report.artefacts import smallest
from pipeline.report.methods import KIND_MEANINGS, KIND_TITLES, KINDS
from pipeline.report.reading import Findings
from pipeline.report.rendering import Picture, picture, render_page
from pipeline.report.style import Drawing
from pipeline.report.tables import Table

FIGURES = ("accuracy", "claims", "tutors", "losses", "curves", "pareto", "front", "reliability", "confusion", "costs")
SECTIONS = (
    ("short", "In short"),
    ("accuracy", "Accuracy by student and labels"),
    ("claims", "Claims"),
    ("tutors", "Tutors"),
    ("losses", "Losses"),
    ("results", "All results"),
    ("curves", "Training curves"),
    ("models", "Models side by side"),
    ("compression", "Smaller and faster"),
    ("calibration", "Calibration"),
    ("confusions", "Confusions"),
    ("costs", "What the cache cost and saved"),
    ("provenance", "Provenance"),
)
"""Every section that a page may have, in its order: (name of its link, heading)."""


def draw(findings: Findings, progress: Progress) -> dict[str, Drawing]:
    """Every figure that the findings have numbers for, by name, in the order of the page."""
    makers: tuple[Callable[[], Drawing | None], ...] = (
        lambda: figures.accuracy(findings),
        lambda: claims.figure(findings.claims),
        lambda: tutors.figure(findings),
        lambda: losses.figure(findings),
        lambda: figures.curves(findings),
        lambda: charts.pareto(findings.compressed),
        lambda: search.front(findings.compressed),
        lambda: figures.reliability(findings),
        lambda: figures.confusion(findings),
        lambda: charts.costs(cost.bars(findings)),
    )
    drawings: dict[str, Drawing] = {}
    with progress.bar("report", len(makers), "figures") as bar:
        for make in makers:
            drawing = make()
            if drawing is not None:
                drawings[drawing.name] = drawing
            bar.update(1)
    return drawings


def render(findings: Findings, drawings: Mapping[str, Drawing], title: str, command: str = "") -> str:
    """The page. All text is escaped; the one script is its own, and nothing is asked of any network."""
    pictures: dict[str, Picture | None] = {
        name: picture(drawings[name]) if name in drawings else None for name in FIGURES
    }
    families, gaps = losses.families(findings), tutors.gaps(findings)
    contrasts, calibrated, confused = (
        words.contrasts(findings),
        figures.calibrated_cells(findings),
        figures.confused_cells(findings),
    )
    shown: dict[str, Any] = {
        "summary": [*claims.summary(findings.claims), *words.summary(findings), *losses.summary(findings)],
        "results": results.results(findings),
        "contrasts": results.contrasts(contrasts),
        "claims": results.claim_table(findings.claims),
        "tutors": results.tutor_table(gaps),
        "losses": results.loss_table(families),
        "compression": columns.rows_table("Artefacts and controls", findings.compressed.get("rows", [])),
        "models": columns.rows_table("Models side by side", findings.models.get("rows", [])),
        "front": numbers.front_table(findings.compressed),
        "costs": results.cost_table(findings),
        "provenance": results.provenance_table(provenance(findings)),
        "commands": results.command_table(findings),
    }
    present = {
        "short": shown["summary"], "accuracy": shown["results"], "curves": pictures["curves"],
        "calibration": pictures["reliability"], "confusions": pictures["confusion"],
    }  # fmt: skip
    return render_page(
        "page.html.j2",
        title,
        **shown,
        sections=[(name, heading) for name, heading in SECTIONS if present.get(name, shown.get(name))],
        answers=gains.answers(findings),
        pictures=pictures,
        numbers_of=figure_numbers(findings),
        sample=words.sample(findings),
        split=findings.cells[0].details["split"],
        noise_note=words.noise_note(findings),
        tiles=tiles(findings),
        meanings=[(KIND_TITLES[k], KIND_MEANINGS[k]) for k in KINDS if any(c.method.kind == k for c in findings.cells)],
        has_omitted=any(cell.omitted for cell in findings.cells),
        by_chance=losses.expected_by_chance(families),
        compressed=findings.compressed,
        scaled=any("calibrated_ece" in cell.metrics for cell in calibrated),
        confused=len(confused),
        featured=findings.featured,
        temperature=findings.cells[0].details["temperature"],
        bins=len(findings.best.details["reliability"]["counts"]),
        evaluated=commands.evaluate(findings.best),
        trained=commands.train(findings.best),
        compared=commands.compare(contrasts[0].first, contrasts[0].second) if contrasts else "",
        claimed=commands.claim(findings.claims[0]) if findings.claims else "",
        compress_line=commands.compress(findings.compressed),
        dumped=commands.dump(findings),
        modelled=findings.models,
        models_line=str(findings.models.get("command") or ""),
        report_line=command,
    )


def figure_numbers(findings: Findings) -> dict[str, Any]:
    """By figure, the table of what it shows, where no other table of the page says it."""
    confused: list[Table] = [t for cell in figures.confused_cells(findings) if (t := numbers.confusion_table(cell))]
    return {
        "accuracy": numbers.accuracy_table(findings),
        "curves": numbers.curves_table(findings),
        "reliability": numbers.reliability_table(figures.calibrated_cells(findings)),
        "confusion": confused,
    }


def tiles(findings: Findings) -> list[tuple[str, str, str]]:
    """(label, figure, note) of the numbers that the page opens with."""
    best = findings.best
    found: list[tuple[str, str, str]] = []
    teacher_size = findings.teacher_parameters
    if findings.teacher_accuracy is not None:
        note = f"{teacher_size:,} parameters" if teacher_size else "from its cached labels"
        found.append(("Teacher", words.percent(findings.teacher_accuracy), note))
    values = list(best.accuracy.values())
    reach = metrics.half_width(values)
    spread = "" if math.isnan(reach) else f" ± {100 * reach:.1f}"
    smaller = f", {teacher_size / best.parameters:,.0f} times fewer" if teacher_size else ""
    found.append(
        (
            f"Best student: {best.student}",
            f"{100 * metrics.spread(values)[0]:.1f}%",
            f"{best.method.full_title}{spread and f' ({spread.strip()})'}; {best.parameters:,} parameters{smaller}",
        )
    )
    last = smallest(findings.compressed)
    if last:
        found.append(
            (
                "Smallest artefact",
                f"{last['bytes'] / 1e3:,.1f} kB",
                f"{last['name']}, {words.percent(last['accuracy'])} accuracy",
            )
        )
    reads = cost.labels_read(findings)
    entries = findings.dump.get("entries")
    if reads and entries:
        found.append(("Teacher answers", f"{entries:,}", f"asked for once; read {reads:,} times in training"))
    return found


def provenance(findings: Findings) -> list[tuple[str, str]]:
    """(what, value) of everything that decides the figures."""
    identity = findings.manifest.get("identity", {})
    first = findings.cells[0].details
    config = first.get("config") or {}
    pairs: list[tuple[str, Any]] = [
        ("data", f"{config.get('data', '')}, digest {short(first['data_digest'])}"),
        ("classes", f"{len(first['class_names'])}: {some(first['class_names'], 12)}"),
    ]
    if identity:
        teacher, views = identity.get("teacher", {}), identity.get("views", {})
        transform = (
            f"{views.get('transform')}, seed {views.get('seed')}" if views.get("transform") else "the plain one only"
        )
        pairs += [
            ("cache identity", identity.get("digest", "")),
            ("teacher", f"{teacher.get('reference')}, weights {short(str(teacher.get('state', '')))}"),
            ("preprocessing", identity.get("preprocessing", "")),
            ("views per training example", f"{views.get('count')}: {transform}"),
            ("encoding", _flat(identity.get("encoding", {}))),
        ]
    if findings.dump.get("environment"):
        pairs.append(("dump environment", _flat(findings.dump["environment"])))
    if findings.compressed:
        pairs.append(
            ("compressed", f"{findings.compressed['run']}, seed {findings.compressed['seed']}, chosen on validation")
        )
        pairs.append(("compression environment", _flat(findings.compressed.get("versions", {}))))
    return [(name, str(value)) for name, value in pairs if value]


def _flat(value: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item not in (None, "", [], {}))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({_flat(value)})"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
