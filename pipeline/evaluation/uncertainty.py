"""How unsure a model with several heads, or an ensemble, is of an example, and whether that tells wrong answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.datasets import Dataset
from pipeline.evaluation.scoring import plain_batches, teacher_labels
from pipeline.evaluation.teachers import AnyTeacher
from pipeline.metrics import auroc, log_softmax
from pipeline.models import Hydra
from pipeline.softlabels import Dense

Floats = npt.NDArray[np.float64]
ENTROPY, INFORMATION, AUROC = "predictive_entropy", "mutual_information", "mutual_information_auroc"


def entropy_and_information(logits_MNC: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Entropy of the mean probability of M members, and its mutual information with the member, (N,) each, in nats.

    ``H(mean_m p_m)`` and ``H(mean_m p_m) - mean_m H(p_m)``: all uncertainty, and that part of it which comes of the
    members' disagreement (Depeweg et al. 2018; Malinin and Gales 2018).
    """
    log_p = np.stack([log_softmax(logits) for logits in logits_MNC])
    mean = np.exp(log_p).mean(axis=0)
    entropy = _entropy(mean)
    # Above 0 by Jensen; rounding may leave a little less.
    return entropy, np.maximum(entropy - _entropy(np.exp(log_p)).mean(axis=0), 0.0)


def measured(
    models: Mapping[int, nn.Module],
    teachers: AnyTeacher | None,
    dataset: Dataset,
    split: str,
    rows: npt.NDArray[np.int64],
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
) -> dict[str, Any] | None:
    """What is known of the uncertainty over ``rows``: of each model that has heads, and of all its teachers together.

    None where no model has heads. ``teachers`` is None where fewer than two are at hand with dense labels of the split.
    JSON values.
    """
    headed = {seed: model.to(device).eval() for seed, model in models.items() if isinstance(model, Hydra)}
    if not headed:
        return None
    pieces: dict[int, list[npt.NDArray[Any]]] = {seed: [] for seed in headed}
    for _, inputs in plain_batches(dataset, rows, batch_size=batch_size, workers=workers):
        for seed, model in headed.items():
            with torch.inference_mode():
                pieces[seed].append(_reduced(model.heads(inputs.to(device)).float().cpu().numpy()))
    labels = np.asarray(dataset.labels)[rows]
    return {
        "seeds": {str(seed): _summary(found, labels) for seed, found in pieces.items()},
        "teachers": _of_teachers(teachers, dataset, split, rows, labels, batch_size) if teachers else None,
    }


def averaged(uncertainty: Mapping[str, Any] | None) -> dict[str, float | None]:
    """The flat figures: means over the seeds, and those of the teachers."""
    if uncertainty is None:
        return {}
    found: dict[str, float | None] = {}
    for name in (ENTROPY, INFORMATION, AUROC):
        values = [figures[name] for figures in uncertainty["seeds"].values() if figures[name] is not None]
        found[name] = round(float(np.mean(values)), 4) if values else None
        own = (uncertainty["teachers"] or {}).get(name)
        found[f"teacher_{name}"] = None if own is None else round(own, 4)
    return found


def _of_teachers(
    teachers: AnyTeacher,
    dataset: Dataset,
    split: str,
    rows: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    batch_size: int,
) -> dict[str, float | None] | None:
    """The same of the teachers, each with the same weight, as the heads have."""
    if len(teachers.caches) < 2 or split not in teachers.splits:
        return None
    readers = [teacher_labels(cache, dataset, split) for cache in teachers.caches]
    pieces = []
    for first in range(0, len(rows), batch_size):
        found = [reader(rows[first : first + batch_size]) for reader in readers]
        dense = [soft.logits for soft in found if isinstance(soft, Dense)]
        if len(dense) < len(found):
            return None
        pieces.append(_reduced(np.stack(dense)))
    return _summary(pieces, labels)


def _reduced(logits_MBC: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Entropy, mutual information and the class chosen, (3, B)."""
    entropy, information = entropy_and_information(logits_MBC)
    mean = np.mean([np.exp(log_softmax(logits)) for logits in logits_MBC], axis=0)
    return np.stack([entropy, information, mean.argmax(axis=1)])


def _summary(pieces: Sequence[npt.NDArray[Any]], labels: npt.NDArray[np.int64]) -> dict[str, float | None]:
    entropy, information, chosen = np.concatenate(pieces, axis=1)
    return {
        ENTROPY: float(entropy.mean()),
        INFORMATION: float(information.mean()),
        AUROC: auroc(information, chosen != labels),
    }


def _entropy(probabilities: Floats) -> Floats:
    """In nats, over the last axis, with 0 log 0 = 0."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    return np.asarray(-(probabilities * logs).sum(axis=-1))
