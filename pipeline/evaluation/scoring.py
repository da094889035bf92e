"""Run models over rows of a dataset, reading the data once for all of them, and keep what the metrics need."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline import metrics
from pipeline.datasets import Dataset
from pipeline.errors import DataError
from pipeline.evaluation.batches import (
    Logits,
    Predictor,
    Teacher,
    TeacherLabels,
    TorchPredictor,
    ask,
    batch_of,
    batch_size_of,
)
from pipeline.metrics import Gathered, Scores, Told
from pipeline.metrics import scores_torch as on_device
from pipeline.softlabels import Dense, SoftLabels
from pipeline.sources import match
from pipeline.store import Cache
from pipeline.training.task import hard_labels
from pipeline.views import Views, input_loader

HELD_OUT = "validation"
"""The split that temperatures and constants are fitted on, and choices made."""
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Labels = npt.NDArray[np.int64]
Heard = Callable[[SoftLabels, Labels, Labels | None], object]


def of_one(found: Mapping[tuple[str, int], Value], name: str) -> dict[int, Value]:
    """What belongs to one candidate, by seed, of what is kept by (name, seed)."""
    return {seed: value for (one, seed), value in found.items() if one == name}


def torch_predictor(model: nn.Module, device: torch.device) -> TorchPredictor:
    """(B, ...) inputs to (B, C) float32 logits on the host, of tokens (B, T, V), in eval mode, without gradients."""
    return TorchPredictor(model, device)


def plain_batches(
    dataset: Dataset, rows: npt.NDArray[np.int64], *, batch_size: int, workers: int = 0
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """Dataset rows (B,) and their plain, prepared inputs (B, ...), batch by batch in the order given."""
    pairs = [(int(row), 0) for row in rows]
    loader = input_loader(
        dataset, Views(), [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)], workers
    )
    for first, inputs in zip(range(0, len(rows), batch_size), loader, strict=True):
        yield rows[first : first + batch_size], inputs


def score_rows(
    predictors: Mapping[Key, Predictor],
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    *,
    teacher: Teacher | None = None,
    temperature: float = 1.0,
    batch_size: int = 256,
    workers: int = 0,
    advance: Callable[[int], object] = lambda n: None,
    observe: Callable[[Key, Logits, Labels], object] = lambda key, logits, labels: None,
    hear: Heard = lambda soft, labels, groups: None,
) -> dict[Key, Scores]:
    """Run every predictor over the plain view of ``rows`` (N,), reading the data once, and keep its scores.

    They are of every example, or of every scored token of every sequence. ``observe`` is shown the finite logits (p, C)
    of each predictor and their labels (p,), in order of the rows; ``hear`` what the teacher said of them, with labels
    and groups.
    """
    gathered = {key: Gathered() for key in predictors}
    size = batch_size_of(dataset, batch_size)
    for some, inputs in plain_batches(dataset, rows, batch_size=size, workers=workers):
        batch = batch_of(dataset, some, inputs)
        answers = {key: ask(predict, batch) for key, predict in predictors.items()}
        opinion = teacher(batch) if teacher else None
        for part in batch.parts(len(dataset.classes)):
            labels = batch.labels[part.scored]
            groups = None if batch.groups is None else batch.groups[part.scored]
            told = _Prepared(opinion(part), temperature) if opinion else None
            for key, answer in answers.items():
                logits = answer(part)
                gathered[key].add(scores_of(logits, labels, told, groups))
                observe(key, logits, labels)
            if told is not None:
                hear(told.soft, labels, groups)
        advance(len(some))
    return {key: found.scores for key, found in gathered.items()}


class _Prepared:
    """Soft labels of some rows, prepared once for all models, on the device of each."""

    def __init__(self, soft: SoftLabels, temperature: float) -> None:
        self.soft = soft
        self._temperature = temperature
        self._on: dict[torch.device, on_device.ToldTensors] = {}

    @cached_property
    def here(self) -> Told:
        """For arrays."""
        return Told(self.soft, self._temperature)

    def on(self, device: torch.device) -> on_device.ToldTensors:
        """For tensors."""
        if device not in self._on:
            self._on[device] = on_device.ToldTensors(self.soft, self._temperature, device)
        return self._on[device]


def scores_of(logits: Logits, labels: Labels, told: _Prepared | None = None, groups: Labels | None = None) -> Scores:
    """What the metrics need of rows (p, C): of examples in float64 on the host, of tokens where they were computed."""
    if isinstance(logits, Tensor):
        return on_device.score(logits, labels, told.on(logits.device) if told else None, groups)
    return metrics.score(logits, labels, told.here if told else None, groups_N=groups)


def labelled_rows(dataset: Dataset, split: str) -> npt.NDArray[np.int64]:
    """The dataset rows of a split that have a hard label, or tokens to predict. Raises DataError when there is none."""
    rows = dataset.rows(split)
    rows = rows[hard_labels(dataset)[rows] >= 0]
    if not len(rows):
        raise DataError(f"{dataset.name} should have labelled examples in its {split} split; found none")
    return np.asarray(rows, dtype=np.int64)


def teacher_labels(cache: Cache, dataset: Dataset, split: str) -> TeacherLabels:
    """A function from dataset rows of ``split`` to the teacher's soft labels of their plain view.

    Raises CacheMismatchError when the cache belongs to other data, or lacks some of these examples.
    """
    matching = match(cache, dataset, split)

    def read(rows: npt.NDArray[np.int64]) -> SoftLabels:
        return cache.decode(cache.read_rows(split, 0, matching.entries(rows)))

    return read


class TeacherScores:
    """What a teacher's own soft labels come to, gathered by ``hear``: its predictions against the hard labels.

    Of the next tokens of sequences also how likely it found them, where it gives the probabilities of all.
    """

    def __init__(self) -> None:
        self._gathered, self._told = Gathered(), True

    def hear(self, soft: SoftLabels, labels: Labels, groups: Labels | None) -> None:
        """One part of a batch, as ``score_rows`` shows it."""
        if groups is not None and isinstance(soft, Dense):
            logits = soft.logits
            tensor = logits if isinstance(logits, Tensor) else torch.from_numpy(np.ascontiguousarray(logits))
            self._gathered.add(scores_of(tensor, labels, groups=groups))
            return
        guesses = Told(soft).predicted
        if guesses is None:
            self._told = False
            return
        unknown = np.full(len(labels), np.nan)
        self._gathered.add(
            Scores(
                labels=labels.astype(np.int64),
                predictions=guesses,
                confidence=unknown,
                log_likelihood=unknown,
                rank=np.full(len(labels), -1, dtype=np.int32),
                brier=unknown,
                groups=groups,
            )
        )

    @property
    def scores(self) -> Scores | None:
        """Of all that was heard; None of nothing, and where labels do not tell what the teacher puts first."""
        return self._gathered.scores if self._told and len(self._gathered) else None
