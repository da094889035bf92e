"""Sequences of random tokens, and models of them, for benchmarks of language models."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.long_tail import Teacher
from pipeline.datasets import Dataset
from pipeline.models import build_model

VOCABULARY, LENGTH, BATCH, DRAWS = 32_000, 256, 8, 50


class Text(Dataset):
    """``rows`` sequences of random tokens, frequent ones more often; every position is scored."""

    discrete = True

    def __init__(self, rows: int, vocabulary: int = VOCABULARY, length: int = LENGTH) -> None:
        random = np.random.default_rng(3)
        drawn = (vocabulary ** random.random((rows, length + 1)) - 1).astype(np.int64)
        self._tokens = np.minimum(drawn, vocabulary - 1)
        super().__init__(
            name=f"{rows} synthetic sequences",
            classes=[f"token {number}" for number in range(vocabulary)],
            ids=[f"sequence/{row:08d}" for row in range(rows)],
            splits=np.zeros(rows, np.int8),
            input_shape=(length,),
        )

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.full(len(self), self.input_shape[0], np.int64)

    def load(self, row: int) -> Tensor:
        return torch.from_numpy(self._tokens[row, :-1].copy())

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def targets(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self._tokens[rows, 1:]


class Sure(nn.Module):
    """A teacher that costs nothing to run: the long-tailed one of ``benchmarks.long_tail``, by the token it sees."""

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.teacher = Teacher.make(vocabulary)
        states = self.teacher.hidden(vocabulary, seed=1)
        self.body = nn.Embedding(vocabulary, states.shape[1], _weight=states)
        self.bias = nn.Parameter(self.teacher.bias)
        self.weight = nn.Parameter(self.teacher.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.linear(self.body(ids), self.weight, self.bias)


def sure(classes: int) -> nn.Module:
    """For ``--teacher benchmarks.synthetic_text:sure``."""
    return Sure(classes)


def gpt(classes: int, width: int, layers: int) -> nn.Module:
    """For ``--teacher benchmarks.synthetic_text:gpt``: random weights, and known to be meant so."""
    torch.manual_seed(0)
    return build_model(f"gpt-{width}", {"layers": layers}, classes=classes, input_shape=(LENGTH,), discrete=True)
