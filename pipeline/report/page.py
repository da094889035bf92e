"""From findings and figures to one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline import metrics
from pipeline.errors import some
from pipeline.identity import short
from pipeline.progress import Progress
from pipeline.report import charts, claims, cost, figures, losses, tutors, words
from pipeline.report.methods import KIND_MEANINGS, KIND_TITLES, KINDS, OMITTED
from pipeline.report.reading import Cell, Findings
from pipeline.report.style import Drawing

PIXELS_PER_INCH = 97
FIGURES = ("accuracy", "claims", "tutors", "losses", "curves", "pareto", "reliability", "confusion", "costs")


def draw(findings: Findings, progress: Progress) -> dict[str, Drawing]:
    """Every figure that the findings have numbers for, by name, in the order of the page."""
    makers: tuple[Callable[[], Drawing | None], ...] = (
        lambda: figures.accuracy(findings),
        lambda: claims.figure(findings.claims),
        lambda: tutors.figure(findings),
        lambda: losses.figure(findings),
        lambda: figures.curves(findings),
        lambda: charts.pareto(findings.compressed),
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


def render(findings: Findings, drawings: Mapping[str, Drawing], title: str) -> str:
    """The page. All text is escaped; figures are SVG in data addresses, where no script can run."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = words.percent
    families = losses.families(findings)
    pictures = {name: _picture(drawings[name]) if name in drawings else None for name in FIGURES}
    return environment.get_template("page.html.j2").render(
        title=title,
        findings=findings,
        pictures=pictures,
        sample=words.sample(findings),
        noise_note=words.noise_note(findings),
        summary=[*claims.summary(findings.claims), *words.summary(findings), *losses.summary(findings)],
        tiles=tiles(findings),
        meanings=[(KIND_TITLES[k], KIND_MEANINGS[k]) for k in KINDS if any(c.method.kind == k for c in findings.cells)],
        results=[result_row(cell) for cell in findings.cells],
        has_omitted=any(cell.omitted for cell in findings.cells),
        contrasts=words.contrasts(findings),
        families=[(family, [loss_row(line) for line in family.lines]) for family in families],
        claims=claims.rows(findings.claims),
        gaps=[(gap, tutors.rows(gap)) for gap in tutors.gaps(findings)],
        by_chance=losses.expected_by_chance(families),
        compression=[compression_row(row) for row in findings.compressed.get("rows", [])],
        latency_sizes=latency_sizes(findings.compressed),
        compressed=findings.compressed,
        costs=cost.lines(findings),
        provenance=provenance(findings),
        calibrated=figures.calibrated_cells(findings),
        scaled=any("calibrated_ece" in cell.metrics for cell in figures.calibrated_cells(findings)),
        confused=figures.confused_cells(findings),
    )


def _picture(drawing: Drawing) -> Markup:
    data = base64.b64encode(drawing.svg).decode("ascii")
    return Markup('<img src="data:image/svg+xml;base64,{}" alt="{}" style="max-width: {}px">').format(
        data, drawing.alternative, round(drawing.inches * PIXELS_PER_INCH)
    )


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
    rows = {row["name"]: row for row in findings.compressed.get("rows", [])}
    last = rows.get("pruned-int8") or rows.get("int8")
    if last and last.get("bytes") and last.get("accuracy") is not None:
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


def result_row(cell: Cell) -> dict[str, Any]:
    """One line of the table of results, as text."""
    mean, _ = metrics.spread(list(cell.accuracy.values()))
    reach = metrics.half_width(list(cell.accuracy.values()))
    flat = cell.metrics
    return {
        "cell": cell,
        "accuracy": f"{100 * mean:.1f}",
        "reach": "" if math.isnan(reach) else f"± {100 * reach:.1f}",
        "validation": words.NONE if math.isnan(cell.validation) else f"{100 * cell.validation:.1f}",
        "omitted": f"{100 * metrics.spread(list(cell.omitted.values()))[0]:.1f}"
        if cell.omitted and cell.method.setting == OMITTED
        else "",
        "nll": _number(flat.get("nll"), 3),
        "ece": _number(flat.get("ece"), 1, 100),
        "agreement": _number(flat.get("teacher_agreement"), 1, 100),
        "kl": _number(flat.get("kl_to_teacher"), 3),
        "parameters": f"{cell.parameters:,}",
        "seeds": cell.seeds,
    }


def loss_row(line: losses.Line) -> dict[str, Any]:
    """One line of the table of losses, as text."""
    flat = line.cell.metrics
    return {
        "name": line.name,
        "mean": f"{100 * line.cell.mean():.1f}",
        "deviation": _number(line.deviation, 1),
        "points": line.contrast.points if line.contrast else "",
        "verdict": line.verdict,
        "tone": line.contrast.verdict if line.contrast and line.verdict != "within noise" else "noise",
        "nll": _number(flat.get("nll"), 3),
        "ece": _number(flat.get("ece"), 1, 100),
        "agreement": _number(flat.get("teacher_agreement"), 1, 100),
    }


def latency_sizes(compressed: Mapping[str, Any]) -> list[str]:
    """Batch sizes that were timed, smallest first."""
    return sorted({size for row in compressed.get("rows", []) for size in row.get("latency") or {}}, key=int)


def compression_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the table of compression, as text."""
    gap, check = row.get("against_baseline"), row.get("check")
    return {
        "name": row["name"],
        "what": row["what"],
        "control": row.get("control"),
        "accuracy": _number(row.get("accuracy"), 1, 100),
        "gap": "" if not gap else f"{words.signed(100 * gap['difference'])} ± {100 * gap['half_width']:.1f}",
        "kilobytes": _number(row.get("bytes"), 1, 1e-3),
        "latency": {size: f"{value['p50']:.3f}" for size, value in (row.get("latency") or {}).items()},
        "tail": {size: f"{value['p95']:.3f}" for size, value in (row.get("latency") or {}).items()},
        "agreement": _number(row.get("agreement"), 1, 100),
        "difference": words.NONE if not check else f"{check['max_difference']:.2g}",
        "notes": [
            *([f"Skipped: {row['skipped']}"] if row.get("skipped") else []),
            *(_sentence(w) for w in row.get("warnings", [])),
        ],
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return words.NONE if value is None or math.isnan(value) else f"{value * scale:,.{digits}f}"


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
