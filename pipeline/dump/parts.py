"""The teacher over one part after another, while a second thread encodes and writes the part before."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.datasets import Dataset
from pipeline.devices import autocast
from pipeline.dump.job import Job
from pipeline.errors import EncodingError, ModelError
from pipeline.fidelity import Fidelity
from pipeline.models import FeatureTap, logits_of
from pipeline.progress import Progress
from pipeline.store import CacheWriter, IndexRows, Part
from pipeline.views import Entry, input_loader

SAMPLED_ENTRIES_PER_PART = 256
WAITING_BATCHES = 64
WAITING_BYTES = 64 << 20
"""Logits and features that may wait for the writer: writing a part takes as long as many forward passes."""


def entries_of(dataset: Dataset, part: Part) -> npt.NDArray[np.int64]:
    """The dataset rows (entries,) of one part, in the order in which they are stored."""
    # A copy: a slice would keep the rows of the whole split, once for each part that waits to be written.
    return dataset.rows(part.split)[part.first : part.first + part.entries].copy()


def forward(job: Job, inputs: Tensor) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.float16]]]:
    """Teacher logits (B, C) float32 and features (B, ...) float16 of a batch of inputs, on the host."""
    with (
        torch.inference_mode(),
        autocast(job.device, job.config.precision),
        FeatureTap(job.teacher, job.features) as tap,
    ):
        logits = logits_of(job.teacher(inputs.to(job.device, non_blocking=True)))
        features = {name: value.to(torch.float16).cpu().numpy() for name, value in tap.values.items()}
        return logits.float().cpu().numpy(), features


def write_parts(job: Job, writer: CacheWriter, progress: Progress) -> float:
    """Run the teacher over every part that is not journalled yet; seconds spent in its forward passes."""
    todo = [part for part in job.layout.parts if part.number not in writer.done]
    done = sum(part.entries for part in job.layout.parts) - sum(part.entries for part in todo)
    loader = input_loader(
        job.dataset, job.views, _Batches(job, todo), job.config.workers, pin_memory=job.device.type == "cuda"
    )
    batches = iter(loader)
    seconds = 0.0
    total = sum(part.entries for part in job.layout.parts)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="softlabels-writer") as pool,
        progress.bar("dump", total, "entries", done) as bar,
    ):
        pending: deque[Future[None]] = deque()
        for part in todo:
            building = _PartBuilder(job, part)
            for first in range(0, part.entries, job.config.batch_size):
                inputs = next(batches)
                began = time.perf_counter()
                logits, features = forward(job, inputs)
                seconds += time.perf_counter() - began
                pending.append(pool.submit(building.add, first, logits, features))
                size = logits.nbytes + sum(value.nbytes for value in features.values())
                most = min(WAITING_BATCHES, max(2, WAITING_BYTES // size))
                # What is done is looked at too: an entry that cannot be kept should stop the teacher now.
                while pending and (len(pending) > most or pending[0].done()):
                    pending.popleft().result()
                bar.update(len(logits))
            pending.append(pool.submit(building.write, writer))
        for future in pending:
            future.result()
    return seconds


class _Batches:
    """The (row, view) pairs of each batch of the parts to do, made as they are needed."""

    def __init__(self, job: Job, parts: list[Part]) -> None:
        self.job, self.parts, self.size = job, parts, job.config.batch_size

    def __iter__(self) -> Iterator[list[Entry]]:
        for part in self.parts:
            rows = entries_of(self.job.dataset, part).tolist()
            for first in range(0, len(rows), self.size):
                yield [(row, part.view) for row in rows[first : first + self.size]]

    def __len__(self) -> int:
        return sum(-(-part.entries // self.size) for part in self.parts)


class _PartBuilder:
    """Gathers the encoded batches of one part, in the writer's thread, and writes them."""

    def __init__(self, job: Job, part: Part) -> None:
        self.job, self.part = job, part
        self.rows = entries_of(job.dataset, part)
        self.labels = np.asarray(job.dataset.labels)[self.rows]
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self.features: dict[str, npt.NDArray[Any]] = {}
        self.bound = 0.0
        self.fidelity = Fidelity(job.encoding, len(job.dataset.classes))
        self.stride = max(1, part.entries // SAMPLED_ENTRIES_PER_PART)

    def add(self, first: int, logits: npt.NDArray[np.float32], features: Mapping[str, npt.NDArray[Any]]) -> None:
        try:
            encoded = self.job.encoding.encode(logits)
        except EncodingError as error:
            raise self._named(error, first) from None
        self.bound = max(self.bound, self.job.encoding.bound(logits, encoded))
        for name, value in features.items():
            if not np.isfinite(value).all():
                row = first + int(np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(axis=1))[0])
                raise ModelError(f"feature {name} of {self._entry(row)} is NaN, infinite or beyond float16's 65,504")
        for store, batch in ((self.arrays, encoded), (self.features, features)):
            for name, value in batch.items():
                if name not in store:
                    store[name] = np.empty((self.part.positions, *value.shape[1:]), value.dtype)
                store[name][first : first + len(value)] = value
        self.fidelity.count(logits, self.labels[first : first + len(logits)])
        chosen = np.arange(-first % self.stride, len(logits), self.stride)
        if len(chosen):
            self.fidelity.compare(logits[chosen], {name: value[chosen] for name, value in encoded.items()})

    def write(self, writer: CacheWriter) -> None:
        dataset, view = self.job.dataset, self.part.view
        ids = [str(dataset.ids[row]) for row in self.rows]
        index = IndexRows(
            example_ids=ids,
            view=view,
            seeds=np.array([self.job.views.seed_of(i, view) for i in ids], dtype=np.int64),
            labels=self.labels.astype(np.int64),
            input_digests=None if view else [dataset.known_digest(int(row)) for row in self.rows],
            split=self.part.split,
        )
        statistics = {"bound": self.bound, **self.fidelity.totals()}
        writer.write_part(self.part, self.arrays, index, self.features, statistics)
        self.arrays, self.features = {}, {}

    def _entry(self, offset: int) -> str:
        row = int(self.rows[offset])
        return f"example {self.job.dataset.ids[row]} (row {row}), view {self.part.view}"

    def _named(self, error: EncodingError, first: int) -> EncodingError:
        if error.row is None:
            return error
        return EncodingError(f"{self._entry(first + error.row)}: {error}", error.row)
