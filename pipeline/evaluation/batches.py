"""A batch of examples and the rows that are scored in it: one of each example, or one of each token that counts.

Everything that is measured is measured of rows: (P, C) logits of a model, soft labels of a teacher, P labels. Of
classification P is the number of examples. Of token sequences there are many rows to an example and many classes, so
no more logits are held than those of one part of a batch: all models and the teacher go through it part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.datasets import Dataset
from pipeline.models import logits_of
from pipeline.models.causal import split_head
from pipeline.softlabels import Dense, SoftLabels
from pipeline.sources.positions import Positions, at_positions, positions_of

Rows = npt.NDArray[np.int64]
Value = TypeVar("Value")
Predictor = Callable[[Tensor], npt.NDArray[Any]]
"""(B, ...) float32 inputs to (B, C) float32 logits on the host; (B, T) int64 tokens to (B, T, V)."""
TeacherLabels = Callable[[Rows], SoftLabels]
"""Dataset rows (B,) to the soft labels of their plain view, those of all scored rows one after another."""

CHUNK_ELEMENTS = 1 << 20
"""Logits of one part of a batch of token sequences: 8 MiB of float64, of which the measures hold about ten at once."""
READ_ELEMENTS = 1 << 25
"""Dense labels that are read at once, sparse ones as if they were dense: 64 MiB of float16."""
TOKENS_OF_BATCH = 1 << 15
"""Tokens that go through a model at once."""


@dataclass(frozen=True)
class Part:
    """Some of a batch: ``examples`` of it, and ``scored``, those of its P rows that are looked at, all of these."""

    examples: slice
    scored: slice


@dataclass(frozen=True)
class Batch:
    """Examples that are read together.

    - ``rows`` (B,): of the dataset; ``inputs`` (B, ...) on the host; ``labels`` (P,) int64;
    - ``positions``: of token sequences, where their P rows lie, on the host; None where each example is one row.
    """

    rows: Rows
    inputs: Tensor
    labels: npt.NDArray[np.int64]
    positions: Positions | None = None

    @cached_property
    def ends(self) -> Rows:
        """(B + 1,): the P rows of example b are those from ``ends[b]`` to ``ends[b + 1]``."""
        lengths = np.ones(len(self.rows), np.int64) if self.positions is None else self.positions.lengths.numpy()
        return np.concatenate([[0], np.cumsum(lengths)])

    @cached_property
    def groups(self) -> Rows | None:
        """(P,): the dataset row that each scored row is of; None where each example is one row."""
        return None if self.positions is None else np.repeat(self.rows, np.diff(self.ends))

    @property
    def tokens(self) -> Tensor:
        """(B, L): token sequences up to the last that is scored in any."""
        assert self.positions is not None
        return self.inputs[:, : self.positions.longest]

    def parts(self, classes: int) -> Iterator[Part]:
        """What is looked at at a time, in order: whole sequences, or some of the rows of one that is too long."""
        count = len(self.rows)
        if self.positions is None:
            yield Part(slice(0, count), slice(0, count))
            return
        first, most = 0, max(1, CHUNK_ELEMENTS // classes)
        while first < count:
            begin = int(self.ends[first])
            last = max(first + 1, int(np.searchsorted(self.ends, begin + most, side="right")) - 1)
            end = int(self.ends[last])
            for start in range(begin, end, most):
                yield Part(slice(first, last), slice(start, min(start + most, end)))
            first = last

    def select(self, values: Tensor, part: Part) -> Tensor:
        """(p, ...): the rows of ``part`` among ``values`` (b, L, ...) of its examples, which are token sequences."""
        assert self.positions is not None
        index, scored = self.positions.index, part.scored
        if index is None:
            index = torch.arange(len(self.positions))
        return at_positions(values, (index[scored] - part.examples.start * values.shape[1]).to(values.device))


Logits = npt.NDArray[Any] | Tensor
"""Of rows, (p, C): an array of examples; of tokens a tensor on the device where it was computed."""
Answer = Callable[[Part], Logits]
"""From a part of a batch, parts in order, to the logits of its rows."""
Opinion = Callable[[Part], SoftLabels]
"""From a part of a batch, parts in order, to what a teacher says of its rows."""
Teacher = Callable[[Batch], Opinion]


def batch_of(dataset: Dataset, rows: Rows, inputs: Tensor) -> Batch:
    """The batch of dataset rows (B,) whose prepared inputs are given."""
    if not dataset.discrete:
        return Batch(rows, inputs, np.asarray(dataset.labels)[rows])
    positions = positions_of(dataset, rows, torch.device("cpu"))
    return Batch(rows, inputs, positions.targets.numpy(), positions)


def batch_size_of(dataset: Dataset, batch_size: int) -> int:
    """``batch_size``; of token sequences no more than come to ``TOKENS_OF_BATCH``."""
    return min(batch_size, max(1, TOKENS_OF_BATCH // dataset.input_shape[0])) if dataset.discrete else batch_size


class TorchPredictor:
    """A module, in eval mode and without gradients, as a ``Predictor``; of tokens its logits stay on the device."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model.to(device).eval(), device

    @cached_property
    def parts(self) -> tuple[nn.Module, nn.Linear] | None:
        """Body and head of a causal language model; see ``split_head``."""
        return split_head(self.model)

    def __call__(self, inputs: Tensor) -> npt.NDArray[Any]:
        with torch.inference_mode():
            return np.asarray(logits_of(self.model(inputs.to(self.device))).float().cpu().numpy())

    def answer(self, batch: Batch) -> Answer:
        """Of token sequences: hidden states of all scored rows at once, their logits part by part."""
        assert batch.positions is not None
        if self.parts is None:
            return by_examples(batch, self.logits)
        body, head = self.parts
        index = batch.positions.index
        with torch.inference_mode():
            hidden_PD = at_positions(
                body(batch.tokens.to(self.device)), None if index is None else index.to(self.device)
            )

        def answer(part: Part) -> Logits:
            with torch.inference_mode():
                logits: Tensor = head(hidden_PD[part.scored])
                return logits.float()

        return answer

    def logits(self, tokens: Tensor) -> Tensor:
        """(b, L) to (b, L, V) float32, on the device."""
        with torch.inference_mode():
            return logits_of(self.model(tokens.to(self.device))).float()


