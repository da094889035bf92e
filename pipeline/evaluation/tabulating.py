"""Candidates measured side by side: a row each, with what sets it apart from the others, and everything behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.datasets import Dataset
from pipeline.evaluation.beyond import measure_beyond
from pipeline.evaluation.candidates import Candidate
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.costs import cost
from pipeline.evaluation.describing import describe
from pipeline.evaluation.measuring import measure
from pipeline.evaluation.rows import fill, relate
from pipeline.evaluation.scoring import Value
from pipeline.evaluation.sight import Sight
from pipeline.evaluation.table import Row, warn
from pipeline.progress import Progress

BEYOND = {
    "robustness": ("corrupted_accuracy", "mce"),
    "outliers": ("outlier_auroc", "outlier_energy_auroc", "outlier_confidence"),
}


def tabulate(
    config: EvaluateConfig,
    dataset: Dataset,
    sight: Sight,
    candidates: Sequence[Candidate],
    rows: Sequence[Row],
    baseline: str,
    progress: Progress,
) -> dict[str, Any]:
    """Fill in ``rows``, those of the ``candidates`` by name, and return all that was measured as JSON values.

    Rows without a candidate stay as they are. Raises DataError or CacheMismatchError before any work.
    """
    tested, teachers = sight.rows_of[config.split], sight.teachers
    predictors = {(c.name, seed): predict for c in candidates for seed, predict in c.predictors.items()}
    with progress.bar("evaluate", sight.examples, "examples") as bar:
        found = measure(config, predictors, dataset, sight.rows_of, teachers, bar.update)
        clean, first = found.scores[config.split], next(key for key in predictors if key[0] == baseline)
        others = measure_beyond(
            config, sight.beyond, _named(predictors), dataset, tested, _named(clean),
            baseline=_key(first), advance=bar.update,
        )  # fmt: skip
    described = {c.name: describe(config, dataset, c, found.of(c.name), teachers) for c in candidates}
    scores = {c.name: found.of(c.name).scores[config.split] for c in candidates}
    for row in rows:
        if row.name in described:
            fill(row, described[row.name], scores[row.name], found.own)
            _note(row, others, [_key(key) for key in predictors if key[0] == row.name])
    relate(rows, scores, baseline)
    environment = cost(config, rows, candidates, dataset, progress)
    warn(rows)
    return {
        "baseline": baseline,
        "split": config.split,
        "examples": len(tested),
        **({"tokens": int(np.asarray(dataset.lengths)[tested].sum())} if dataset.discrete else {}),
        "environment": environment,
        "rows": [asdict(row) for row in rows],
        "models": described,
        **others,
    }


def _key(key: tuple[str, int]) -> str:
    """One seed of a candidate, as it is called beyond the split: its name and the seed."""
    return f"{key[0]} seed {key[1]}"


def _named(found: Mapping[tuple[str, int], Value]) -> dict[str, Value]:
    return {_key(key): value for key, value in found.items()}


def _note(row: Row, others: Mapping[str, Any], keys: Sequence[str]) -> None:
    """The flat figures of corruptions and outliers, means over the seeds."""
    for part, names in BEYOND.items():
        summaries = [others[part]["models"][key]["summary"] for key in keys] if part in others else []
        for name in names:
            if summaries and all(name in summary for summary in summaries):
                setattr(row, name, float(np.mean([summary[name] for summary in summaries])))
