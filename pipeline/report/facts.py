"""What the page opens and closes with: its heading, its tiles of numbers, and where everything came from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import metrics
from pipeline.errors import some
from pipeline.identity import short
from pipeline.report import cost, words
from pipeline.report.artefact_gains import SMALLER
from pipeline.report.artefacts import TEACHER, Row, baseline_of, named, smallest, smallest_as_good
from pipeline.report.language import seeds_of, teacher_of
from pipeline.report.reading import Findings
from pipeline.report.sizes import joined, kilobytes, percent, ratio
from pipeline.report.yardstick import PERPLEXITY, yardstick

Tile = tuple[str, str, str]


def heading(findings: Findings) -> str:
    """What the page is called where nobody said otherwise."""
    if findings.cells:
        return "What distillation from the cache brought"
    if findings.tokens and findings.models:
        return "Language models compared"
    return "What compression brought" if findings.compressed else "Models compared"


def tiles(findings: Findings) -> list[Tile]:
    """(label, figure, note) of the numbers that the page opens with."""
    if findings.cells:
        found = list(_students(findings))
    else:
        found = list(_language(findings) if findings.tokens else _models(findings))
    table = findings.compressed or ({} if findings.cells else findings.models)
    last, good = smallest(table), smallest_as_good(table)
    base = named(table, baseline_of(table)) if table is findings.models and findings.tokens else None
    if last and not (base and last["bytes"] > SMALLER * (base.get("bytes") or 0)):
        found.append(("Smallest artefact", kilobytes(last["bytes"]), _artefact(last, table)))
    if good and last and good["name"] != last["name"] and not findings.cells:
        found.append(("Smallest not shown worse", kilobytes(good["bytes"]), _artefact(good, table)))
    points = findings.compressed.get("front") or ()
    if points:
        count = sum(bool(point.get("on_front")) for point in points)
        found.append(("Worth having", f"{count} of {len(points)}", "recipes: no other is as accurate, small and fast"))
    reads = cost.labels_read(findings)
    entries, positions = findings.dump.get("entries"), findings.dump.get("positions")
    if findings.tokens and positions and findings.dump.get("bytes"):
        each = findings.dump["bytes"] / positions
        found.append(("Cache", f"{each:,.1f} B", f"for each of {positions:,} positions, asked for once"))
    elif reads and entries:
        found.append(("Teacher answers", f"{entries:,}", f"asked for once; read {reads:,} times in training"))
    return found


def _language(findings: Findings) -> Iterator[Tile]:
    """Of language models: the teacher, the best student on validation where that was measured, and its drafts."""
    table = findings.models or findings.compressed
    teacher, size = teacher_of(table), findings.teacher_parameters
    if teacher:
        yield "Teacher, perplexity", f"{teacher['perplexity']:,.2f}", f"{size:,} parameters" if size else ""
    best = _best(table)
    if best is None:
        return
    seeds = int(best.get("seeds") or 1)
    spread = f" (s = {best.get('perplexity_std') or 0.0:.2f} over {seeds} seeds)" if seeds > 1 else ""
    smaller = f", {ratio(size / best['parameters'])} times fewer" if size and best.get("parameters") else ""
    note = f"; {best['parameters']:,} parameters{smaller}" if best.get("parameters") else ""
    yield "Best model, perplexity", f"{best['perplexity']:,.2f}", f"{best['name']}{spread}{note}"
    if best.get("acceptance") is not None and best.get("tokens_per_call") is not None:
        note = f"{best['tokens_per_call']:.2f} tokens for each call of the teacher, 4 drafted"
        yield "Its drafts, accepted", percent(best["acceptance"]), note


def _best(table: Mapping[str, Any]) -> Row | None:
    """The row that predicts validation best, where all were measured on it, or else the split; no control."""
    rows = [row for row in table.get("rows", []) if row.get("perplexity") is not None and not row.get("control")]

    def on_validation(row: Row) -> float:
        seeds = seeds_of(table, str(row["name"])).values()
        found = [float((seed.get("validation") or {}).get("nll") or math.nan) for seed in seeds]
        return sum(found) / len(found) if found else math.nan

    known = [on_validation(row) for row in rows]
    if any(map(math.isnan, known)):
        known = [float(row["perplexity"]) for row in rows]
    return min(zip(known, rows, strict=True), key=lambda one: one[0])[1] if rows else None


def _students(findings: Findings) -> Iterator[Tile]:
    best = findings.best
    teacher_size = findings.teacher_parameters
    if findings.teacher_accuracy is not None:
        note = f"{teacher_size:,} parameters" if teacher_size else "from its cached labels"
        yield "Teacher", words.percent(findings.teacher_accuracy), note
    values = list(best.accuracy.values())
    reach = metrics.half_width(values)
    spread = "" if math.isnan(reach) else f" ± {100 * reach:.1f}"
    smaller = f", {teacher_size / best.parameters:,.0f} times fewer" if teacher_size else ""
    yield (
        f"Best student: {best.student}",
        f"{100 * metrics.spread(values)[0]:.1f}%",
        f"{best.method.full_title}{spread and f' ({spread.strip()})'}; {best.parameters:,} parameters{smaller}",
    )


def _models(findings: Findings) -> Iterator[Tile]:
    """Of a page of artefacts: the teacher and what they were made from or are held against."""
    for name, label in ((TEACHER, "Teacher"), (None, "Before compression" if findings.compressed else "Baseline")):
        table = findings.compressed or findings.models
        row = named(table, name or baseline_of(table))
        if row is not None:
            size = f", {kilobytes(row['bytes'])}" if row.get("bytes") else ""
            yield label, words.percent(row["accuracy"]), f"{row['name']}{size}"


def _artefact(row: Row, table: Mapping[str, Any]) -> str:
    """Its name, its accuracy, and how much faster it is than the baseline at the largest batch."""
    base = named(table, baseline_of(table)) or {}
    by = yardstick(table)
    figure = f"{words.percent(row['accuracy'])} accuracy"
    text = f"{row['name']}, {by.phrase(row[by.key]) if by is PERPLEXITY else figure}"
    shared = (row.get("latency") or {}).keys() & (base.get("latency") or {}).keys()
    if not shared:
        return text
    size = max(shared, key=int)
    times = base["latency"][size]["p50"] / row["latency"][size]["p50"]
    label = "faster" if times > 1 else "slower"
    return f"{text}; {ratio(max(times, 1 / times))} times {label} at batch {size}"


def provenance(findings: Findings) -> list[tuple[str, str]]:
    """(what, value) of everything that decides the figures."""
    pairs: list[tuple[str, Any]] = []
    if details := _details(findings):
        pairs += [
            ("data", _data(findings, details)),
            ("vocabulary", f"{details['vocabulary']:,} tokens")
            if details.get("vocabulary")
            else ("classes", f"{len(details['class_names'])}: {some(details['class_names'], 12)}"),
        ]
        if isinstance(teacher := details.get("cache"), Mapping) and teacher.get("teacher"):
            pairs.append(("teacher asked", f"{teacher['teacher']}, weights {short(str(teacher.get('state', '')))}"))
    if findings.manifest.get("identity"):
        pairs += _cache(findings.manifest["identity"])
    if findings.dump.get("environment"):
        pairs.append(("dump environment", _flat(findings.dump["environment"])))
    table = findings.compressed
    if table:
        pairs += [
            ("compressed", _compressed(table)),
            ("compression environment", _flat(table.get("versions", {}))),
            ("timed on", _machine(table)),
        ]
        if "finetuning" in table:
            pairs.append(("fine-tuning", _flat(table["finetuning"])))
    if findings.models:
        pairs.append(("models measured with", _flat(findings.models.get("versions") or {})))
        pairs.append(("models timed on", _machine(findings.models)))
    return [(name, str(value)) for name, value in pairs if value]


def _details(findings: Findings) -> Mapping[str, Any]:
    """One model's own record: it names the data and the classes."""
    kept = (findings.models.get("models") or {}, findings.compressed.get("models") or {})
    every = [cell.details for cell in findings.cells] or [one for models in kept for one in models.values()]
    named = (one for one in every if one.get("class_names") or one.get("vocabulary"))
    return next((one for one in named if one.get("data_digest")), {})


