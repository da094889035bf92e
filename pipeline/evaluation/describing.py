"""From scores to figures: everything that was measured as JSON values, and the few that a table of metrics shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import metrics
from pipeline.datasets import Dataset
from pipeline.evaluation.beyond import averaged as averaged_beyond
from pipeline.evaluation.candidates import Candidate
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.language import LANGUAGE, UNITS, bytes_of, figures_of, missing, paired, share_interval
from pipeline.evaluation.measuring import TRAIN, Measured
from pipeline.evaluation.scoring import labelled_rows
from pipeline.evaluation.teachers import AnyTeacher
from pipeline.evaluation.uncertainty import averaged
from pipeline.identity import digest
from pipeline.metrics import Scores


def describe(
    config: EvaluateConfig,
    dataset: Dataset,
    candidate: Candidate,
    found: Measured,
    teachers: AnyTeacher | None,
) -> dict[str, Any]:
    """Everything that was measured, as JSON values: per seed, per class, per bin, per example.

    Of language models nothing is kept per class, of which there are tens of thousands, and ``hits`` are per sequence.
    """
    classes, trained = len(dataset.classes), candidate.run
    scores, own, scaling = found.scores[config.split], found.own, found.scaling
    top_k = config.top_k if config.top_k < classes else None
    rows = labelled_rows(dataset, config.split)
    size = bytes_of(dataset, rows)
    omitted = str(trained.config.get("omit_class") or "") if trained else ""
    seeds = {
        str(seed): {
            **_figures(s, config.bins, top_k),
            **(figures_of(s, size) if dataset.discrete else {}),
            **_against(s, own),
            **({} if dataset.discrete else _by_class(s, classes)),
            "validation": _figures(found.scores["validation"][seed], config.bins, top_k)
            if "validation" in found.scores
            else None,
            "train": _fidelity(found.scores[TRAIN][seed]) if config.fidelity_on_train else None,
            "calibrated": scaling.figures(seed, config.bins) if scaling else None,
            "omitted_class_accuracy": _class_accuracy(s, dataset, omitted),
        }
        for seed, s in scores.items()
    }
    return {
        "run": candidate.name,
        "student": candidate.what,
        "config": dict(trained.config) if trained else None,
        "split": config.split,
        "examples": len(rows),
        "examples_digest": digest([dataset.ids[int(row)] for row in rows]),
        "data_digest": dataset.digest(),
        "cache": teachers.digest if teachers else None,
        "class_names": None if dataset.discrete else list(dataset.classes),
        "parameters": candidate.parameters,
        "temperature": config.temperature,
        "omitted_class": omitted or None,
        "omitted_class_rows": _rows_of_class(dataset, rows, omitted),
        "top_k": top_k,
        "calibration": scaling.as_dict() if scaling else None,
        "seeds": seeds,
        **(_tokens(dataset, scores, size) if dataset.discrete else _classes(scores, classes)),
        "reliability": _pooled(scores, config.bins),
        "reliability_calibrated": _pooled(scaling.scores, config.bins) if scaling and scaling.scores else None,
        "teacher": None if own is None else _teacher(own, dataset, omitted, size),
    }


def _classes(scores: Mapping[int, Scores], classes: int) -> dict[str, Any]:
    """What all seeds made of each class and of each example."""
    confusion = sum(
        (metrics.confusion_matrix(s.predictions, s.labels, classes) for s in scores.values()),
        np.zeros((classes, classes), np.int64),
    )
    return {
        "per_class_accuracy": metrics.per_class_accuracy(confusion),
        "confusion": confusion.tolist(),
        "hits": _hits(scores).tolist(),
    }


def _tokens(dataset: Dataset, scores: Mapping[int, Scores], size: int | None) -> dict[str, Any]:
    """What all seeds made of each sequence: how many tokens they recognised, of how many."""
    one = next(iter(scores.values()))
    assert one.groups is not None
    sizes = metrics.by_group(np.ones(len(one.labels)), one.groups)
    return {
        "tokens": len(one.labels),
        "bytes": size,
        "vocabulary": len(dataset.classes),
        "units": UNITS,
        "hits": metrics.by_group(_hits(scores), one.groups).astype(int).tolist(),
        "positions": sizes.astype(int).tolist(),
        "left_out": missing(one, size),
    }


def _hits(scores: Mapping[int, Scores]) -> npt.NDArray[np.int64]:
    """How many seeds recognised each row."""
    return np.asarray(np.sum([s.correct for s in scores.values()], axis=0), dtype=np.int64)


def _teacher(own: Scores, dataset: Dataset, omitted: str, size: int | None) -> dict[str, Any]:
    """What the teacher itself made of the split."""
    found = {
        "accuracy": own.accuracy,
        "accuracy_interval": share_interval(own.correct, own.groups),
        "wrong": int((~own.correct).sum()),
    }
    if dataset.discrete:
        return found | ({} if np.isnan(own.nll) else figures_of(own, size))
    confusion = metrics.confusion_matrix(own.predictions, own.labels, len(dataset.classes))
    return found | {
        "per_class_accuracy": metrics.per_class_accuracy(confusion),
        "omitted_class_accuracy": _class_accuracy(own, dataset, omitted),
    }


def summarise(details: Mapping[str, Any]) -> dict[str, Any]:
    """The flat figures that ``dvc metrics show`` prints: means over seeds, rounded to what the data can tell."""
    seeds = list(details["seeds"].values())

    def mean(key: str, digits: int = 4) -> float | None:
        values = [s[key] for s in seeds if s[key] is not None]
        return round(metrics.spread(values)[0], digits) if values else None

    # A mean over some of the seeds would not compare with that over all of them.
    scaled = [s["calibrated"] for s in seeds] if all(s["calibrated"] for s in seeds) else []

    def calibrated(key: str) -> float | None:
        return round(metrics.spread([s[key] for s in scaled])[0], 4) if scaled else None

    top_k = f"top_{details['top_k']}_accuracy"
    validations = [s["validation"]["accuracy"] for s in seeds if s["validation"]]
    teacher = details["teacher"] or {}
    tokens = seeds[0].get("perplexity") is not None
    ends = [s["acceptance_between"] for s in seeds] if tokens and seeds[0]["acceptance_between"] else None
    flat = {
        **({name: mean(name) for name in LANGUAGE} if tokens else {}),
        "perplexity_std": round(metrics.spread([s["perplexity"] for s in seeds])[1], 4) if tokens else None,
        "acceptance_least": round(float(np.mean(ends, axis=0)[0]), 4) if ends else None,
        "acceptance_most": round(float(np.mean(ends, axis=0)[1]), 4) if ends else None,
        "teacher_perplexity": round(teacher["perplexity"], 4) if "perplexity" in teacher else None,
        "accuracy": mean("accuracy"),
        "accuracy_std": round(metrics.spread([s["accuracy"] for s in seeds])[1], 4),
        "validation_accuracy": round(metrics.spread(validations)[0], 4) if validations else None,
        top_k: mean(top_k) if details["top_k"] else None,
        "nll": mean("nll"),
        "brier": mean("brier"),
        "ece": mean("ece"),
        "adaptive_ece": mean("adaptive_ece"),
        "temperature": calibrated("temperature"),
        "calibrated_nll": calibrated("nll"),
        "calibrated_ece": calibrated("ece"),
        "teacher_accuracy": round(teacher["accuracy"], 4) if teacher else None,
        "teacher_agreement": mean("teacher_agreement"),
        "kl_to_teacher": mean("kl_to_teacher"),
        **_on_train(seeds),
        "omitted_class_accuracy": mean("omitted_class_accuracy"),
        "parameters": details["parameters"],
        "seeds": len(seeds),
        **averaged(details.get("uncertainty")),
        **averaged_beyond(details),
        **_mean_biases(details.get("correction")),
    }
    return {key: value for key, value in flat.items() if value is not None}


def _mean_biases(correction: Mapping[str, Any] | None) -> dict[str, float]:
    """Of each class that was corrected, the mean over seeds of what its logit was raised by."""
    if correction is None:
        return {}
    means = np.mean(list(correction["bias"].values()), axis=0)
    return {f"bias_{name}": round(float(mean), 4) for name, mean in zip(correction["classes"], means, strict=True)}


def _on_train(seeds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Fidelity on train, means over the seeds."""
    found = [s["train"] for s in seeds if s["train"]]
    names = ("teacher_agreement", "kl_to_teacher") if found else ()
    return {f"train_{name}": round(metrics.spread([s[name] for s in found])[0], 4) for name in names}