def ask(predict: Predictor, batch: Batch) -> Answer:
    """The answers of a predictor to a batch, part by part."""
    if batch.positions is None:
        logits = predict(batch.inputs)
        return lambda part: logits[part.scored]
    if isinstance(predict, TorchPredictor):
        return predict.answer(batch)
    return by_examples(batch, lambda tokens: torch.from_numpy(predict(tokens)))


def by_examples(batch: Batch, predict: Callable[[Tensor], Tensor]) -> Answer:
    """Of token sequences: all logits of the sequences of a part, which are run once however many parts they have."""
    read = _remembered(lambda examples: predict(batch.tokens[examples]))
    return lambda part: batch.select(read(part.examples), part)


def told_by_labels(read: TeacherLabels, classes: int) -> Teacher:
    """Soft labels that are read by dataset rows, as what a teacher says of a batch; of sequences some at a time."""
    most = max(1, READ_ELEMENTS // classes)

    def told(batch: Batch) -> Opinion:
        held: list[SoftLabels] = []
        begin = end = 0

        def opinion(part: Part) -> SoftLabels:
            nonlocal begin, end
            if not held or not begin <= part.scored.start < part.scored.stop <= end:
                first, last = part.examples.start, part.examples.stop
                begin = int(batch.ends[first])
                last = max(last, int(np.searchsorted(batch.ends, begin + most, side="right")) - 1)
                held[:] = [read(batch.rows[first:last])]
                end = int(batch.ends[last])
            (soft,) = held
            if (begin, end) == (part.scored.start, part.scored.stop):
                return soft
            return soft.select(slice(part.scored.start - begin, part.scored.stop - begin))

        return opinion

    return told


def told_by_model(predict: TorchPredictor) -> Teacher:
    """A model that runs beside those that are measured, as what a teacher says of a batch."""

    def told(batch: Batch) -> Opinion:
        answer = ask(predict, batch)
        return lambda part: Dense(answer(part))

    return told


def _remembered(read: Callable[[slice], Value]) -> Callable[[slice], Value]:
    """``read`` with its last answer kept: parts of one long sequence share it."""
    held: dict[tuple[int, int], Value] = {}

    def found(examples: slice) -> Value:
        key = (examples.start, examples.stop)
        if key not in held:
            held.clear()
            held[key] = read(examples)
        return held[key]

    return found