def _data(findings: Findings, details: Mapping[str, Any]) -> str:
    recorded = [record.get("config") or {} for record in findings.runs.values()]
    config = details.get("config") or next(iter(recorded), {})
    name = f"{config['data']}, " if config.get("data") else ""
    return f"{name}digest {short(details['data_digest'])}"


def _cache(identity: Mapping[str, Any]) -> list[tuple[str, Any]]:
    teacher, views = identity.get("teacher", {}), identity.get("views", {})
    transform = (
        f"{views.get('transform')}, seed {views.get('seed')}" if views.get("transform") else "the plain one only"
    )
    return [
        ("cache identity", identity.get("digest", "")),
        ("teacher", f"{teacher.get('reference')}, weights {short(str(teacher.get('state', '')))}"),
        ("preprocessing", identity.get("preprocessing", "")),
        ("views per training example", f"{views.get('count')}: {transform}"),
        ("encoding", _flat(identity.get("encoding", {}))),
    ]


def _compressed(table: Mapping[str, Any]) -> str:
    if table.get("seeds"):
        return f"{table['run']}, seeds {joined([str(seed) for seed in table['seeds']])}, of one recipe"
    return f"{table['run']}, seed {table['seed']}, chosen on validation"


def _machine(table: Mapping[str, Any]) -> str:
    """What the times depend on; the load of the machine before, as it makes them slower and less alike."""
    load, threads = table.get("load"), table.get("runtime_threads")
    parts = [
        str(table.get("processor") or ""),
        f"{table['cores']} cores" if table.get("cores") else "",
        f"{threads} thread{'' if threads == 1 else 's'} of the runtime" if threads else "",
        str(table.get("system") or ""),
        f"load {load[0]:.1f}" if load else "",
    ]
    return ", ".join(filter(None, parts))


def _flat(value: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item not in (None, "", [], {}))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({_flat(value)})"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