def _figures(scores: Scores, bins: int, top_k: int | None) -> dict[str, Any]:
    """What one model does on one split. Intervals are 95%, of the examples; they do not cover another seed.

    Of language models the examples that they are of are sequences, which are drawn whole.
    """
    return {
        "accuracy": scores.accuracy,
        "accuracy_interval": share_interval(scores.correct, scores.groups),
        **({} if top_k is None else _top_k(scores, top_k)),
        "nll": scores.nll,
        "brier": scores.brier_score,
        "ece": metrics.reliability(scores.confidence, scores.correct, bins).ece,
        "adaptive_ece": metrics.adaptive_reliability(scores.confidence, scores.correct, bins).ece,
        **_fidelity(scores),
    }


def _top_k(scores: Scores, k: int) -> dict[str, Any]:
    """The share of examples whose true label is among the first ``k``, and its interval."""
    interval = share_interval(metrics.top_k_correct(scores.rank, k), scores.groups)
    return {f"top_{k}_accuracy": scores.top_k_accuracy(k), f"top_{k}_interval": interval}


def _fidelity(scores: Scores) -> dict[str, float | None]:
    """Agreement with the teacher, and the divergence from it (Stanton et al. 2021), None without a teacher."""
    return {
        "teacher_agreement": None if scores.agree is None else float(scores.agree.mean()),
        "kl_to_teacher": None if scores.kl is None else float(scores.kl.mean()),
    }


