"""What was tried on the way to an artefact, and what is known of each model beside its row: tables, folded away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.methods import method_of
from pipeline.report.reading import Cell
from pipeline.report.series import confusion_table, reliability_groups
from pipeline.report.tables import Entry, Head, Table, grouped, number, table
from pipeline.report.words import NONE

Row = Mapping[str, Any]
MOST_CLASSES, MOST_MODELS = 25, 30
"""Larger confusion matrices, and those of more models, are left to details.json."""


@dataclass(frozen=True)
class Folded:
    """Tables under one line that opens them."""

    title: str
    note: str
    tables: tuple[Table, ...]


def tables(rows: Sequence[Row]) -> list[Folded]:
    """How types of int8 were chosen, and every scan: of layers, of ratios, of layers left in float."""
    found = []
    if (types := _activations(rows)) is not None:
        found.append(
            Folded(
                "How the types of int8 were chosen",
                "Milliseconds of one batch on the machine that compressed. The faster type of int8 is taken; float is "
                "there to compare. U8S8: unsigned activations and signed weights.",
                (types,),
            )
        )
    for row in rows:
        if made := _scan(row):
            found.append(made)
    return found


def _activations(rows: Sequence[Row]) -> Table | None:
    chosen = [row for row in rows if row.get("activations")]
    times = {str(row["name"]): row["activations"].get("milliseconds") or {} for row in chosen}
    kinds = list(dict.fromkeys(kind for one in times.values() for kind in one))
    sizes = sorted({size for one in times.values() for found in one.values() for size in found}, key=int)
    lines = []
    for row in chosen:
        own, taken = times[str(row["name"])], row["activations"].get("chosen")
        left = row["activations"].get("skipped") or {}
        notes = tuple(f"{kind} was not tried: {why}." for kind, why in left.items())
        lines.append(
            [
                Entry(str(row["name"]), strong=True, notes=notes),
                Entry(str(taken or NONE)),
                *(number((own.get(kind) or {}).get(size), 3, strong=kind == taken) for size in sizes for kind in kinds),
            ]
        )
    heads = [Head(f"{kind}, batch {size}, ms", better="lower") for size in sizes for kind in kinds]
    return table("Types of int8 tried", ["Artefact", "Chosen", *heads], lines)


def _scan(row: Row) -> Folded | None:
    """The one of three kinds of scan that a row has; None for none, or for one of another kind."""
    scan = [one for one in row.get("scan") or () if isinstance(one, Mapping)]
    if not scan:
        return None
    name = row["name"]
    if all("divergence" in one for one in scan):
        return _folded(f"{name}: which layers stay in float", _FLOAT, _mixed(scan))
    if all("layer" in one for one in scan):
        return _folded(f"{name}: how sensitive each layer is", _SENSITIVE, _sensitivity(scan))
    if all("accuracy" in one for one in scan):
        return _folded(f"{name}: ratios that were tried", _TRIED, _trials(scan))
    return None


_FLOAT = "KL divergence of the answers where this group alone is in int8; the groups that cost most stay in float."
_SENSITIVE = "What the score on validation is when this layer alone is pruned by that share, without training after it."
_TRIED = "Accuracy on validation after pruning by that share and training again; what is left of the original."


def _folded(title: str, note: str, made: Table | None) -> Folded | None:
    return Folded(title, note, (made,)) if made else None


def _mixed(scan: Sequence[Row]) -> Table | None:
    rows = [
        [
            Entry(", ".join(map(str, one.get("layers") or ()))),
            number(one["divergence"], 5),
            Entry("float" if one.get("in_float") else "int8", tag=""),
        ]
        for one in scan
    ]
    return table("Layers by what int8 costs", [Head("Layers", left=True, wrap=True), Head("KL, nats"), "Kept in"], rows)


def _sensitivity(scan: Sequence[Row]) -> Table | None:
    ratios = sorted({float(one["ratio"]) for one in scan})
    scores = {(str(one["layer"]), float(one["ratio"])): one.get("score") for one in scan}
    layers = list(dict.fromkeys(layer for layer, _ in scores))
    rows = [[Entry(layer), *(number(scores.get((layer, ratio)), 3) for ratio in ratios)] for layer in layers]
    heads = [Head(f"{100 * ratio:g}% removed") for ratio in ratios]
    return table("Score by layer and share removed", [Head("Layer", left=True, wrap=True), *heads], rows)


def _trials(scan: Sequence[Row]) -> Table | None:
    rows = [
        [
            number(one.get("ratio"), 1, 100),
            number(one.get("accuracy"), 1, 100),
            number(one.get("parameters"), 1, 100),
            number(one.get("macs"), 1, 100),
        ]
        for one in scan
    ]
    heads = ("Removed, %", "Accuracy on validation, %", "Parameters left, %", "Multiply-adds left, %")
    return table("Ratios that were tried", [Head(head) for head in heads], rows)


def models_tables(measured: Mapping[str, Any]) -> list[Folded]:
    """Of each model: accuracy under each corruption, by confidence, and its confusions."""
    details = dict(list((measured.get("models") or {}).items())[:MOST_MODELS])
    found = []
    if (under := _corruptions(measured)) is not None:
        found.append(Folded("Accuracy under each corruption", "Means over severities, in per cent.", (under,)))
    cells = [_cell(name, one) for name, one in details.items() if one.get("reliability")]
    binned = grouped("Accuracy by confidence", *reliability_groups([(cell.name, cell) for cell in cells]))
    if binned is not None:
        found.append(Folded("Accuracy by confidence", "Bins of equal width that have examples.", (binned,)))
    matrices = [
        made
        for name, one in details.items()
        if one.get("confusion") and len(one["class_names"]) <= MOST_CLASSES
        if (made := confusion_table(_cell(name, one), name)) is not None
    ]
    if matrices:
        found.append(
            Folded("Confusions", "True classes in rows, predicted ones in columns; all seeds.", tuple(matrices))
        )
    return found


def _cell(name: str, details: Mapping[str, Any]) -> Cell:
    """Details of a model in the form that tables of students take."""
    return Cell(name, str(details.get("student") or name), method_of({}), {}, details)


def _corruptions(measured: Mapping[str, Any]) -> Table | None:
    """A row per model, a column per corruption; seeds of one model are averaged."""
    robust = measured.get("robustness") or {}
    names = [str(name) for name in robust.get("corruptions") or ()]
    by_model = robust.get("models") or {}
    rows = []
    for row in measured.get("rows", []):
        own = [v for key, v in by_model.items() if key == row["name"] or key.startswith(f"{row['name']} seed ")]
        if not own:
            continue
        cells = [Entry(str(row["name"]), strong=True), number(_mean([(v.get("clean") or {}) for v in own]), 1, 100)]
        for name in names:
            cells.append(
                number(_mean([((v.get("by_corruption") or {}).get(name) or {}).get("mean") for v in own]), 1, 100)
            )
        rows.append(cells)
    heads = [
        Head("Clean", better="higher"),
        *(Head(name.replace("-", " ").capitalize(), better="higher") for name in names),
    ]
    return table("Accuracy under each corruption", ["Model", *heads], rows) if names else None


def _mean(figures: Sequence[Any]) -> float | None:
    values = [float(one["accuracy"]) for one in figures if one and one.get("accuracy") is not None]
    return float(np.mean(values)) if values else None
