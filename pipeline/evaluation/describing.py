"""From scores to figures: everything that was measured as JSON values, and the few that a table of metrics shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from pipeline import metrics
from pipeline.datasets import Dataset
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.scoring import labelled_rows
from pipeline.evaluation.teachers import Teachers
from pipeline.evaluation.uncertainty import averaged
from pipeline.identity import digest
from pipeline.metrics import Scores
from pipeline.runs import Run, parameter_count


def describe(
    config: EvaluateConfig,
    dataset: Dataset,
    trained: Run | None,
    models: Mapping[int, nn.Module],
    found: Mapping[str, Mapping[int, Scores]],
    own: Scores | None,
    teachers: Teachers | None,
) -> dict[str, Any]:
    """Everything that was measured, as JSON values: per seed, per class, per bin, per example."""
    classes = len(dataset.classes)
    scores = found[config.split]
    rows = labelled_rows(dataset, config.split)
    confusion = sum(
        (metrics.confusion_matrix(s.predictions, s.labels, classes) for s in scores.values()),
        np.zeros((classes, classes), np.int64),
    )
    omitted = str(trained.config.get("omit_class") or "") if trained else ""
    seeds = {
        str(seed): {
            **_figures(s, config.bins),
            "validation": _figures(found["validation"][seed], config.bins) if "validation" in found else None,
            "omitted_class_accuracy": _class_accuracy(s, dataset, omitted),
        }
        for seed, s in scores.items()
    }
    pooled = metrics.reliability(
        np.concatenate([s.confidence for s in scores.values()]),
        np.concatenate([s.correct for s in scores.values()]),
        config.bins,
    )
    return {
        "run": trained.name if trained else str(config.weights),
        "student": trained.config["student"] if trained else config.student,
        "config": dict(trained.config) if trained else None,
        "split": config.split,
        "examples": len(rows),
        "examples_digest": digest([dataset.ids[int(row)] for row in rows]),
        "data_digest": dataset.digest(),
        "cache": teachers.digest if teachers else None,
        "class_names": list(dataset.classes),
        "parameters": parameter_count(next(iter(models.values()))),
        "temperature": config.temperature,
        "omitted_class": omitted or None,
        "omitted_class_rows": _rows_of_class(dataset, rows, omitted),
        "seeds": seeds,
        "per_class_accuracy": metrics.per_class_accuracy(confusion),
        "confusion": confusion.tolist(),
        "reliability": {
            "counts": pooled.counts.tolist(),
            "confidence": [_number(v) for v in pooled.confidence],
            "accuracy": [_number(v) for v in pooled.accuracy],
        },
        "hits": np.sum([s.correct for s in scores.values()], axis=0).astype(int).tolist(),
        "teacher": None
        if own is None
        else {
            "accuracy": own.accuracy,
            "per_class_accuracy": metrics.per_class_accuracy(
                metrics.confusion_matrix(own.predictions, own.labels, classes)
            ),
            "omitted_class_accuracy": _class_accuracy(own, dataset, omitted),
        },
    }


def summarise(details: Mapping[str, Any]) -> dict[str, Any]:
    """The flat figures that ``dvc metrics show`` prints: means over seeds, rounded to what the data can tell."""
    seeds = list(details["seeds"].values())

    def mean(key: str, digits: int = 4) -> float | None:
        values = [s[key] for s in seeds if s[key] is not None]
        return round(metrics.spread(values)[0], digits) if values else None

    validations = [s["validation"]["accuracy"] for s in seeds if s["validation"]]
    teacher = details["teacher"] or {}
    flat = {
        "accuracy": mean("accuracy"),
        "accuracy_std": round(metrics.spread([s["accuracy"] for s in seeds])[1], 4),
        "validation_accuracy": round(metrics.spread(validations)[0], 4) if validations else None,
        "nll": mean("nll"),
        "ece": mean("ece"),
        "teacher_accuracy": round(teacher["accuracy"], 4) if teacher else None,
        "teacher_agreement": mean("teacher_agreement"),
        "kl_to_teacher": mean("kl_to_teacher"),
        "omitted_class_accuracy": mean("omitted_class_accuracy"),
        "parameters": details["parameters"],
        "seeds": len(seeds),
        **averaged(details.get("uncertainty")),
        **_mean_biases(details.get("correction")),
    }
    return {key: value for key, value in flat.items() if value is not None}


def _mean_biases(correction: Mapping[str, Any] | None) -> dict[str, float]:
    """Of each class that was corrected, the mean over seeds of what its logit was raised by."""
    if correction is None:
        return {}
    means = np.mean(list(correction["bias"].values()), axis=0)
    return {f"bias_{name}": round(float(mean), 4) for name, mean in zip(correction["classes"], means, strict=True)}


def _figures(scores: Scores, bins: int) -> dict[str, Any]:
    return {
        "accuracy": scores.accuracy,
        "nll": scores.nll,
        "ece": metrics.reliability(scores.confidence, scores.correct, bins).ece,
        "teacher_agreement": None if scores.agree is None else float(scores.agree.mean()),
        "kl_to_teacher": None if scores.kl is None else float(scores.kl.mean()),
    }


def _class_accuracy(scores: Scores, dataset: Dataset, name: str) -> float | None:
    """The share of one class's examples that was recognised; None without such a class or example."""
    if name not in dataset.classes:
        return None
    of_class = scores.labels == dataset.classes.index(name)
    return float(scores.correct[of_class].mean()) if of_class.any() else None


def _rows_of_class(dataset: Dataset, rows: npt.NDArray[np.int64], name: str) -> list[int]:
    """Positions in ``hits`` of the examples of one class."""
    if name not in dataset.classes:
        return []
    return [int(i) for i in np.flatnonzero(np.asarray(dataset.labels)[rows] == dataset.classes.index(name))]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
