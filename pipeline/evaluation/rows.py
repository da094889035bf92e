"""From the scores of each candidate to its row: means over its seeds, and what sets it apart from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.evaluation.language import LANGUAGE, paired, share_interval
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
    # Of the examples, whatever the number of seeds that saw them: they are no more for it.
    row.accuracy_interval = share_interval(shares(scores), only(scores).groups)
    scaled = [seed["calibrated"] for seed in seeds]
    if all(scaled):
        row.calibrated = {name: float(np.mean([one[name] for one in scaled])) for name in CALIBRATED}
    if only(scores).groups is not None:
        _language(row, seeds)
    if teacher is not None and len(scores) == 1:
        row.mcnemar_teacher = asdict(paired(only(scores), teacher))


def _language(row: Row, seeds: Sequence[Mapping[str, Any]]) -> None:
    """The figures of language models, means over seeds."""
    for name in LANGUAGE:
        setattr(row, name, _mean([seed[name] for seed in seeds]))
    row.perplexity_std = metrics.spread([seed["perplexity"] for seed in seeds])[1]
    if all(seed["acceptance_between"] for seed in seeds):
        row.acceptance_between = np.mean([seed["acceptance_between"] for seed in seeds], axis=0).tolist()


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
                test = paired(only(own), only(scores[other]))
                row.mcnemar_source = {"row": other, **asdict(test)}
        before = row.name


def against(own: SeedScores, other: SeedScores) -> dict[str, Any]:
    """The difference in accuracy, half its 95% interval over seeds and examples, and the verdict. JSON values.

    Of language models the examples are sequences, and ``nll`` is the same of the mean negative log-likelihood, in nats.
    """
    found = _difference(own, other, "correct", 1.0)
    return found if only(own).groups is None else {**found, "nll": _difference(own, other, "log_likelihood", -1.0)}


def _difference(own: SeedScores, other: SeedScores, name: str, sign: float) -> dict[str, Any]:
    """Of the mean of what scores keep of each row under ``name``, times ``sign``."""
    groups = only(own).groups
    ours, theirs = ({seed: sign * np.asarray(getattr(s, name), float) for seed, s in x.items()} for x in (own, other))
    first, second = ({seed: float(values.mean()) for seed, values in x.items()} for x in (ours, theirs))
    rows, other_rows = (np.mean(list(x.values()), axis=0) for x in (ours, theirs))
    if groups is None:
        found = metrics.compare(first, second, rows, other_rows)
    else:
        sums, other_sums, sizes = (metrics.by_group(x, groups) for x in (rows, other_rows, np.ones(len(groups))))
        found = metrics.compare(first, second, sums, other_sums, sizes)
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
