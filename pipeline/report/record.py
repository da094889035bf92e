"""``report.json``: the numbers of a page, so that another page can be held against it and other tools can read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.evaluation.comparing import FIGURES, by_seed
from pipeline.report import commands, gains
from pipeline.report.reading import Cell, Findings
from pipeline.runs import read_json

NAME = "report.json"
FORMAT = "softlabels report"
VERSION = 1
_KEPT = ("examples_digest", "examples", "split", "omitted_class", "omitted_class_rows", "hits", "parameters")
"""What is kept of the details of an evaluation beside its figures of each seed: what a paired comparison needs."""


def record_of(findings: Findings, title: str) -> dict[str, Any]:
    """The numbers of a page as JSON values."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": title,
        "answers": {answer.question: list(answer.sentences) for answer in gains.answers(findings)},
        "best": findings.best.name if findings.cells else None,
        "teacher": {"accuracy": findings.teacher_accuracy, "parameters": findings.teacher_parameters},
        "cells": {cell.name: _cell(cell) for cell in findings.cells},
        "compressed": {name: value for name, value in findings.compressed.items() if name != "models"},
        "models": list(findings.models.get("rows", [])),
        "models_environment": dict(findings.models.get("environment") or {}),
        "claims": [dict(claim) for claim in findings.claims],
        "dump": {k: v for k, v in findings.dump.items() if isinstance(v, int | float | str)},
        "cache": (findings.manifest.get("identity") or {}).get("digest"),
    }


def _cell(cell: Cell) -> dict[str, Any]:
    details = cell.details
    seeds: dict[str, dict[str, float]] = {str(seed): {} for seed in details["seeds"]}
    for name in FIGURES:
        for seed, value in by_seed(details, name).items():
            seeds[str(seed)][name] = value
    return {
        "student": cell.student,
        "setting": cell.method.setting_title,
        "labels": cell.method.title,
        "headline": "omitted_class_accuracy" if cell.headline is cell.omitted else "accuracy",
        "config": details.get("config"),
        "commands": [line for line in (commands.train(cell), commands.evaluate(cell)) if line],
        **{name: details.get(name) for name in _KEPT},
        "seeds": seeds,
    }


def read_record(folder: Path) -> dict[str, Any]:
    """The numbers of a finished report. Raises ConfigError where there are none, or those of another release."""
    what = "the numbers of a report (softlabels report writes them)"
    found = read_json(folder / NAME, what)
    if found.get("format") != FORMAT or not isinstance(found.get("cells"), dict):
        raise ConfigError(f"{folder / NAME} should be {what}; it is of another kind. Draw the report again")
    if found.get("version") != VERSION:
        raise ConfigError(
            f"{folder / NAME} should be of version {VERSION}; found {found.get('version')!r}. Draw the report "
            "again with this release"
        )
    for name, cell in found["cells"].items():
        if not isinstance(cell, dict) or not isinstance(cell.get("seeds"), dict) or "examples_digest" not in cell:
            raise ConfigError(
                f"{folder / NAME} should be {what}; its cell {name!r} has no seeds. Draw the report again"
            )
    return found


def details_of(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell of a record in the form that ``comparing.compared`` takes: figures after scaling lie apart there."""
    seeds = {
        seed: {
            **values,
            "calibrated": {k.removeprefix("calibrated_"): v for k, v in values.items() if "calibrated_" in k},
        }
        for seed, values in cell["seeds"].items()
    }
    return {**cell, "seeds": seeds}
