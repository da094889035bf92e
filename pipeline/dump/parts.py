"""The teacher over one part after another, while a second thread writes the part before."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.datasets import Dataset
from pipeline.devices import autocast
from pipeline.dump.claims import Claims
from pipeline.dump.job import Job
from pipeline.encodings.encode_torch import encode
from pipeline.errors import EncodingError
from pipeline.fidelity import Fidelity
from pipeline.identity import SPLITS
from pipeline.models import FeatureTap, logits_of
from pipeline.progress import Bar
from pipeline.store import CacheWriter, IndexRows, Part
from pipeline.views import Entry, input_loader

SAMPLED_ENTRIES_PER_PART = 64


class EntryRows:
    """Which dataset rows each part holds."""

    def __init__(self, dataset: Dataset) -> None:
        self._rows = {split: dataset.rows(split) for split in SPLITS}

    def of(self, part: Part) -> npt.NDArray[np.int64]:
        """The dataset rows (entries,) of one part, in the order in which they are stored."""
        return self._rows[part.split][part.first : part.first + part.entries]


@dataclass(frozen=True)
class Answers:
    """What the teacher said about a batch, on the host.

    ``arrays`` as the encoding keeps them, ``features`` (B, ...) float16, ``predicted`` (B,) the teacher's classes,
    ``sampled`` (n, C) float32 the logits of a few rows, to measure how faithful the arrays are.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    features: Mapping[str, npt.NDArray[np.float16]]
    predicted: npt.NDArray[np.int64]
    sampled: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Asked:
    """Logits (B, C) float32 and features (B, ...) float16 of a batch, where the teacher runs.

    A GPU may still be at them: nothing has waited for it.
    """

    logits: Tensor
    features: Mapping[str, Tensor]


def ask(job: Job, inputs: Tensor) -> Asked:
    """Put a batch of inputs to the teacher. Raises ModelError for an output that holds no logits."""
    with (
        torch.inference_mode(),
        autocast(job.device, job.config.precision),
        FeatureTap(job.teacher, job.features) as tap,
    ):
        logits = logits_of(job.teacher(inputs.to(job.device, non_blocking=True)))
        return Asked(logits.float(), {name: value.to(torch.float16) for name, value in tap.values.items()})


def answers(job: Job, asked: Asked, sample: slice) -> Answers:
    """The answers to ``asked``, encoded on the teacher's device; logits of the rows ``sample`` come too.

    Raises EncodingError, with ``row`` set, for what cannot be kept.
    """
    with torch.inference_mode():
        logits, halves = asked.logits, asked.features
        for name, value in halves.items():
            if not bool(torch.isfinite(value).all()):
                row = int((~torch.isfinite(value.flatten(1)).all(dim=1)).nonzero()[0, 0])
                raise EncodingError(f"feature {name} is NaN, infinite or beyond float16's 65,504", row=row)
        # numpy finds the largest several times faster than torch, and on the CPU nothing is copied for it.
        best = logits.numpy().argmax(axis=1) if logits.device.type == "cpu" else logits.argmax(dim=1).cpu().numpy()
        return Answers(
            arrays=encode(job.encoding, logits),
            features={name: value.cpu().numpy() for name, value in halves.items()},
            predicted=best,
            sampled=logits[sample].cpu().numpy().copy(),
        )


def write_parts(job: Job, writer: CacheWriter, claims: Claims, bar: Bar) -> float:
    """Run the teacher over the parts that can be claimed now; seconds spent in its forward passes."""
    rows = EntryRows(job.dataset)
    order = _Batches(rows, claims, job.config.batch_size)
    loader = input_loader(job.dataset, job.views, order, job.config.workers, pin_memory=job.device.type == "cuda")
    seconds, first = 0.0, 0
    building: _PartBuilder | None = None
    waiting: tuple[_PartBuilder, int, Asked] | None = None
    writing: Future[None] | None = None

    def take(builder: _PartBuilder, first: int, asked: Asked) -> None:
        nonlocal seconds, writing
        began = time.perf_counter()
        builder.add(first, asked)
        seconds += time.perf_counter() - began
        bar.update(len(asked.logits))
        full = first + len(asked.logits) == builder.part.entries
        if writing is not None and (writing.done() or full):
            writing.result()  # a disk that is full should stop the teacher now; two parts are held at the most
        if full:
            writing = pool.submit(builder.write, writer, claims)

    with ThreadPoolExecutor(1, thread_name_prefix="softlabels-writer") as pool:
        for inputs in loader:  # while a GPU is at the batch before
            if waiting is not None:
                take(*waiting)
            if building is None:
                part = order.coming.popleft()
                building, first = _PartBuilder(job, part, rows.of(part)), 0
            began = time.perf_counter()
            waiting = building, first, ask(job, inputs)
            seconds += time.perf_counter() - began
            first += len(inputs)
            if first == building.part.entries:
                building = None
        if waiting is not None:
            take(*waiting)
        if writing is not None:
            writing.result()
    return seconds


