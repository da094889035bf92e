"""One part of an import: its labels read and encoded, its index, and how faithful it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.caches.building import Contents
from pipeline.caches.importing import full, kept, logprobs
from pipeline.caches.importing.config import ID, ImportConfig
from pipeline.caches.importing.source import Batch, Facts, Ints, Source
from pipeline.encodings import Arrays, Encoding, TopK
from pipeline.errors import DataError, EncodingError
from pipeline.fidelity import Fidelity
from pipeline.store import IndexRows, Part

RUN_BYTES = 32 << 20
"""Rows are encoded so many bytes at a time, counted as float64 of all classes."""

SAMPLED = 64
"""Entries of a part that its fidelity is measured on."""


def contents_of(
    config: ImportConfig, source: Source, encoding: Encoding, classes: int, part: Part, facts: Facts
) -> Contents:
    """One part, a run of rows after another: its labels at full length may be a hundred times what is kept."""
    own = slice(part.first, part.first + part.entries)
    lengths = None if facts.lengths is None else facts.lengths[part.split][own]
    fidelity, bound = Fidelity(encoding, classes), 0.0
    arrays: dict[str, list[npt.NDArray[Any]]] = {}
    features: dict[str, list[npt.NDArray[Any]]] = {}
    ids: list[str] = []
    digests: list[str] = []
    seeds, labels = (np.full(part.entries, -1, np.int64) for _ in range(2))
    run_of = _run_of(encoding, classes, part, lengths)
    stride = max(1, part.entries // SAMPLED)
    for first in range(0, part.entries, run_of):
        rows = slice(first, min(first + run_of, part.entries))
        batch = source.read(part.split, part.view, part.first + first, rows.stop - first, classes)
        named = list(batch.ids) if lengths is not None else [config.id_template.replace(ID, i) for i in batch.ids]
        _check_labels(config, batch, named, classes)
        try:
            made, off = _encode(batch.said, encoding, classes)
        except EncodingError as error:
            raise _named(error, part, named, None if lengths is None else lengths[rows]) from None
        _measure(fidelity, batch, made, slice(-first % stride, None, stride))
        for lists, new in ((arrays, made), (features, batch.features)):
            for name, values in new.items():
                lists.setdefault(name, []).append(values)
        ids += named
        digests += batch.digests or ()
        seeds[rows], labels[rows] = batch.seeds, batch.labels
        bound = max(bound, off)
    index = IndexRows(
        example_ids=ids,
        view=part.view,
        split=part.split,
        seeds=seeds,
        labels=labels,
        input_digests=digests or None,
        length=lengths,
    )
    joined = [{name: np.concatenate(pieces) for name, pieces in lists.items()} for lists in (arrays, features)]
    sums = fidelity.totals()
    if not fidelity.compared:
        sums = {name: sums[name] for name in ("labelled", "correct")}
    return Contents(joined[0], index, joined[1], {"bound": bound, **sums})


def _check_labels(config: ImportConfig, batch: Batch, ids: Sequence[str], classes: int) -> None:
    wrong = np.flatnonzero((batch.labels < -1) | (batch.labels >= classes))
    if len(wrong):
        raise DataError(
            f"{config.source}: hard labels should lie below {classes:,}, or be -1 for none; found "
            f"{batch.labels[wrong[0]]} of example {ids[wrong[0]]}"
        )


def _run_of(encoding: Encoding, classes: int, part: Part, lengths: Ints | None) -> int:
    """Entries that are encoded at a time. Sequences are never widened to all classes."""
    if lengths is None or not isinstance(encoding, TopK):
        return max(1, RUN_BYTES // (8 * classes))
    return max(1, RUN_BYTES * part.entries // (128 * encoding.k * part.positions))


def _named(error: EncodingError, part: Part, ids: Sequence[str], lengths: Ints | None) -> EncodingError:
    if error.row is None:
        return error
    if lengths is None:
        return EncodingError(f"example {ids[error.row]} of {part.split}, view {part.view}: {error}", error.row)
    ends = np.cumsum(lengths)
    entry = int(np.searchsorted(ends, error.row, side="right"))
    place = error.row - int(ends[entry] - lengths[entry])
    return EncodingError(f"scored position {place} of example {ids[entry]} of {part.split}: {error}", error.row)


def _encode(
    said: full.Full | kept.Kept | logprobs.TopLogprobs, encoding: Encoding, classes: int
) -> tuple[dict[str, npt.NDArray[Any]], float]:
    """Stored arrays and their bound."""
    if isinstance(said, full.Full):
        return full.encode(said, encoding)
    if not isinstance(encoding, TopK):
        raise TypeError("top-k probabilities are kept as topk")
    if isinstance(said, logprobs.TopLogprobs):
        made = logprobs.encode(said, classes, encoding)
        return made.arrays, made.bound
    return kept.encode(said, classes, encoding)


def _measure(fidelity: Fidelity, batch: Batch, arrays: Arrays, sample: slice) -> None:
    """Count the teacher's hits, and hold some rows to what the source says of all classes, where it does."""
    said = batch.said
    if isinstance(said, full.Full):
        fidelity.count(full.predicted(said), batch.labels)
        fidelity.compare(said.logits[sample], {name: array[sample] for name, array in arrays.items()})
        return
    if isinstance(said, logprobs.TopLogprobs):
        if batch.targets is not None:
            best = np.take_along_axis(said.ids, said.logprobs.argmax(axis=1)[:, None], axis=1)[:, 0]
            fidelity.count(best, batch.targets)
        return
    best = np.take_along_axis(said.ids, said.probs.argmax(axis=1)[:, None], axis=1)[:, 0]
    fidelity.count(best.astype(np.int64), batch.labels)
