"""From the scores of each candidate to its row: means over its seeds, and what sets it apart from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.evaluation.table import Row
from pipeline.metrics import Scores

SeedScores = Mapping[int, Scores]
MEANS = (
    "accuracy", "nll", "brier", "ece", "adaptive_ece", "teacher_agreement", "kl_to_teacher",
    "agreement_where_teacher_wrong",
)  # fmt: skip
CALIBRATED = ("temperature", "nll", "brier", "ece", "adaptive_ece")


def fill(row: Row, details: Mapping[str, Any], scores: SeedScores, teacher: Scores | None) -> None:
    """Note what ``details`` (see ``describing.describe``) and the ``scores`` of the split say of one candidate."""
    seeds = list(details["seeds"].values())
    for name in MEANS:
        setattr(row, name, _mean([seed[name] for seed in seeds]))
    top_k = details["top_k"]
    row.top_k_accuracy = _mean([seed[f"top_{top_k}_accuracy"] for seed in seeds]) if top_k else None
    row.validation_accuracy = _mean([(seed["validation"] or {}).get("accuracy") for seed in seeds])
    row.seeds, row.accuracy_std = len(seeds), metrics.spread([seed["accuracy"] for seed in seeds])[1]
    hits = shares(scores)
    # Of the examples, whatever the number of seeds that saw them: they are no more for it.
    row.accuracy_interval = list(metrics.wilson(round(float(hits.sum())), len(hits)))
    scaled = [seed["calibrated"] for seed in seeds]
    if all(scaled):
        row.calibrated = {name: float(np.mean([one[name] for one in scaled])) for name in CALIBRATED}
    if teacher is not None and len(scores) == 1:
        row.mcnemar_teacher = asdict(metrics.mcnemar(only(scores).correct, teacher.correct))


def relate(rows: Sequence[Row], scores: Mapping[str, SeedScores], baseline: str) -> None:
    """Note, for every row with scores, how it does against the baseline and against the row it was made from.

    A row without a source is held against the row before it in ``rows``.
    """
    before: str | None = None
    for row in rows:
        if row.name not in scores:
            continue
        own = scores[row.name]
        if row.name != baseline and baseline in scores:
            row.against_baseline = against(own, scores[baseline])
        other = row.source if row.source in scores else (before if row.source is None else None)
        if other is not None:
            row.against_source = {"row": other, **against(own, scores[other])}
            row.agreement = agreement(own, scores[other])
            if len(own) == len(scores[other]) == 1:
                test = metrics.mcnemar(only(own).correct, only(scores[other]).correct)
                row.mcnemar_source = {"row": other, **asdict(test)}
        before = row.name


def against(own: SeedScores, other: SeedScores) -> dict[str, Any]:
    """The difference in accuracy, half its 95% interval over seeds and examples, and the verdict. JSON values."""
    found = metrics.compare(
        {seed: s.accuracy for seed, s in own.items()},
        {seed: s.accuracy for seed, s in other.items()},
        shares(own),
        shares(other),
    )
    half_width = None if np.isinf(found.half_width) else found.half_width
    return {"difference": found.difference, "half_width": half_width, "verdict": found.verdict}


def agreement(own: SeedScores, other: SeedScores) -> float:
    """The share of examples that both put into the same class: mean over seeds that both have, else over all pairs."""
    pairs = [(own[seed], other[seed]) for seed in own.keys() & other.keys()]
    pairs = pairs or [(a, b) for a in own.values() for b in other.values()]
    return float(np.mean([(a.predictions == b.predictions).mean() for a, b in pairs]))


def shares(scores: SeedScores) -> Any:
    """The share of seeds that recognised each example, (N,) float64."""
    return np.mean([s.correct for s in scores.values()], axis=0)


def only(scores: SeedScores) -> Scores:
    """The scores of the one seed."""
    return next(iter(scores.values()))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
