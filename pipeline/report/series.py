"""The numbers behind the figures, one long table each: the page, ``dvc plots`` and readers of CSV get the same ones."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.report import columns, language, search_gains, training_curves
from pipeline.report.reading import Cell, Findings
from pipeline.report.tables import Entry, Head, Table, grouped, number, table
from pipeline.report.words import NONE

Value = str | int | float | None


@dataclass(frozen=True)
class Series:
    """The rows of ``plots/NAME.csv``; shares are in per cent, as the axes of the figures are."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    @property
    def csv(self) -> bytes:
        """As CSV with a head; None is empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([[_plain(value) for value in row] for row in self.rows])
        return out.getvalue().encode()


def all_series(findings: Findings) -> list[Series]:
    """Everything that has numbers, in the order of the page."""
    makers = (
        Series("accuracy", ("name", "setting", "student", "labels", "seed", "accuracy"), tuple(_accuracy(findings))),
        Series("mean", ("name", "mean", "half_width", "seeds"), tuple(_means(findings))),
        Series("curves", ("name", "epoch", "accuracy", "lowest", "highest"), tuple(_curves(findings))),
        Series(
            "reliability",
            ("name", "bin", "confidence", "accuracy", "examples"),
            tuple(_reliability(findings.cells or language.as_cells(findings))),
        ),
        Series(
            f"training_{training_curves.measure_of(findings)}",
            ("name", "epoch", "mean", "lowest", "highest"),
            tuple(training_curves.rows(findings)),
        ),
        Series("language", ("name", "seed", *_LANGUAGE), tuple(_language(findings))),
        Series("pareto", ("name", "kind", "bytes", "milliseconds", "accuracy", "on_front"), tuple(_pareto(findings))),
    )
    return [one for one in makers if one.rows]


_LANGUAGE = ("perplexity", "bits_per_byte", "ece", "acceptance")


def _language(findings: Findings) -> Iterator[tuple[Value, ...]]:
    """Figures of language models, of each seed; shares in per cent, as they are drawn."""
    if not findings.tokens:
        return
    every: list[tuple[str, Mapping[str, Any]]] = []
    for measured in (findings.models, findings.compressed):
        names = [str(row["name"]) for row in measured.get("rows", [])]
        every += [(name, language.seeds_of(measured, name)) for name in names]
    for name, seeds in every:
        for seed in sorted(seeds, key=int):
            figures = [(seeds[seed].get(key), 100.0 if key in ("ece", "acceptance") else 1.0) for key in _LANGUAGE]
            yield name, int(seed), *(None if value is None else scale * float(value) for value, scale in figures)


def _accuracy(findings: Findings) -> Iterator[tuple[Value, ...]]:
    for cell in findings.cells:
        for seed, value in sorted(cell.headline.items()):
            yield cell.name, cell.method.setting_title, cell.student, cell.method.title, seed, 100 * value


def _means(findings: Findings) -> Iterator[tuple[Value, ...]]:
    for cell in findings.cells:
        reach = metrics.half_width(list(cell.headline.values()))
        yield cell.name, 100 * cell.mean(), None if math.isnan(reach) else 100 * reach, len(cell.headline)


def _curves(findings: Findings) -> Iterator[tuple[Value, ...]]:
    for cell in findings.cells:
        for epoch, values in enumerate(validation_curve(cell), start=1):
            yield cell.name, epoch, float(np.mean(values)), min(values), max(values)


def validation_curve(cell: Cell) -> list[list[float]]:
    """Validation accuracy in per cent, the seeds of each epoch, cut to the shortest seed; empty where not recorded."""
    lines = [
        [100 * float(e["accuracy"]) for e in epochs if e.get("accuracy") is not None]
        for epochs in cell.histories.values()
    ]
    return [list(values) for values in zip(*lines, strict=False)]


def _reliability(cells: Sequence[Cell]) -> Iterator[tuple[Value, ...]]:
    for cell in cells:
        bins = cell.details["reliability"]
        for b, count in enumerate(bins["counts"]):
            if count:
                yield cell.name, b, 100 * bins["confidence"][b], 100 * bins["accuracy"][b], count


def _pareto(findings: Findings) -> Iterator[tuple[Value, ...]]:
    for measured, usual in ((findings.compressed, "artefact"), (findings.models, "model")):
        for row in measured.get("rows", []):
            if row.get("accuracy") is not None and row.get("bytes"):
                kind = "control" if row.get("control") else usual
                yield row["name"], kind, row["bytes"], milliseconds(row), 100 * row["accuracy"], None
    for point in findings.compressed.get("front") or ():
        yield (
            point["name"],
            "search",
            point.get("bytes"),
            milliseconds(point),
            100 * point["accuracy"],
            str(bool(point.get("on_front"))).lower(),
        )


def milliseconds(row: Mapping[str, Any]) -> float | None:
    """The median latency at the largest batch that was timed, or the one number that there is."""
    latency = row.get("ms", row.get("latency"))
    if isinstance(latency, Mapping):
        if not latency:
            return None
        size = max(latency, key=int)
        latency = latency[size]
        latency = latency.get("p50") if isinstance(latency, Mapping) else latency
    return None if latency is None else float(latency)


def _plain(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def accuracy_table(findings: Findings) -> Table | None:
    """What the figure of accuracy shows."""

    def row(cell: Cell) -> list[Entry]:
        values = [100 * v for _, v in sorted(cell.headline.items())]
        return [
            Entry(f"{cell.student}, {cell.method.title}"),
            Entry(", ".join(f"{v:.1f}" for v in values)),
            number(float(np.mean(values)), strong=True),
            number(metrics.half_width(values)),
        ]

    settings = list(dict.fromkeys(cell.method.setting_title for cell in findings.leading))
    return grouped(
        "Accuracy of every seed, with means and half their 95% intervals",
        ("Student and labels", Head("Each seed, %", left=True, wrap=True), Head("Mean, %"), Head("± points")),
        [(title, [row(c) for c in findings.leading if c.method.setting_title == title]) for title in settings],
    )


def curves_table(findings: Findings, shown: int = 10) -> Table | None:
    """What the figure of training curves shows, at about ``shown`` epochs."""
    cells = [c for c in findings.leading if c.student == findings.featured and len(validation_curve(c)) > 1]
    if not cells:
        return None
    last = max(len(validation_curve(cell)) for cell in cells)
    epochs = sorted({1, *range(max(1, round(last / shown)), last + 1, max(1, round(last / shown))), last})
    rows = []
    for epoch in epochs:
        row = [Entry(str(epoch), epoch)]
        for cell in cells:
            curve = validation_curve(cell)
            row.append(number(float(np.mean(curve[epoch - 1])) if epoch <= len(curve) else None))
        rows.append(row)
    heads = [Head("Epoch", left=True), *(Head(f"{cell.method.full_title}, %", wrap=True) for cell in cells)]
    return table(f"Mean validation accuracy of {findings.featured} by epoch", heads, rows)


def reliability_table(cells: Sequence[Cell]) -> Table | None:
    """What the figure of calibration shows: each bin that has examples."""
    return grouped("Accuracy by confidence", *reliability_groups([(cell.label, cell) for cell in cells]))


def reliability_groups(
    cells: Sequence[tuple[str, Cell]],
) -> tuple[tuple[Head | str, ...], list[tuple[str, list[list[Entry]]]]]:
    """The heads and the groups of ``reliability_table``, each cell under the title that is given."""
    groups = []
    for title, cell in cells:
        bins = len(cell.details["reliability"]["counts"])
        rows = [
            [
                Entry(f"{100 * b / bins:.0f}{NONE}{100 * (b + 1) / bins:.0f}%", b),
                number(confidence),
                number(right),
                number(float(count), 0),
            ]
            for _, b, confidence, right, count in _reliability([cell])
            if isinstance(b, int) and isinstance(confidence, float) and isinstance(right, float) and count is not None
        ]
        groups.append((title, rows))
    unit = "Tokens" if any(cell.details.get("tokens") for _, cell in cells) else "Examples"
    return ("Bin", Head("Confidence, %"), Head("Accuracy, %"), Head(unit)), groups


def confusion_table(cell: Cell, called: str | None = None) -> Table | None:
    """One confusion matrix: true classes in rows. ``called``: what it is of."""
    names = [str(name) for name in cell.details["class_names"]]
    rows = [
        [Entry(name), *(number(float(count), 0) for count in line)]
        for name, line in zip(names, cell.details["confusion"], strict=True)
    ]
    of = called or f"{cell.student}, {cell.method.full_title}"
    caption = f"{of}: true classes in rows, predicted ones in columns"
    return table(caption, ["True class", *(Head(name) for name in names)], rows)


def front_table(compressed: Mapping[str, Any]) -> Table | None:
    """The points of a search."""
    points = compressed.get("front") or ()
    by_validation = search_gains.figure_of(compressed) != "accuracy"
    figures = [column for column in _FRONT if any(column.value(point) is not None for point in points)]
    figures.sort(key=lambda column: by_validation and column.key != "validation_accuracy")
    rows = [
        [
            Entry(str(point["name"]), strong=bool(point.get("on_front")), tag="front" if point.get("on_front") else ""),
            *(column.entry(point) for column in figures),
            number(milliseconds(point), 3),
        ]
        for point in points
    ]
    heads = [Head(column.head, better=column.better) for column in figures]
    return table("Every point of the search", ["Point", *heads, Head("Latency, ms", better="lower")], rows)


def front_commands(compressed: Mapping[str, Any]) -> Table | None:
    """The command that makes each point of a search again."""
    rows = [
        [str(point["name"]), str(point["command"])] for point in compressed.get("front") or () if "command" in point
    ]
    heads = ("Point", Head("Command", left=True, mono=True))
    return table("Commands of the points of the search", heads, rows, fixed=True)


def within_table(compressed: Mapping[str, Any]) -> Table | None:
    """The smallest point within each loss of accuracy."""
    key = search_gains.figure_of(compressed)
    rows = [
        [
            Entry(search_gains.allowed(budget), budget),
            Entry(str(point["name"]), strong=True),
            number(point[key], 1, 100),
            number(point["bytes"], 1, 1e-3),
            number(milliseconds(point), 3),
        ]
        for budget, point in search_gains.within(compressed)
    ]
    on = "Accuracy, %" if key == "accuracy" else "On validation, %"
    heads = ("May lose", "Smallest file", Head(on), Head("Size, kB"), Head("Latency, ms"))
    return table("The smallest file within each loss", heads, rows, fixed=True)


_FRONT = tuple(column for column in columns.COLUMNS if column.key in ("accuracy", "validation_accuracy", "bytes"))
