"""Evaluations of language models that were made one by one, as the table that one of all would have given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.errors import ConfigError
from pipeline.report.reading import Cell, Findings

_NOTE = (
    "How far the models are apart beyond chance: they were evaluated one by one. softlabels evaluate takes all of them "
    "at once, and tests it."
)
_MEANS = (
    "perplexity", "bits_per_byte", "accuracy", "nll", "brier", "ece", "adaptive_ece", "teacher_agreement",
    "kl_to_teacher", "acceptance", "tokens_per_call", "cross_entropy_to_teacher", "agreement_where_teacher_wrong",
)  # fmt: skip


def together(findings: Findings) -> Findings:
    """``findings`` whose cells, of language models, have become rows of its table of models; others as they are.

    Raises ConfigError where there is such a table already.
    """
    if not any(cell.details.get("tokens") for cell in findings.cells):
        return findings
    if findings.models:
        raise ConfigError(
            "--models holds a table of models, and --evaluations measured language models one by one. Evaluate all of "
            "them together, or leave one of the two out"
        )
    first = findings.cells[0].details
    table = {
        **{key: first.get(key) for key in ("split", "examples", "tokens")},
        "rows": [_row(cell) for cell in findings.cells],
        "models": {cell.name: cell.details for cell in findings.cells},
        "written": _written(findings.cells),
        "notes": [_NOTE] if len(findings.cells) > 1 else [],
    }
    return replace(findings, cells=(), models=table)


def _row(cell: Cell) -> dict[str, Any]:
    seeds = list(cell.details["seeds"].values())

    def values(key: str) -> list[float]:
        return [float(seed[key]) for seed in seeds if seed.get(key) is not None]

    row: dict[str, Any] = {"name": cell.name, "what": cell.student, "seeds": len(seeds), "parameters": cell.parameters}
    row |= {key: float(np.mean(found)) for key in _MEANS if (found := values(key))}
    validated = [float(seed["validation"]["accuracy"]) for seed in seeds if seed.get("validation")]
    row["validation_accuracy"] = float(np.mean(validated)) if validated else None
    for key in ("perplexity", "accuracy"):
        row[f"{key}_std"] = metrics.spread(values(key))[1]
    ends = [seed["acceptance_between"] for seed in seeds if seed.get("acceptance_between")]
    row["acceptance_between"] = np.mean(ends, axis=0).tolist() if len(ends) == len(seeds) else None
    scaled = [seed["calibrated"] for seed in seeds if seed.get("calibrated")]
    if len(scaled) == len(seeds):
        row["calibrated"] = {key: float(np.mean([one[key] for one in scaled])) for key in scaled[0]}
    return row


def _written(cells: Sequence[Cell]) -> dict[str, Any]:
    """The samples of all of them, where they continue the same beginnings."""
    kept = [(cell.name, cell.details["written"]) for cell in cells if cell.details.get("written")]
    full = [(name, one) for name, one in kept if one.get("prompts")]
    if not full:
        return dict(kept[0][1]) if kept else {}
    first = full[0][1]
    alike = [(name, one) for name, one in full if one["prompts"] == first["prompts"]]
    models = {name: texts for name, one in alike for texts in one["models"].values()}
    teacher = next((one["teacher"] for _, one in alike if one.get("teacher")), None)
    return {**first, "models": models, "teacher": teacher}
