"""The teacher over a small sample of what a dump would ask it, timed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.devices import autocast
from pipeline.dump import Job
from pipeline.dump.asking import Asked, answers, ask
from pipeline.encodings.encode_torch import encode
from pipeline.errors import EncodingError
from pipeline.progress import Bar, Progress
from pipeline.store import Group
from pipeline.views import Entry, load_inputs

LEAST_SECONDS, MOST_PASSES = 0.5, 9
"""A shorter sample is asked again, so often at the most, before its time is taken for that of a dump."""

ENTRIES, POSITIONS = 512, 4096
"""Of a sample, where nobody has said: entries, or of token sequences positions, if they take ``LOGITS_BYTES``."""

LOGITS_BYTES = 1 << 29
SPREAD, SEQUENCES = 2, 8
"""Sequences have so many times the positions that are taken, and are so many at least: neighbours are alike."""


@dataclass(frozen=True)
class Sample:
    """What the teacher said about n entries, or n positions of token sequences, in the order of the dump.

    - ``entries``: (dataset row, view) of each that was asked about; ``logits`` (n, C) float32; ``features`` (n, ...)
      float16 by name; ``hidden`` (n, D) float32, where logits are a linear map of hidden states of sequences;
    - ``load_seconds``: to load, view and prepare one entry in this process;
    - ``forward_seconds``: of the teacher for one entry, its logits and features brought to the host (of sequences,
      whose logits are encoded where they are made: its logits made, and the largest of each position found).
    """

    entries: tuple[Entry, ...]
    logits: npt.NDArray[np.float32]
    features: Mapping[str, npt.NDArray[Any]]
    load_seconds: float
    forward_seconds: float
    hidden: npt.NDArray[np.float32] | None = None

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


def default_size(discrete: bool, classes: int) -> int:
    """Entries of a sample, or positions of token sequences, where nobody has said.

    >>> default_size(False, 1000), default_size(True, 4096), default_size(True, 128_256)
    (512, 4096, 1046)
    """
    return min(POSITIONS, max(1, LOGITS_BYTES // (4 * classes))) if discrete else ENTRIES


def ask_sample(job: Job, size: int, seed: int, progress: Progress) -> Sample:
    """Draw a sample and ask the teacher, as a dump would; one batch beforehand warms it up and is not timed.

    ``size``: entries, or of token sequences positions; the sequences that they are drawn from have more of them.
    A sample that is done in less than half a second is asked again for the clock, and the median counts.

    ``job`` keeps all logits in float32. Raises EncodingError naming the entry whose logits cannot be kept.
    """
    count = size
    if job.dataset.discrete:
        count = max(SEQUENCES, -(-SPREAD * size // max(1, round(job.layout.mean_length))))
    entries, step = draw(job, count, seed), job.config.batch_size
    batches = [entries[first : first + step] for first in range(0, len(entries), step)]
    wanted = _positions(job, batches, size, seed) if job.dataset.discrete else None
    _ask(job, batches[:1], wanted)
    with progress.bar("ask the teacher", len(entries), "entries") as bar:
        asked = [_ask(job, batches, wanted, bar)]
    while sum(sum(each.seconds) for each in asked) < LEAST_SECONDS and len(asked) < MOST_PASSES:
        asked.append(_ask(job, batches, wanted))
    loading, forward = np.median([each.seconds for each in asked], axis=0) / len(entries)
    first = asked[0].said
    return Sample(entries, first.logits, first.features, float(loading), float(forward), first.hidden)


def _positions(job: Job, batches: Sequence[tuple[Entry, ...]], size: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Which positions of each batch are taken, ``size`` in all or as many as there are, ascending."""
    lengths = [int(job.dataset.lengths[[row for row, _ in batch]].sum()) for batch in batches]
    random = np.random.default_rng([seed & (2**63 - 1), 2])
    chosen = np.sort(random.choice(sum(lengths), size=min(size, sum(lengths)), replace=False))
    ends = np.cumsum(lengths)
    return [chosen[(chosen >= end - n) & (chosen < end)] - (end - n) for end, n in zip(ends, lengths, strict=True)]


@dataclass(frozen=True)
class _Said:
    logits: npt.NDArray[np.float32]
    features: Mapping[str, npt.NDArray[Any]]
    hidden: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class _Asked:
    said: _Said
    seconds: tuple[float, float]


def _ask(
    job: Job,
    batches: Sequence[tuple[Entry, ...]],
    wanted: Sequence[npt.NDArray[np.int64]] | None,
    bar: Bar | None = None,
) -> _Asked:
    """The teacher's answers to all batches, with the seconds of loading and of asking."""
    loading = asking = 0.0
    found: list[_Said] = []
    for number, batch in enumerate(batches):
        began = time.perf_counter()
        inputs = load_inputs(job.dataset, job.views, batch)
        loaded = time.perf_counter()
        rows = np.array([row for row, _ in batch], np.int64)
        try:
            asked = ask(job, inputs, rows)
            if wanted is None:
                whole = answers(job, asked, slice(0))
                said = _Said(whole.arrays["logits"], whole.features)
            else:
                said = _some(job, asked, wanted[number])
        except EncodingError as error:
            raise _named(job, error, batch) from None
        loading, asking = loading + loaded - began, asking + time.perf_counter() - loaded
        found.append(said)
        if bar is not None:
            bar.update(len(batch))
    hidden = [each.hidden for each in found if each.hidden is not None]
    features = {name: np.concatenate([each.features[name] for each in found]) for name in job.features}
    logits = np.concatenate([each.logits for each in found])
    return _Asked(_Said(logits, features, np.concatenate(hidden) if hidden else None), (loading, asking))


def _some(job: Job, asked: Asked, wanted: npt.NDArray[np.int64]) -> _Said:
    """The answers at positions ``wanted`` of a batch of sequences; the logits of all are made, as a dump makes them."""
    found = []
    with torch.inference_mode(), autocast(job.device, job.config.precision):
        for first, logits in asked.logits(job.device):
            rows = wanted[(wanted >= first) & (wanted < first + len(logits))] - first
            logits.argmax(dim=1).cpu()
            try:
                found.append(encode(job.encoding, logits[torch.from_numpy(rows).to(logits.device)])["logits"])
            except EncodingError as error:
                raise EncodingError(str(error), None if error.row is None else first + int(rows[error.row])) from None
        index = torch.from_numpy(wanted).to(asked.values.device)
        hidden = None if asked.head is None else asked.values[index].float().cpu().numpy()
        features = {name: value[index].cpu().numpy() for name, value in asked.features.items()}
    return _Said(np.concatenate(found), features, hidden)


def _named(job: Job, error: EncodingError, batch: tuple[Entry, ...]) -> EncodingError:
    if error.row is None:
        return error
    ends = np.cumsum(job.dataset.lengths[[row for row, _ in batch]]) if job.dataset.discrete else None
    entry = error.row if ends is None else int(np.searchsorted(ends, error.row, side="right"))
    row, view = batch[entry]
    where = "" if ends is None else f", position {error.row - (int(ends[entry - 1]) if entry else 0)}"
    return EncodingError(f"example {job.dataset.ids[row]} (row {row}), view {view}{where}: {error}", error.row)