class _Batches:
    """The (row, view) pairs of each batch of the parts that can be claimed, made as they are needed."""

    def __init__(self, rows: EntryRows, claims: Claims, size: int) -> None:
        self.rows, self.claims, self.size = rows, claims, size
        self.coming: deque[Part] = deque()

    def __iter__(self) -> Iterator[list[Entry]]:
        for part in self.claims:
            self.coming.append(part)
            rows = self.rows.of(part).tolist()
            for first in range(0, len(rows), self.size):
                yield [(row, part.view) for row in rows[first : first + self.size]]


def entry_labels(job: Job, part: Part, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The hard labels (n,) of a part's entries, which are of dataset ``rows``; -1 for none, and for all mixed ones."""
    if part.view and job.views.mixed:
        return np.full(len(rows), -1, np.int64)  # two examples, and no label of both
    return np.asarray(job.dataset.labels)[rows].astype(np.int64)


class _PartBuilder:
    """Gathers the encoded batches of one part; writes them, in the writer's thread."""

    def __init__(self, job: Job, part: Part, rows: npt.NDArray[np.int64]) -> None:
        self.job, self.part, self.rows = job, part, rows
        self.labels = entry_labels(job, part, rows)
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self.features: dict[str, npt.NDArray[Any]] = {}
        self.predicted = np.empty(part.entries, np.int64)
        self.stride = max(1, part.entries // SAMPLED_ENTRIES_PER_PART)
        self.sampled: list[npt.NDArray[np.float32]] = []

    def add(self, first: int, asked: Asked) -> None:
        """Take what the teacher says about the entries from ``first`` on."""
        try:
            said = answers(self.job, asked, slice(-first % self.stride, None, self.stride))
        except EncodingError as error:
            raise self._named(error, first) from None
        for store, batch in ((self.arrays, said.arrays), (self.features, said.features)):
            for name, value in batch.items():
                if name not in store:
                    store[name] = np.empty((self.part.positions, *value.shape[1:]), value.dtype)
                store[name][first : first + len(value)] = value
        self.predicted[first : first + len(said.predicted)] = said.predicted
        self.sampled.append(said.sampled)

    def write(self, writer: CacheWriter, claims: Claims) -> None:
        """Write the part with its index and what is known of its fidelity, and let go of the claim on it."""
        job, view = self.job, self.part.view
        classes = len(job.dataset.classes)
        fidelity = Fidelity(job.encoding, classes)
        fidelity.count(self.predicted, self.labels)
        fidelity.compare(
            np.concatenate(self.sampled), {name: value[:: self.stride] for name, value in self.arrays.items()}
        )
        ids = [str(job.dataset.ids[row]) for row in self.rows]
        index = IndexRows(
            example_ids=ids,
            view=view,
            seeds=np.array([job.views.seed_of(i, view) for i in ids], dtype=np.int64),
            labels=self.labels.astype(np.int64),
            input_digests=None if view else [job.dataset.known_digest(int(row)) for row in self.rows],
            split=self.part.split,
        )
        statistics = {"bound": job.encoding.bound(self.arrays, classes), **fidelity.totals()}
        writer.write_part(self.part, self.arrays, index, self.features, statistics)
        claims.release(self.part)
        self.arrays, self.features, self.sampled = {}, {}, []

    def _named(self, error: EncodingError, first: int) -> EncodingError:
        if error.row is None:
            return error
        row = int(self.rows[first + error.row])
        return EncodingError(
            f"example {self.job.dataset.ids[row]} (row {row}), view {self.part.view}: {error}", error.row
        )
