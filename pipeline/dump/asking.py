"""Putting a batch to the teacher, and encoding what it says where it was said: only what is kept crosses to the host.

Of token sequences the logits of all positions would be large: B * T rows of a vocabulary. They are made of the hidden
states, some rows at a time, and encoded before the next ones are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline import encodings
from pipeline.devices import autocast, on_device
from pipeline.dump.job import Job
from pipeline.encodings import Keys
from pipeline.encodings.device_torch import Coming
from pipeline.encodings.encode_torch import Begun, begin
from pipeline.errors import EncodingError
from pipeline.models import FeatureTap, logits_of
from pipeline.sources.positions import positions_of, said_at

Rows = npt.NDArray[np.int64]

LOGITS_AT_ONCE = {"cpu": 1 << 26, "cuda": 1 << 28}
"""Logits of sequences that are made together: 256 MiB, for products of few rows are slow, or 1 GiB."""


@dataclass(frozen=True)
class Answers:
    """What the teacher said about a batch, on the host: P positions, one for each entry but of token sequences.

    ``arrays`` as the encoding keeps them, ``features`` (P, ...) float16, ``predicted`` (P,) the teacher's classes,
    ``expected`` (P,) the hard labels of the positions, -1 for none; ``sampled`` (n, C) float32 the logits of a few
    positions, to measure how faithful the arrays are.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    features: Mapping[str, npt.NDArray[np.float16]]
    predicted: npt.NDArray[np.int64]
    expected: npt.NDArray[np.int64]
    sampled: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.predicted)


@dataclass(frozen=True)
class Asked:
    """A batch that the teacher has been asked about, where it runs. A GPU may still be at it: nothing has waited.

    - ``values`` (P, C) logits; with a ``head`` (P, D), the hidden states that it makes logits of;
    - ``features`` (P, ...) float16; ``expected`` (P,) int64 hard labels, -1 for none; ``entries``: B.
    """

    values: Tensor
    features: Mapping[str, Tensor]
    expected: Tensor
    entries: int
    head: nn.Linear | None = None

    def logits(self, device: torch.device) -> Iterator[tuple[int, Tensor]]:
        """(first row, logits (n, C)) of some rows after others."""
        step = len(self.values) if self.head is None else rows_at_once(device, self.head.out_features)
        for first in range(0, len(self.values), step):
            yield first, self.logits_of(slice(first, first + step))

    def logits_of(self, rows: slice) -> Tensor:
        """(n, C) floating: the logits of some ``rows``, in what the teacher computed them in."""
        values = self.values[rows]
        return values if self.head is None else self.head(values)


@dataclass(frozen=True)
class Awaited:
    """The answers about a batch, on their way to the host."""

    asked: Asked
    pieces: tuple[tuple[int, Begun, Coming], ...]
    features: Coming
    finite: Coming
    expected: Coming

    def answers(self) -> Answers:
        """Once they are there. Raises EncodingError, with ``row`` set, for what cannot be kept."""
        for name, finite in self.finite.arrays().items():
            if len(bad := np.flatnonzero(~finite)):
                raise EncodingError(f"feature {name} is NaN, infinite or beyond float16's 65,504", row=int(bad[0]))
        found = []
        for first, begun, coming in self.pieces:
            try:
                arrays = begun.arrays()
            except EncodingError as error:
                raise EncodingError(str(error), None if error.row is None else first + error.row) from None
            found.append((arrays, coming.arrays()))
        parts, said = zip(*found, strict=True)
        return Answers(
            arrays={name: _joined([part[name] for part in parts]) for name in parts[0]},
            features=self.features.arrays(),
            predicted=_joined([each["predicted"] for each in said]),
            expected=self.expected.arrays()["expected"],
            sampled=_joined([each["sampled"] for each in said]),
        )


def rows_at_once(device: torch.device, classes: int) -> int:
    """How many rows of logits of sequences are made together."""
    return max(1, LOGITS_AT_ONCE.get(device.type, 1 << 24) // classes)


def ask(job: Job, inputs: Tensor, rows: Rows, view: int = 0) -> Asked:
    """Put the ``inputs`` (B, ...) of dataset ``rows`` (B,) to the teacher.

    Raises ModelError for an output that holds no logits.
    """
    inputs = inputs.to(job.device, non_blocking=True)
    with (
        torch.inference_mode(),
        autocast(job.device, job.config.precision),
        FeatureTap(job.teacher, job.features) as tap,
    ):
        if not job.dataset.discrete:
            logits = logits_of(job.forward(inputs))
            halves = {name: value.to(torch.float16) for name, value in tap.values.items()}
            expected = torch.from_numpy(entry_labels(job, view, rows))
            return Asked(logits, halves, expected, len(rows))
        positions = positions_of(job.dataset, rows, job.device)
        tokens = inputs[:, : positions.longest]
        values, head = said_at(job.forward, job.body_and_head, tokens, positions.index)
        halves = {name: positions.of(value).to(torch.float16) for name, value in tap.values.items()}
        return Asked(values, halves, positions.targets, len(rows), head)


def answers(job: Job, asked: Asked, sample: slice, keys: Keys | None = None) -> Answers:
    """``awaited``, and waiting for it. Raises EncodingError, with ``row`` set, for what cannot be kept."""
    return awaited(job, asked, sample, keys).answers()


def awaited(job: Job, asked: Asked, sample: slice, keys: Keys | None = None) -> Awaited:
    """The answers to ``asked``, encoded on the teacher's device; logits of the positions ``sample`` come too.

    ``keys`` (P,): where the encoding draws.
    """
    wanted = np.arange(len(asked.values))[sample]
    pieces = []
    with torch.inference_mode(), autocast(job.device, job.config.precision):
        for first, logits in asked.logits(job.device):
            here = slice(first, first + len(logits))
            rows = wanted[(wanted >= first) & (wanted < first + len(logits))] - first
            begun = begin(job.encoding, logits, None if keys is None else keys[here], partial(_again, job, asked, here))
            sampled = logits[on_device(rows, logits.device)].float()
            best = _best(logits) if begun.best is None else begun.best
            pieces.append((first, begun, Coming({"predicted": best, "sampled": sampled})))
        finite = {name: value.flatten(1).isfinite().all(dim=1) for name, value in asked.features.items()}
    return Awaited(asked, tuple(pieces), Coming(asked.features), Coming(finite), Coming({"expected": asked.expected}))


def _again(job: Job, asked: Asked, rows: slice) -> Tensor:
    with torch.inference_mode(), autocast(job.device, job.config.precision):
        return asked.logits_of(rows)


def keys_of(job: Job, rows: Rows, view: int) -> Keys | None:
    """A key (P,) for each position of the entries of dataset ``rows`` (B,); None where nothing is drawn."""
    if not job.encoding.draws:
        return None
    ids, lengths = (str(job.dataset.ids[row]) for row in rows.tolist()), np.asarray(job.dataset.lengths)[rows]
    return encodings.keys_of(ids, view, lengths.tolist())


def entry_labels(job: Job, view: int, rows: Rows) -> npt.NDArray[np.int64]:
    """The hard labels (n,) of entries of dataset ``rows``; -1 for none, and for all of a view that is mixed."""
    if view and job.views.mixed:
        return np.full(len(rows), -1, np.int64)  # two examples, and no label of both
    return np.asarray(job.dataset.labels)[rows].astype(np.int64)


def _best(logits: Tensor) -> Tensor:
    # numpy finds the largest several times faster than torch, and on the CPU nothing is copied for it.
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.float().numpy().argmax(axis=1))
    return logits.argmax(dim=1)


def _joined(pieces: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
