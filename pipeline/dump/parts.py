"""The teacher over one part after another, while a second thread writes the part before."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.datasets import Dataset
from pipeline.dump.asking import Awaited, ask, awaited, entry_labels, keys_of
from pipeline.dump.claims import Claims
from pipeline.dump.job import Job
from pipeline.encodings import Arrays
from pipeline.errors import EncodingError
from pipeline.fidelity import Fidelity
from pipeline.identity import SPLITS
from pipeline.progress import Bar
from pipeline.softlabels import SoftLabels
from pipeline.store import CacheWriter, IndexRows, Part
from pipeline.views import Entry, input_loader

SAMPLED_PER_PART, SAMPLED_LOGITS = 64, 1 << 21
"""Positions of a part whose stored form is compared with the teacher's logits, and how many logits that may take."""


AHEAD = {"cuda": 1}
"""Batches that a device is asked about before the answers to the first of them are taken: it has always one to do."""


def sampled_per_part(classes: int) -> int:
    """How many positions of a part are compared: fewer of a large vocabulary, where each takes milliseconds.

    >>> sampled_per_part(10), sampled_per_part(128_256)
    (64, 16)
    """
    return max(1, min(SAMPLED_PER_PART, SAMPLED_LOGITS // classes))


class EntryRows:
    """Which dataset rows each part holds."""

    def __init__(self, dataset: Dataset) -> None:
        self._rows = {split: dataset.rows(split) for split in SPLITS}

    def of(self, part: Part) -> npt.NDArray[np.int64]:
        """The dataset rows (entries,) of one part, in the order in which they are stored."""
        return self._rows[part.split][part.first : part.first + part.entries]


def write_parts(job: Job, writer: CacheWriter, claims: Claims, bar: Bar) -> float:
    """Run the teacher over the parts that can be claimed now; seconds spent in its forward passes."""
    rows = EntryRows(job.dataset)
    order = _Batches(rows, claims, job.config.batch_size)
    loader = input_loader(job.dataset, job.views, order, job.config.workers, pin_memory=job.device.type == "cuda")
    ahead = AHEAD.get(job.device.type, 0)
    seconds, first = 0.0, 0
    building: _PartBuilder | None = None
    waiting: deque[tuple[_PartBuilder, int, Awaited]] = deque()
    writing: Future[None] | None = None

    def take(builder: _PartBuilder, first: int, coming: Awaited) -> None:
        nonlocal seconds, writing
        began = time.perf_counter()
        builder.add(first, coming)
        seconds += time.perf_counter() - began
        entries = coming.asked.entries
        bar.update(entries)
        full = first + entries == builder.part.entries
        if writing is not None and (writing.done() or full):
            writing.result()  # a disk that is full should stop the teacher now; two parts are held at the most
        if full:
            writing = pool.submit(builder.write, writer, claims)

    with ThreadPoolExecutor(1, thread_name_prefix="softlabels-writer") as pool:
        for inputs in loader:  # while a GPU is at the batch before
            if building is None:
                part = order.coming.popleft()
                building, first = _PartBuilder(job, part, rows.of(part)), 0
            began = time.perf_counter()
            asked = building.ask(first, inputs)
            seconds += time.perf_counter() - began
            waiting.append((building, first, asked))
            if len(waiting) > ahead:
                take(*waiting.popleft())
            first += len(inputs)
            if first == building.part.entries:
                building = None
        for each in waiting:
            take(*each)
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


class _PartBuilder:
    """Gathers the encoded batches of one part; writes them, in the writer's thread."""

    def __init__(self, job: Job, part: Part, rows: npt.NDArray[np.int64]) -> None:
        self.job, self.part, self.rows = job, part, rows
        self.labels = entry_labels(job, part.view, rows)
        self.classes = len(job.dataset.classes)
        self.specs = job.encoding.specs(self.classes)
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self.kept: dict[str, list[npt.NDArray[Any]]] = {}
        self.features: dict[str, npt.NDArray[Any]] = {}
        self.predicted = np.empty(part.positions, np.int64)
        self.expected = np.empty(part.positions, np.int64)
        self.stride = max(1, part.positions // sampled_per_part(self.classes))
        self.sampled: list[npt.NDArray[np.float32]] = []
        self.filled = self.asked = 0

    def ask(self, first: int, inputs: Tensor) -> Awaited:
        """Put the ``inputs`` (B, ...) of the entries from ``first`` on to the teacher, and begin to encode."""
        job, rows = self.job, self.rows[first : first + len(inputs)]
        asked = ask(job, inputs, rows, self.part.view)
        sample = slice(-self.asked % self.stride, None, self.stride)
        self.asked += len(asked.values)
        return awaited(job, asked, sample, keys_of(job, rows, self.part.view))

    def add(self, first: int, coming: Awaited) -> None:
        """Take what the teacher says about the entries from ``first`` on."""
        place = self.filled
        try:
            said = coming.answers()
        except EncodingError as error:
            raise self._named(error, self.rows[first : first + coming.asked.entries]) from None
        for store, batch in ((self.arrays, said.arrays), (self.features, said.features)):
            for name, value in batch.items():
                if store is self.arrays and self.specs[name].axis != "position":
                    self.kept.setdefault(name, []).append(value)
                    continue
                if name not in store:
                    store[name] = np.empty((self.part.positions, *value.shape[1:]), value.dtype)
                store[name][place : place + len(value)] = value
        self.filled += len(said)
        self.predicted[place : self.filled] = said.predicted
        self.expected[place : self.filled] = said.expected
        self.sampled.append(said.sampled)

    def write(self, writer: CacheWriter, claims: Claims) -> None:
        """Write the part with its index and what is known of its fidelity, and let go of the claim on it."""
        job, view, classes = self.job, self.part.view, self.classes
        arrays = {**self.arrays, **{name: np.concatenate(pieces) for name, pieces in self.kept.items()}}
        fidelity = Fidelity(job.encoding, classes)
        fidelity.count(self.predicted, self.expected)
        fidelity.compare(np.concatenate(self.sampled), self._sample_of(arrays))
        ids = [str(job.dataset.ids[row]) for row in self.rows]
        index = IndexRows(
            example_ids=ids,
            view=view,
            seeds=np.array([job.views.seed_of(i, view) for i in ids], dtype=np.int64),
            labels=self.labels.astype(np.int64),
            input_digests=None if view else [job.dataset.known_digest(int(row)) for row in self.rows],
            split=self.part.split,
            length=np.asarray(job.dataset.lengths)[self.rows].astype(np.int64) if job.dataset.discrete else None,
        )
        statistics = {"bound": job.encoding.bound(arrays, classes), **fidelity.totals()}
        writer.write_part(self.part, arrays, index, self.features, statistics)
        claims.release(self.part)
        self.arrays, self.kept, self.features, self.sampled = {}, {}, {}, []

    def _sample_of(self, arrays: Arrays) -> SoftLabels:
        """What is kept of the positions whose logits were sampled."""
        encoding, classes = self.job.encoding, self.classes
        if self.kept:
            return encoding.decode(arrays, classes).select(slice(None, None, self.stride))
        return encoding.decode({name: value[:: self.stride] for name, value in arrays.items()}, classes)

    def _named(self, error: EncodingError, rows: npt.NDArray[np.int64]) -> EncodingError:
        if error.row is None:
            return error
        ends = np.cumsum(np.asarray(self.job.dataset.lengths)[rows])
        row = int(rows[np.searchsorted(ends, error.row, side="right")])
        return EncodingError(
            f"example {self.job.dataset.ids[row]} (row {row}), view {self.part.view}: {error}", error.row
        )
