"""The teacher over a small sample of what a dump would ask it, timed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dump import Job
from pipeline.dump.parts import answers, ask
from pipeline.errors import EncodingError
from pipeline.progress import Bar, Progress
from pipeline.store import Group
from pipeline.views import Entry, load_inputs

LEAST_SECONDS, MOST_PASSES = 0.5, 9
"""A shorter sample is asked again, so often at the most, before its time is taken for that of a dump."""


@dataclass(frozen=True)
class Sample:
    """What the teacher said about n entries, in the order of the dump.

    - ``entries``: (dataset row, view) of each; ``logits`` (n, C) float32; ``features`` (n, ...) float16 by name;
    - ``load_seconds``: to load, view and prepare one entry in this process;
    - ``forward_seconds``: of the teacher for one entry, its logits and features brought to the host.
    """

    entries: tuple[Entry, ...]
    logits: npt.NDArray[np.float32]
    features: Mapping[str, npt.NDArray[Any]]
    load_seconds: float
    forward_seconds: float

    def seconds_per_entry(self, workers: int, encoding_seconds: float = 0.0) -> float:
        """What one entry takes a dump: loading and the teacher in turn, or at once when ``workers`` load.

        ``encoding_seconds`` are those of one entry, in the process of the teacher.
        """
        asked = self.forward_seconds + encoding_seconds
        if not workers:
            return self.load_seconds + asked
        return max(self.load_seconds / min(workers, os.cpu_count() or 1), asked)


def shares(groups: tuple[Group, ...], size: int) -> npt.NDArray[np.int64]:
    """How many of about ``size`` entries come from each group: in proportion, and at least one of each.

    >>> shares((Group("train", 0, 60), Group("train", 1, 60), Group("test", 0, 2)), 12).tolist()
    [6, 6, 1]
    """
    entries = np.array([group.entries for group in groups], dtype=np.int64)
    ends = np.rint(np.cumsum(entries) * (min(size, entries.sum()) / entries.sum())).astype(np.int64)
    return np.asarray(np.minimum(np.maximum(np.diff(ends, prepend=0), 1), entries), dtype=np.int64)


def draw(job: Job, size: int, seed: int) -> tuple[Entry, ...]:
    """About ``size`` entries of a dump, drawn without replacement in each (split, view); the same for the same seed."""
    random = np.random.default_rng(seed & (2**63 - 1))
    entries: list[Entry] = []
    for group, count in zip(job.layout.groups, shares(job.layout.groups, size), strict=True):
        chosen = np.sort(random.choice(group.entries, size=int(count), replace=False))
        entries += [(int(row), group.view) for row in job.dataset.rows(group.split)[chosen]]
    return tuple(entries)


def ask_sample(job: Job, size: int, seed: int, progress: Progress) -> Sample:
    """Draw a sample and ask the teacher, as a dump would; one batch beforehand warms it up and is not timed.

    A sample that is done in less than half a second is asked again for the clock, and the median counts.

    ``job`` keeps all logits in float32. Raises EncodingError naming the entry whose logits cannot be kept.
    """
    entries, step = draw(job, size, seed), job.config.batch_size
    batches = [entries[first : first + step] for first in range(0, len(entries), step)]
    _ask(job, batches[:1])
    with progress.bar("ask the teacher", len(entries), "entries") as bar:
        asked = [_ask(job, batches, bar)]
    while sum(sum(each.seconds) for each in asked) < LEAST_SECONDS and len(asked) < MOST_PASSES:
        asked.append(_ask(job, batches))
    loading, forward = np.median([each.seconds for each in asked], axis=0) / len(entries)
    return Sample(entries, asked[0].logits, asked[0].features, float(loading), float(forward))


@dataclass(frozen=True)
class _Asked:
    logits: npt.NDArray[np.float32]
    features: Mapping[str, npt.NDArray[Any]]
    seconds: tuple[float, float]


def _ask(job: Job, batches: Sequence[tuple[Entry, ...]], bar: Bar | None = None) -> _Asked:
    """The teacher's answers to all batches, with the seconds of loading and of asking."""
    loading = asking = 0.0
    logits: list[npt.NDArray[np.float32]] = []
    features: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in job.features}
    for batch in batches:
        began = time.perf_counter()
        inputs = load_inputs(job.dataset, job.views, batch)
        loaded = time.perf_counter()
        try:
            said = answers(job, ask(job, inputs), slice(0))
        except EncodingError as error:
            raise _named(job, error, batch) from None
        loading, asking = loading + loaded - began, asking + time.perf_counter() - loaded
        logits.append(said.arrays["logits"])
        for name, value in said.features.items():
            features[name].append(value)
        if bar is not None:
            bar.update(len(batch))
    found = {name: np.concatenate(values) for name, values in features.items()}
    return _Asked(np.concatenate(logits), found, (loading, asking))


def _named(job: Job, error: EncodingError, batch: tuple[Entry, ...]) -> EncodingError:
    if error.row is None:
        return error
    row, view = batch[error.row]
    return EncodingError(f"example {job.dataset.ids[row]} (row {row}), view {view}: {error}", error.row)
