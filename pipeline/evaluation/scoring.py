"""Run models over rows of a dataset, reading the data once for all of them, and keep what the metrics need."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline import metrics
from pipeline.datasets import Dataset
from pipeline.errors import DataError
from pipeline.metrics import Scores
from pipeline.models import logits_of
from pipeline.softlabels import SoftLabels
from pipeline.sources import match
from pipeline.store import Cache
from pipeline.views import Views, input_loader

HELD_OUT = "validation"
"""The split that temperatures and constants are fitted on, and choices made."""
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Predictor = Callable[[Tensor], npt.NDArray[Any]]
"""(B, ...) float32 inputs to (B, C) float32 logits on the host."""
TeacherLabels = Callable[[npt.NDArray[np.int64]], SoftLabels]
"""Dataset rows (B,) to the soft labels of their plain view."""


def of_one(found: Mapping[tuple[str, int], Value], name: str) -> dict[int, Value]:
    """What belongs to one candidate, by seed, of what is kept by (name, seed)."""
    return {seed: value for (one, seed), value in found.items() if one == name}


def torch_predictor(model: nn.Module, device: torch.device) -> Predictor:
    """(B, ...) float32 inputs to (B, C) float32 logits on the host, in eval mode, without gradients."""
    model = model.to(device).eval()

    def predict(inputs: Tensor) -> npt.NDArray[Any]:
        with torch.inference_mode():
            return np.asarray(logits_of(model(inputs.to(device))).float().cpu().numpy())

    return predict


def plain_batches(
    dataset: Dataset, rows: npt.NDArray[np.int64], *, batch_size: int, workers: int = 0
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """Dataset rows (B,) and their plain, prepared inputs (B, ...) float32, batch by batch in the order given."""
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
    teacher: TeacherLabels | None = None,
    temperature: float = 1.0,
    batch_size: int = 256,
    workers: int = 0,
    advance: Callable[[int], object] = lambda n: None,
    observe: Callable[[Key, npt.NDArray[Any], npt.NDArray[Any]], object] = lambda key, logits, labels: None,
) -> dict[Key, Scores]:
    """Run every predictor over the plain view of ``rows`` (N,), reading the data once, and keep its scores.

    ``observe`` is shown each batch of a predictor: its finite logits (B, C) and labels (B,), in order of the rows.
    """
    pieces: dict[Key, list[Scores]] = {key: [] for key in predictors}
    labels = np.asarray(dataset.labels)
    for batch, inputs in plain_batches(dataset, rows, batch_size=batch_size, workers=workers):
        soft = teacher(batch) if teacher else None
        for key, predict in predictors.items():
            logits = predict(inputs)
            pieces[key].append(metrics.score(logits, labels[batch], soft, temperature))
            observe(key, logits, labels[batch])
        advance(len(batch))
    return {key: metrics.concatenate(found) for key, found in pieces.items()}


def labelled_rows(dataset: Dataset, split: str) -> npt.NDArray[np.int64]:
    """The dataset rows of a split that have a hard label. Raises DataError when there is none."""
    rows = dataset.rows(split)
    rows = rows[np.asarray(dataset.labels)[rows] >= 0]
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


def teacher_scores(teacher: TeacherLabels, dataset: Dataset, rows: npt.NDArray[np.int64], batch_size: int) -> Scores:
    """The teacher's own predictions against the hard labels, from its soft labels."""
    labels = np.asarray(dataset.labels)
    pieces = []
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        soft = teacher(batch)
        guesses = metrics.predicted(soft)
        pieces.append(
            Scores(
                labels=labels[batch].astype(np.int64),
                predictions=guesses,
                confidence=np.full(len(batch), np.nan),
                log_likelihood=np.full(len(batch), np.nan),
                rank=np.full(len(batch), -1, dtype=np.int32),
                brier=np.full(len(batch), np.nan),
            )
        )
    return metrics.concatenate(pieces)
