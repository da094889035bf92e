"""The teacher over one part after another, while a second thread writes the part before."""

from __future__ import annotations

import time
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
from pipeline.dump.job import Job
from pipeline.encodings.encode_torch import encode
from pipeline.errors import EncodingError
from pipeline.fidelity import Fidelity
from pipeline.identity import SPLITS
from pipeline.models import FeatureTap, logits_of
from pipeline.progress import Progress
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


def ask(job: Job, inputs: Tensor, sample: slice) -> Answers:
    """The teacher's answers about a batch of inputs, encoded on its device; logits of the rows ``sample`` come too.

    Raises EncodingError or ModelError, with ``row`` set, for what cannot be kept.
    """
    with torch.inference_mode():
        with autocast(job.device, job.config.precision), FeatureTap(job.teacher, job.features) as tap:
            logits = logits_of(job.teacher(inputs.to(job.device, non_blocking=True)))
            halves = {name: value.to(torch.float16) for name, value in tap.values.items()}
        logits = logits.float()
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


def write_parts(job: Job, writer: CacheWriter, progress: Progress) -> float:
    """Run the teacher over every part that is not journalled yet; seconds spent in its forward passes."""
    todo = [part for part in job.layout.parts if part.number not in writer.done]
    done = sum(part.entries for part in job.layout.parts) - sum(part.entries for part in todo)
    rows = EntryRows(job.dataset)
    order = _Batches(rows, todo, job.config.batch_size)
    loader = input_loader(job.dataset, job.views, order, job.config.workers, pin_memory=job.device.type == "cuda")
    batches = iter(loader)
    seconds = 0.0
    total = sum(part.entries for part in job.layout.parts)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="softlabels-writer") as pool,
        progress.bar("dump", total, "entries", done) as bar,
    ):
        writing: Future[None] | None = None
        for part in todo:
            building = _PartBuilder(job, part, rows.of(part))
            for first in range(0, part.entries, job.config.batch_size):
                inputs = next(batches)
                began = time.perf_counter()
                building.add(first, inputs)
                seconds += time.perf_counter() - began
                bar.update(len(inputs))
                if writing is not None and writing.done():
                    writing.result()  # a disk that is full should stop the teacher now
            if writing is not None:
                writing.result()  # two parts are held at the most
            writing = pool.submit(building.write, writer)
        if writing is not None:
            writing.result()
    return seconds


class _Batches:
    """The (row, view) pairs of each batch of the parts to do, made as they are needed."""

    def __init__(self, rows: EntryRows, parts: list[Part], size: int) -> None:
        self.rows, self.parts, self.size = rows, parts, size

    def __iter__(self) -> Iterator[list[Entry]]:
        for part in self.parts:
            rows = self.rows.of(part).tolist()
            for first in range(0, len(rows), self.size):
                yield [(row, part.view) for row in rows[first : first + self.size]]

    def __len__(self) -> int:
        return sum(-(-part.entries // self.size) for part in self.parts)


class _PartBuilder:
    """Gathers the encoded batches of one part; writes them, in the writer's thread."""

    def __init__(self, job: Job, part: Part, rows: npt.NDArray[np.int64]) -> None:
        self.job, self.part, self.rows = job, part, rows
        self.labels = np.asarray(job.dataset.labels)[self.rows]
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self.features: dict[str, npt.NDArray[Any]] = {}
        self.predicted = np.empty(part.entries, np.int64)
        self.stride = max(1, part.entries // SAMPLED_ENTRIES_PER_PART)
        self.sampled: list[npt.NDArray[np.float32]] = []

    def add(self, first: int, inputs: Tensor) -> None:
        """Ask the teacher about the entries from ``first`` on."""
        try:
            answers = ask(self.job, inputs, slice(-first % self.stride, None, self.stride))
        except EncodingError as error:
            raise self._named(error, first) from None
        for store, batch in ((self.arrays, answers.arrays), (self.features, answers.features)):
            for name, value in batch.items():
                if name not in store:
                    store[name] = np.empty((self.part.positions, *value.shape[1:]), value.dtype)
                store[name][first : first + len(value)] = value
        self.predicted[first : first + len(inputs)] = answers.predicted
        self.sampled.append(answers.sampled)

    def write(self, writer: CacheWriter) -> None:
        """Write the part with its index and what is known of its fidelity."""
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
        self.arrays, self.features, self.sampled = {}, {}, []

    def _named(self, error: EncodingError, first: int) -> EncodingError:
        if error.row is None:
            return error
        row = int(self.rows[first + error.row])
        return EncodingError(
            f"example {self.job.dataset.ids[row]} (row {row}), view {self.part.view}: {error}", error.row
        )
