"""Several teachers as one: their probabilities averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.sampler import Order, Rows
from pipeline.softlabels import Dense
from pipeline.sources.base import LabelSource, LabelStream


class Mixture:
    """The weighted mean of several sources' probabilities at one temperature, as Dense labels for that temperature.

    The labels are ``T * log(sum_i w_i softmax(z_i / T))``: softened by T they give the mean exactly. Weights are
    divided by their sum. A row has labels when all sources have some. Raises ConfigError when the sources do not fit
    together or give labels that are not dense: dropped classes cannot be averaged.
    """

    def __init__(self, sources: Sequence[tuple[LabelSource, float]], *, temperature: float) -> None:
        if not sources or any(not weight > 0 for _, weight in sources) or not temperature > 0:
            raise ConfigError("a mixture needs at least one source, weights above 0 and a temperature above 0")
        if len({source.classes for source, _ in sources}) > 1:
            raise ConfigError(
                f"the sources of a mixture should have the same classes; found {[s.classes for s, _ in sources]}"
            )
        total = sum(weight for _, weight in sources)
        self.sources = [source for source, _ in sources]
        self.weights = [weight / total for _, weight in sources]
        self.temperature = temperature

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.sources[0].classes

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of these dataset rows have labels in every source, (B,)."""
        return np.asarray(np.logical_and.reduce([source.has(rows) for source in self.sources]))

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> _MixedStream:
        """A stream of each source, read side by side."""
        opened: list[LabelStream] = []
        try:
            for source in self.sources:
                opened.append(source.stream(order, epoch, start, view))
        except BaseException:
            for stream in opened:
                stream.close()
            raise
        return _MixedStream(opened, self.weights, self.temperature)


class _MixedStream:
    def __init__(self, streams: Sequence[LabelStream], weights: Sequence[float], temperature: float) -> None:
        self._streams, self._weights, self._temperature = streams, weights, temperature

    def next(self, inputs: Tensor, rows: Rows) -> Dense:
        terms: list[Tensor] = []
        for number, (stream, weight) in enumerate(zip(self._streams, self._weights, strict=True)):
            soft = stream.next(inputs, rows)
            if not isinstance(soft, Dense):
                raise ConfigError(
                    f"a mixture needs dense labels; its source {number} gives {type(soft).__name__}. Dump with "
                    "--encoding dense"
                )
            terms.append(torch.log_softmax(soft.logits.float() / self._temperature, dim=1) + math.log(weight))
        return Dense(torch.logsumexp(torch.stack(terms), dim=0) * self._temperature)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
