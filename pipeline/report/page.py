"""From findings and figures to one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.progress import Progress
from pipeline.report import (
    charts,
    claims,
    columns,
    commands,
    cost,
    explaining,
    facts,
    figures,
    gains,
    language,
    losses,
    results,
    search,
    training_curves,
    trials,
    tutors,
    words,
    writing,
)
from pipeline.report import series as numbers
from pipeline.report.methods import KIND_MEANINGS, KIND_TITLES, KINDS
from pipeline.report.reading import Findings
from pipeline.report.rendering import Picture, picture, render_page
from pipeline.report.style import Drawing
from pipeline.report.tables import Table

FIGURES = (
    "accuracy", "claims", "tutors", "losses", "curves", "predicting", "models", "pareto", "front",
    "reliability", "confusion", "costs",
)  # fmt: skip
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
    ("writing", "What the models write"),
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
        lambda: figures.curves(findings) or training_curves.figure(findings),
        lambda: language.predicting(findings.models),
        lambda: charts.pareto(findings.models, "models"),
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
    compressed_rows, model_rows = findings.compressed.get("rows", []), findings.models.get("rows", [])
    best = findings.best if findings.cells else None
    shown: dict[str, Any] = {
        "summary": [
            *claims.summary(findings.claims),
            *(words.summary(findings) if best else []),  # without students the plain words say it already
            *losses.summary(findings),
        ],
        "results": results.results(findings),
        "contrasts": results.contrasts(contrasts),
        "claims": results.claim_table(findings.claims),
        "tutors": results.tutor_table(gaps),
        "losses": results.loss_table(families),
        "compression": columns.rows_table("Artefacts and controls", compressed_rows),
        "compression_more": columns.more_tables("Artefacts and controls", compressed_rows),
        "models": columns.rows_table("Models side by side", model_rows),
        "models_more": columns.more_tables("Models side by side", model_rows),
        "front": numbers.front_table(findings.compressed),
        "front_commands": numbers.front_commands(findings.compressed),
        "within": numbers.within_table(findings.compressed),
        "writing": writing.writing(findings),
        "costs": results.cost_table(findings),
        "provenance": results.provenance_table(facts.provenance(findings)),
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
        split=words.split(findings),
        noise_note=words.noise_note(findings),
        tiles=facts.tiles(findings),
        meanings=[(KIND_TITLES[k], KIND_MEANINGS[k]) for k in KINDS if any(c.method.kind == k for c in findings.cells)],
        has_omitted=any(cell.omitted for cell in findings.cells),
        by_chance=losses.expected_by_chance(families),
        compressed=findings.compressed,
        scaled=any("calibrated_ece" in cell.metrics for cell in calibrated),
        confused=len(confused),
        featured=findings.featured if best else "",
        temperature=findings.cells[0].details["temperature"] if best else 1.0,
        bins=len(calibrated[0].details["reliability"]["counts"]) if calibrated else 0,
        unit="tokens" if findings.tokens else "examples",
        good="good" if findings.tokens else "accurate",
        counted=words.counted(findings.models),
        predicting=language.predicting_table(findings.models),
        evaluated=commands.evaluate(best) if best else "",
        trained=commands.train(best) if best else training_curves.trained(findings),
        measure=training_curves.measure_of(findings),
        compared=commands.compare(contrasts[0].first, contrasts[0].second) if contrasts else "",
        claimed=commands.claim(findings.claims[0]) if findings.claims else "",
        compress_line=commands.compress(findings.compressed),
        dumped=commands.dump(findings),
        modelled=findings.models,
        explained={"compressed": explaining.explained(compressed_rows), "models": explaining.explained(model_rows)},
        making=trials.tables(compressed_rows),
        each_compressed=trials.models_tables(findings.compressed),
        each_model=trials.models_tables(findings.models),
        models_line=str(findings.models.get("command") or ""),
        report_line=command,
    )


def figure_numbers(findings: Findings) -> dict[str, Any]:
    """By figure, the table of what it shows, where no other table of the page says it."""
    if not findings.cells:
        calibrated = numbers.reliability_table(figures.calibrated_cells(findings))
        curves = training_curves.curves_table(findings)
        return {**dict.fromkeys(("accuracy", "confusion")), "curves": curves, "reliability": calibrated}
    confused: list[Table] = [t for cell in figures.confused_cells(findings) if (t := numbers.confusion_table(cell))]
    return {
        "accuracy": numbers.accuracy_table(findings),
        "curves": numbers.curves_table(findings),
        "reliability": numbers.reliability_table(figures.calibrated_cells(findings)),
        "confusion": confused,
    }