def _against(scores: Scores, own: Scores | None) -> dict[str, Any]:
    """One model and its teacher on the same examples; None without a teacher.

    Where the teacher is wrong agreement is no matter of both being right: it tells copying from learning.
    """
    if own is None or scores.agree is None:
        return {"mcnemar": None, "agreement_where_teacher_wrong": None}
    test, wrong = paired(scores, own), ~own.correct
    return {
        "mcnemar": {"only_student": test.only_first, "only_teacher": test.only_second, "p_value": test.p_value},
        "agreement_where_teacher_wrong": float(scores.agree[wrong].mean()) if wrong.any() else None,
    }


def _by_class(scores: Scores, classes: int) -> dict[str, Any]:
    """Accuracy of one model on each class with its interval (C, 2), None where the class has no example."""
    confusion = metrics.confusion_matrix(scores.predictions, scores.labels, classes)
    counts = zip(confusion.diagonal().tolist(), confusion.sum(axis=1).tolist(), strict=True)
    return {
        "per_class_accuracy": metrics.per_class_accuracy(confusion),
        "per_class_interval": [list(metrics.wilson(right, n)) if n else None for right, n in counts],
    }


def _pooled(scores: Mapping[int, Scores], bins: int) -> dict[str, Any]:
    """The reliability diagram of all seeds together; None in an empty bin."""
    pooled = metrics.reliability(
        np.concatenate([s.confidence for s in scores.values()]),
        np.concatenate([s.correct for s in scores.values()]),
        bins,
    )
    return {
        "counts": pooled.counts.tolist(),
        "confidence": [_number(v) for v in pooled.confidence],
        "accuracy": [_number(v) for v in pooled.accuracy],
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
