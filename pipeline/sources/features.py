"""Features of the teacher (hints), batch by batch beside the soft labels: out of a cache, or from a live teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.sampler import Order, Rows
from pipeline.sources.cached import RESIDENT, CachedLabels, check_choice
from pipeline.sources.live import LiveTeacher
from pipeline.sources.stored import FeatureContent
from pipeline.sources.streams import CachedStream, Streams


class FeatureStream(Protocol):
    """The features of one epoch, batch by batch, in the order of the ``Order`` it was opened with."""

    def next(self, inputs: Tensor, rows: Rows) -> dict[str, Tensor]:
        """Features of the next batch by name, (B, ...) on the source's device: float16 as stored, float32 if live.

        ``inputs`` (B, ...) and ``rows`` (B,) are the very objects that the stream of labels gets for this batch. Rows
        for which the source ``has`` nothing get finite placeholders, to be weighed by 0.
        """

    def close(self) -> None:
        """Let go of threads and buffers. May be called twice."""


class FeatureSource(Protocol):
    """Anything that yields named features for a batch of entries."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of a feature of one entry, without B."""

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of these dataset rows have features, (B,)."""

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> FeatureStream:
        """Features of one view for the batches of one epoch, from batch number ``start`` on."""


class CachedFeatures:
    """Features ``names`` out of the cache of ``labels``, with its split, rows, rule for views, and device.

    - ``resident``: as for ``CachedLabels``, for these features alone: ``auto`` keeps them on the device when all views
      that are read take less than 256 MiB there, and streams them otherwise.

    A stream reads parts in a thread of its own, beside that of the labels, and at most two windows of them lie in
    memory. Parts were cut by the bytes of labels and features together, so that a window of ``w`` parts takes no more
    than ``w`` times what a part of the cache takes.

    Raises ConfigError for a name that the cache does not have, naming those that it has.
    """

    def __init__(self, labels: CachedLabels, names: Sequence[str], *, resident: str = "auto") -> None:
        check_choice("resident", resident, RESIDENT)
        self.labels = labels
        self.names = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
        content = FeatureContent(labels.cache, self.names)
        if not self.names:
            there = ", ".join(labels.cache.feature_names) or "none"
            raise ConfigError(f"name at least one feature of {labels.cache.address}; it has {there}")
        self.shapes: Mapping[str, tuple[int, ...]] = {n: shape for n, (shape, _) in content.stored.shapes().items()}
        self._streams = Streams(
            labels.cache,
            labels.matching,
            content,
            device=labels.device,
            resident=resident,
            views=len(labels.views_read),
        )
        self.resident = self._streams.resident

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of these dataset rows have features, (B,): those that have labels."""
        return self.labels.has(rows)

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> CachedStream[dict[str, Tensor]]:
        """Features of ``view`` for the batches of one epoch, from batch ``start`` on.

        Raises CacheMismatchError when the cache does not hold that view.
        """
        return self._streams.stream(order, epoch, start, self.labels.view_read(view))


class LiveFeatures:
    """The features of a ``teacher`` that was told of some (``LiveTeacher(..., features=...)``).

    ``example_input`` is a batch (B, ...) on the teacher's device; one forward pass of it tells the shapes. In a loop,
    the labels of the same teacher are asked for the same batch, before or after, with the same tensor of inputs: the
    teacher then runs once for both. Where labels and features are asked for different tensors, it runs for each.

    Raises ConfigError when the teacher keeps no features, ModelError when a module did not run or gave no tensor.
    """

    def __init__(self, teacher: LiveTeacher, example_input: Tensor) -> None:
        if not teacher.features:
            raise ConfigError(
                "this teacher keeps no features. Name some: LiveTeacher(..., features={'hint': 'a module of it'})"
            )
        self.teacher = teacher
        self.names = tuple(teacher.features)
        found = teacher.ask(example_input)[1]
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tuple(found[name].shape[1:]) for name in self.names}

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """All of them, (B,)."""
        return self.teacher.has(rows)

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> LiveFeatures:
        """These features: they follow from the inputs, not from the order."""
        return self

    def next(self, inputs: Tensor, rows: Rows) -> dict[str, Tensor]:
        """Features (B, ...) float32 by name for ``inputs`` (B, ...)."""
        return self.teacher.next_features(inputs, rows)

    def close(self) -> None:
        """Nothing to let go of."""
