"""Small token data for tests: made sequences with prompts that are not scored, of one length or uneven."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.datasets import Dataset

VOCABULARY = 24


class Made(Dataset):
    """``n`` sequences of a made language: each token follows from the one before, mostly. Classes are its tokens."""

    discrete = True

    def __init__(self, n: int = 60, longest: int = 12, uneven: bool = True, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        follows = np.random.default_rng(99).integers(0, VOCABULARY, size=(VOCABULARY, 2))
        self._tokens = np.zeros((n, longest + 1), np.int64)
        self._tokens[:, 0] = random.integers(0, VOCABULARY, n)
        for place in range(longest):
            either = follows[self._tokens[:, place], random.integers(0, 2, n)]
            self._tokens[:, place + 1] = np.where(random.random(n) < 0.1, random.integers(0, VOCABULARY, n), either)
        place = np.arange(longest)
        begin = random.integers(0, 4, n) if uneven else np.zeros(n, np.int64)
        end = random.integers(6, longest + 1, n) if uneven else np.full(n, longest)
        self._scored = (place >= begin[:, None]) & (place < end[:, None])
        # Padding, as any real source has it: zeros after the last token.
        self._tokens[:, :-1][place >= end[:, None]] = 0
        super().__init__(
            name="made",
            classes=[f"t{number}" for number in range(VOCABULARY)],
            ids=[f"made/{number:04d}" for number in range(n)],
            input_shape=(longest,),
            preprocessing="made tokens",
        )

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return self._scored.sum(axis=1).astype(np.int64)

    def load(self, row: int) -> Tensor:
        return torch.from_numpy(self._tokens[row, :-1].copy())

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def bytes_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """One byte a token."""
        return self.lengths[rows]

    def targets(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.where(self._scored[rows], self._tokens[rows, 1:], -1)


def uneven() -> Made:
    return Made()


def even() -> Made:
    return Made(uneven=False)
