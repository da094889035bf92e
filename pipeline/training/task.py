"""What is trained on: inputs, labels, where the soft labels come from, and what is held out for choices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.datasets import Dataset
from pipeline.errors import ConfigError, DataError, some
from pipeline.identity import SPLITS, digest, digest_array
from pipeline.losses.response import NO_LABEL
from pipeline.sampler import Rows
from pipeline.sources import FeatureSource, LabelSource
from pipeline.training.inputs import Inputs
from pipeline.training.objective import Goal

Mixing = Callable[[Rows, int], tuple[Rows, npt.NDArray[np.float32]]]
"""Of rows (B,) and a random view: the row that each is mixed with, and its own share of the mixture, (B,) both."""


@dataclass(frozen=True)
class Task:
    """Everything ``fit`` needs besides a model and a recipe; shared by the seeds of a run.

    - ``blocks``: the dataset rows of the training set (a row may occur several times), cut as the sampler wants them;
    - ``labels`` (N,): hard labels of the whole dataset as training may use them, -1 for none;
    - ``inputs``: of the training rows; epoch e uses view ``train_views[e mod len(train_views)]``;
    - ``mixing``: what each view is mixed of, None where none is;
    - ``source``: of soft labels, None for hard labels only; ``hints``: of the teacher's features, None for none;
    - ``example`` (1, ...): an input, to see the shapes of what a model gives;
    - ``validation``: labelled rows that choices are made on, empty for none, with their ``validation_inputs``;
    - ``validation_labels`` (N,): their labels, never reduced by ``labelled_fraction``;
    - ``sequences``: the dataset, where its examples are token sequences. The labels of each are its own next tokens,
      and count where ``labels`` is not -1.
    """

    classes: int
    blocks: tuple[Rows, ...]
    labels: npt.NDArray[np.int64]
    inputs: Inputs
    train_views: tuple[int, ...]
    objective: Goal
    source: LabelSource | None
    hints: FeatureSource | None
    example: Tensor
    validation: Rows
    validation_inputs: Inputs
    validation_labels: npt.NDArray[np.int64]
    device: torch.device
    mixing: Mixing | None = None
    sequences: Dataset | None = None

    @property
    def examples(self) -> int:
        """Visits of one epoch."""
        return sum(len(block) for block in self.blocks)


def data_lineage(dataset: Dataset) -> dict[str, Any]:
    """What a model is trained and chosen on, as JSON values: part of the identity of a run.

    The data digest leaves hard labels out, for a cache outlives their correction. A student does not: those of the
    training and validation splits count here.
    """
    labels = np.where(np.asarray(dataset.splits) == SPLITS.index("test"), NO_LABEL, dataset.labels)
    return {
        "data": dataset.digest(),
        "hard_labels": digest_array(labels.astype(np.int64)),
        "class_names": digest(list(dataset.classes)),
        "preprocessing": dataset.preprocessing,
    }


def hard_labels(dataset: Dataset) -> npt.NDArray[np.int64]:
    """The hard labels (N,) of a dataset, -1 for none. Of token sequences: 0, for each is judged by its tokens."""
    if dataset.discrete:
        return np.zeros(len(dataset), dtype=np.int64)
    return np.asarray(dataset.labels, dtype=np.int64)


def view_numbers(text: str, available: Sequence[int]) -> tuple[int, ...]:
    """The views to train on: ``plain`` (view 0), ``random`` (all others), ``all``, or the first so many as a number.

    >>> view_numbers("3", range(9))
    (0, 1, 2)

    Raises ConfigError when there are none such.
    """
    if text == "plain":
        chosen = tuple(available[:1])
    elif text == "random":
        chosen = tuple(available[1:])
    elif text == "all":
        chosen = tuple(available)
    else:
        chosen = tuple(available[: int(text)]) if text.isdecimal() and int(text) <= len(available) else ()
    if not chosen:
        raise ConfigError(
            f"--train-views should be plain, random, all or 1 to {len(available)}; found {text!r} with "
            f"{len(available)} view{'s' if len(available) != 1 else ''} on hand, the plain one included"
        )
    return chosen


def keep_labels(dataset: Dataset, rows: Rows, fraction: float, noise: float = 0.0) -> npt.NDArray[np.int64]:
    """Hard labels (N,) of ``rows`` alone, and of each class only the share ``fraction``, at least one; -1 elsewhere.

    Which examples keep theirs follows from a hash of their ids: the same ones in any order, on any machine, and a
    smaller fraction keeps some of those of a larger one.

    ``noise``: share of all labels of ``rows`` that are wrong (``flipped``). It is there before a fraction is taken, and
    the fraction is of the true classes: the same examples keep their label whatever the noise, and the same labels are
    wrong whatever the fraction.
    """
    labels = np.full(len(dataset), NO_LABEL, dtype=np.int64)
    labels[rows] = hard_labels(dataset)[rows]
    noisy = flipped(dataset, labels, noise)
    for number in np.unique(labels[labels >= 0]) if fraction < 1 else ():
        members = np.flatnonzero(labels == number)
        ranks = np.argsort(_hashes("labelled", dataset, members))
        noisy[members[ranks[max(1, round(fraction * len(members))) :]]] = NO_LABEL
    return noisy


def flipped(dataset: Dataset, labels: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    """A copy of hard labels (N,), -1 for none, of which ``share`` is of another class, each other class as likely.

    Which ones, and what they become, follows from a hash of the ids: the same in any order, on any machine, and a
    larger share flips those of a smaller one, to the same classes, and more.

    Raises ConfigError when there is no other class.
    """
    labels = labels.copy()
    if not share:
        return labels
    members = np.flatnonzero(labels >= 0)
    chosen = members[np.argsort(_hashes("noise", dataset, members))[: round(share * len(members))]]
    others = len(dataset.classes) - 1
    if len(chosen) and not others:
        raise ConfigError(f"--label-noise needs a second class; {dataset.name} has {dataset.classes[0]!r} alone")
    for row, value in zip(chosen.tolist(), _hashes("class", dataset, chosen), strict=True):
        labels[row] = (labels[row] + 1 + int.from_bytes(value[:8], "little") % others) % (others + 1)
    return labels


def _hashes(purpose: str, dataset: Dataset, rows: Rows) -> list[bytes]:
    return [hashlib.sha256(f"{purpose}\0{dataset.ids[row]}".encode()).digest() for row in rows.tolist()]


def without_class(dataset: Dataset, rows: Rows, name: str | None) -> Rows:
    """``rows`` without the examples of one class. Raises ConfigError when there is no class of that name."""
    if not name:
        return rows
    if name not in dataset.classes:
        known = some(dataset.classes, 10)
        raise ConfigError(f"--omit-class should be a class of {dataset.name} ({known}); found {name!r}")
    return np.asarray(rows[np.asarray(dataset.labels)[rows] != dataset.classes.index(name)], dtype=np.int64)


def repeated(rows: Rows, times: int, whole: int) -> Rows:
    """``rows`` ``times`` over; 0 times means as often as makes an epoch about as long as one over ``whole`` rows."""
    if not len(rows):
        raise DataError("no training example is left: none has a label or soft labels to learn from")
    return np.tile(rows, times or max(1, round(whole / len(rows))))
