"""Soft labels from a teacher that runs beside the student: what a cache stands in for and is tested against."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.datasets import Dataset
from pipeline.devices import autocast
from pipeline.models import FeatureTap, frozen, logits_of, split_head
from pipeline.sampler import Order, Rows
from pipeline.softlabels import Dense
from pipeline.sources.positions import Positions, positions_of, said_at


class LiveTeacher:
    """A teacher in evaluation mode, without gradients, run on the very inputs that the student gets.

    - ``classes``: C; ``precision`` of its forward pass: float32, bfloat16 or float16, whatever the student's is;
    - ``features``: names and paths of modules whose outputs are kept too (see ``FeatureTap``), for ``LiveFeatures``;
    - ``sequences``: the dataset, where it has token sequences: labels are then those of scored positions, and logits
      are made of no others where the model's head can be taken off (see ``split_head``).

    With features, one forward pass serves both ``next`` and ``next_features``, whichever is called first, when they
    are given the same tensor of inputs and the same rows. Each answer is given once and then let go of: asked again,
    the teacher runs again.

    Raises ConfigError listing the modules when it has none of a feature's path.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        *,
        device: str | torch.device = "cpu",
        precision: str = "float32",
        features: Mapping[str, str] | None = None,
        sequences: Dataset | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = frozen(model).to(self.device)
        self.precision = precision
        self.features = dict(features or {})
        self._tap = FeatureTap(self.model, self.features)
        self._classes = classes
        self._kept = _Kept()
        self._sequences = sequences
        self._parts = None if sequences is None else split_head(self.model)

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self._classes

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """All of them, (B,)."""
        return np.ones(len(rows), dtype=np.bool_)

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> LiveTeacher:
        """This teacher: it looks at inputs, not at the order."""
        return self

    def next(self, inputs: Tensor, rows: Rows) -> Dense:
        """Logits (B, C) float32 for ``inputs`` (B, ...); (P, V) at the scored positions of sequences (B, L)."""
        if self._sequences is not None:
            return self._at_positions(inputs, positions_of(self._sequences, rows, self.device))
        kept = self._kept.of(inputs, rows)
        if (labels := kept.labels) is None:
            labels, features = self.ask(inputs)
            if self.features:
                self._kept = _Kept(inputs, rows, features=features)
        kept.labels = None
        return labels

    def _at_positions(self, inputs: Tensor, positions: Positions) -> Dense:
        self.model.eval()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), autocast(self.device, self.precision):
            said, head = said_at(self.model, self._parts, inputs[:, : positions.longest], positions.index)
            return Dense((said if head is None else head(said)).float())

    def next_features(self, inputs: Tensor, rows: Rows) -> dict[str, Tensor]:
        """Features (B, ...) float32 by name for ``inputs`` (B, ...)."""
        kept = self._kept.of(inputs, rows)
        if (features := kept.features) is None:
            labels, features = self.ask(inputs)
            self._kept = _Kept(inputs, rows, labels=labels)
        kept.features = None
        return features

    def ask(self, inputs: Tensor) -> tuple[Dense, dict[str, Tensor]]:
        """Logits (B, C) and features (B, ...) by name, float32, for ``inputs`` (B, ...): a forward pass."""
        # Somebody's student may share modules with the teacher: `student.train()` must not reach it.
        self.model.eval()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), autocast(self.device, self.precision):
            if not self.features:
                return Dense(logits_of(self.model(inputs)).float()), {}
            with self._tap as tap:
                labels = Dense(logits_of(self.model(inputs)).float())
            features = {name: value.float() for name, value in tap.values.items()}
            tap.values.clear()
        return labels, features

    def close(self) -> None:
        """Nothing to let go of: the stream of labels may end before that of features."""


class _Kept:
    """What is left of the answer for one batch. It does not keep the inputs alive."""

    def __init__(
        self,
        inputs: Tensor | None = None,
        rows: Rows | None = None,
        *,
        labels: Dense | None = None,
        features: dict[str, Tensor] | None = None,
    ) -> None:
        self._inputs = None if inputs is None else weakref.ref(inputs)
        self._rows = rows
        self.labels, self.features = labels, features

    def of(self, inputs: Tensor, rows: Rows) -> _Kept:
        """This answer when it is one for these inputs and rows, otherwise one that holds nothing."""
        if self._inputs is None or self._rows is None:
            return _Kept()
        return self if self._inputs() is inputs and np.array_equal(self._rows, rows) else _Kept()
