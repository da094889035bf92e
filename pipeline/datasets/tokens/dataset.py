"""``tokens:FOLDER``: the sequences of a packing contract as a dataset whose examples have a distribution per token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.datasets.base import Dataset
from pipeline.datasets.tokens import layout
from pipeline.datasets.tokens.contract import open_contract
from pipeline.datasets.tokens.packing import Ints
from pipeline.datasets.tokens.tokenizer import Tokenizer, open_tokenizer
from pipeline.errors import DataError
from pipeline.identity import SPLITS

ROWS = 1024
"""Sequences whose content is digested with one look at the files."""

NO_TARGET = -1
"""At a position that is not scored: prompt, padding, before the first token of another document."""


class Tokens(Dataset):
    """N sequences of at most T tokens over a vocabulary of V. No example has a label of its own.

    ``contract``: what the folder holds, checked; ``end``: the id of the token that ends a document.
    """

    discrete = True

    def __init__(self, path: str) -> None:
        """``path``: a folder that ``softlabels tokenize`` wrote. Raises DataError for one that is none, or damaged."""
        folder = Path(path).expanduser().absolute()
        self.contract = open_contract(folder)
        self.end = self.contract.end
        self._begins, self._stops, self._lengths, self._sizes = _columns(self.contract.sequences)
        self._tokens: npt.NDArray[Any] | None = None
        self._scored: npt.NDArray[Any] | None = None
        self._tokenizer: Tokenizer | None = None
        super().__init__(
            name=f"tokens:{path}",
            classes=self.contract.vocabulary,
            ids=self.contract.ids,
            input_shape=(int((self._stops - self._begins).max()) - 1,),
            splits=np.repeat(np.arange(len(SPLITS), dtype=np.int8), self.contract.counts),
            preprocessing=f"tokens of {self.contract.tokenizer_name}, {self.contract.packing.words}",
        )

    def __getstate__(self) -> dict[str, Any]:
        # A loader worker that is spawned opens the files again instead of receiving a copy of them.
        return self.__dict__ | {"_tokens": None, "_scored": None, "_tokenizer": None}

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Scored positions (N,) of each sequence, at least 1."""
        return self._lengths

    def load(self, row: int) -> Tensor:
        """(T,) int64: the input tokens, 0 where there are no more."""
        inputs = np.zeros(self.input_shape, np.int64)
        start, stop = int(self._begins[row]), int(self._stops[row]) - 1
        inputs[: stop - start] = self._arrays()[0][start:stop]
        return torch.from_numpy(inputs)

    def prepare(self, x: Tensor) -> Tensor:
        """Nothing more to do."""
        return x

    def targets(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(n, T) int64: the next token at each scored position of the n sequences, NO_TARGET elsewhere."""
        tokens, scored = self._arrays()
        rows = np.asarray(rows, np.int64)
        places = self._begins[rows, None] + 1 + np.arange(self.input_shape[0])
        inside = places < self._stops[rows, None]
        places = np.where(inside, places, 0)
        counts = inside & (scored[places >> 3] >> (places & 7).astype(np.uint8) & 1).astype(bool)
        return np.where(counts, tokens[places].astype(np.int64), NO_TARGET)

    def bytes_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """UTF-8 bytes (n,) of the text of each sequence's targets, for bits per byte; an end token stands for none."""
        return self._sizes[np.asarray(rows, np.int64)]

    def read(self, row: int) -> bytes:
        """The sequence's tokens as little-endian uint32, then a byte for each target: 1 where it is scored, else 0."""
        return next(self._contents_of(row, row + 1))

    def _contents_of(self, first: int, end: int) -> Iterator[bytes]:
        """``read`` of the rows from ``first`` to before ``end``, with one look at the files."""
        tokens, scored = self._arrays()
        low, high = int(self._begins[first]), int(self._stops[end - 1])
        ids = np.asarray(tokens[low:high], "<u4").tobytes()
        mask = layout.bits(scored, low, high).tobytes()
        begins, stops = self._begins[first:end] - low, self._stops[first:end] - low
        for start, stop in zip(begins.tolist(), stops.tolist(), strict=True):
            yield ids[4 * start : 4 * stop] + mask[start + 1 : stop]

    def _entries(self, contents: npt.NDArray[np.uint8], update: Any) -> Iterator[tuple[str, str, str]]:
        for first in range(0, len(self), ROWS):
            end = min(first + ROWS, len(self))
            for row, held in enumerate(self._contents_of(first, end), first):
                digest = hashlib.sha256(held)
                contents[row] = np.frombuffer(digest.digest(), np.uint8)
                yield self.ids[row], SPLITS[self.splits[row]], digest.hexdigest()
            update(end - first)

    def text_of(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        """The text of token ids, by the contract's tokenizer.

        Raises MissingDependencyError without the ``tokenizers`` library, DataError for an id beyond the vocabulary.
        """
        if self._tokenizer is None:
            file = self.contract.folder / layout.TOKENIZER
            self._tokenizer = open_tokenizer(str(file), end=self.classes[self.end], size=len(self.classes))
        numbers = [int(number) for number in ids]
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(self.classes):
            raise DataError(f"{self.name}: token ids should be 0 to {len(self.classes) - 1}")
        return self._tokenizer.decode(numbers)

    def _arrays(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        if self._tokens is None or self._scored is None:
            self._tokens, self._scored = self.contract.tokens(), self.contract.scored()
        return self._tokens, self._scored


def _columns(rows_N4: Ints) -> list[Ints]:
    return [np.ascontiguousarray(column) for column in rows_N4.T]
