"""What one encoding would cost and lose, measured on a sample: one line of the table."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.dump import Job
from pipeline.dump.asking import rows_at_once
from pipeline.dump.job import layout_of
from pipeline.encodings import KEPT, Encoding, position_keys
from pipeline.encodings.base import row_slices
from pipeline.encodings.encode_torch import encode
from pipeline.errors import EncodingError
from pipeline.fidelity import Fidelity, kl_divergence, stored_logprobs, summarise
from pipeline.identity import digest
from pipeline.losses.meeting import EVEN, ONE
from pipeline.metrics import log_softmax
from pipeline.planning import sizes
from pipeline.planning.angles import ELEMENTS, STUDENTS, Angles, gradient_angles, stand_in
from pipeline.planning.config import PlanConfig, default_k, default_tokens
from pipeline.planning.parameters import Turn
from pipeline.planning.sampling import Sample
from pipeline.planning.standing import Standing
from pipeline.softlabels import Sampled, SoftLabels, TopK
from pipeline.sources.gathering import some_positions
from pipeline.store import FileRecord, Layout, PartRecord
from pipeline.store import index as index_files
from pipeline.store.backend import Backend
from pipeline.store.files import MemoryFiles
from pipeline.store.fitting import label_backend
from pipeline.store.zarr_backend import ZarrBackend

DRAWS = (25, 50, 100, 200)
TOPK_DTYPES = ("float16", "int8", "int4")
"""In which topk of a vocabulary is shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """One encoding. ``problem`` says why it cannot keep the sample; nothing else but its options is known then.

    - ``options``: of ``softlabels dump``; ``identity`` of the cache that it makes with them; ``part_size``, ``parts``:
      as it would cut the entries;
    - ``bytes_per_label``: of the label arrays, for each entry, or each position of token sequences; ``bytes``: of the
      whole cache by what they hold, and ``total``; ``kept``: classes of a position, in the mean, of draws;
    - ``kl``: KL(teacher || stored) in nats over the sample, ``mean`` and ``max``, by temperature; none of draws;
    - ``top1_agreement``: share of the sample whose largest class is the teacher's, at the training temperature;
    - ``angles``: of the gradient, in degrees, by the student that stands in (``pipeline/planning/angles.py``); of
      token sequences instead ``turns`` of the gradient in a student's output matrix, over the ``sample`` and a ``step``
      of training (``pipeline/planning/standing.py``), and those of top-k trained otherwise: ``bare``, without its
      residual, and ``even``, with the residual spread evenly;
    - ``residual``: how top-k labels are trained on for ``turns``, as ``train --loss-args residual=`` takes it;
    - ``seconds``: of one entry to ``encode``, ``write`` and ``read`` (in memory), and of the whole ``dump``;
    - ``break_even_epochs``: see ``break_even``.
    """

    name: str
    options: Mapping[str, Any]
    problem: str | None = None
    identity: str = ""
    part_size: int = 0
    parts: int = 0
    bytes_per_label: float = math.nan
    bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    kept: float | None = None
    kl: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    top1_agreement: float = math.nan
    angles: Mapping[str, Angles] = dataclasses.field(default_factory=dict)
    turns: Mapping[str, Turn] = dataclasses.field(default_factory=dict)
    bare: Mapping[str, Turn] = dataclasses.field(default_factory=dict)
    even: Mapping[str, Turn] = dataclasses.field(default_factory=dict)
    residual: str = ONE
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    break_even_epochs: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The estimate as JSON values."""
        if self.problem is not None:
            return {"name": self.name, "options": dict(self.options), "problem": self.problem}
        return {**dataclasses.asdict(self), "hours": self.seconds["dump"] / 3600}


def break_even(dump_seconds: float, live_seconds: float, read_seconds: float) -> int | None:
    """The number of epochs from which on a dump is cheaper than a live teacher; None when it never is.

    The smallest whole E with ``dump + E * read < E * live``, where ``live`` is the teacher's forward passes over an
    epoch's examples beside the student (whose inputs are loaded either way) and ``read`` reads as many labels.

    >>> break_even(100, 60, 10), break_even(99, 60, 10), break_even(100, 10, 10)
    (3, 2, None)
    """
    saved = live_seconds - read_seconds
    return math.floor(dump_seconds / saved) + 1 if saved > 0 else None


def candidates(config: PlanConfig, classes: int, discrete: bool = False) -> list[dict[str, Any]]:
    """The options of ``softlabels dump`` that the table compares: dense in three precisions, topk for several k.

    topk is kept as float16, which costs it next to nothing, at T = 1 and at the training temperature. For the
    ``discrete`` inputs of language models, whose dense labels nobody keeps in full, those have two precisions, topk
    three, at the training temperature alone, and there are sampled labels of several numbers of draws.
    """
    temperatures = tuple(sorted({1.0, float(config.temperature)}))
    if discrete:
        at = (float(config.temperature),)
        options: list[dict[str, Any]] = [{"encoding": "dense", "dtype": dtype} for dtype in ("float16", "int8")]
        for k in sorted(set(config.k or default_tokens(classes)), reverse=True):
            options += [{"encoding": "topk", "k": k, "dtype": dtype, "temperature": at} for dtype in TOPK_DTYPES]
        drawn = sorted(set(config.draws or DRAWS), reverse=True)
        return options + [{"encoding": "sampled", "draws": draws, "temperature": at} for draws in drawn]
    dense = [{"encoding": "dense", "dtype": dtype} for dtype in ("float32", "float16", "int8")]
    kept = sorted(set(config.k or default_k(classes)), reverse=True)
    return dense + [{"encoding": "topk", "k": k, "dtype": "float16", "temperature": temperatures} for k in kept]


def name_of(options: Mapping[str, Any]) -> str:
    """What the table calls an encoding.

    >>> name_of({"encoding": "topk", "k": 8, "dtype": "float16"}), name_of({"encoding": "sampled", "draws": 50})
    ('topk-8', 'sampled-50')
    """
    number = options.get("k", options.get("draws"))
    if number is None:
        return f"{options['encoding']} {options['dtype']}"
    dtype = options.get("dtype", "float16")
    return f"{options['encoding']}-{number}" + ("" if dtype == "float16" else f" {dtype}")


def estimate(
    job: Job,
    sample: Sample,
    options: Mapping[str, Any],
    config: PlanConfig,
    setup_seconds: float,
    student: Standing | None = None,
) -> Estimate:
    """Measure one encoding. ``setup_seconds`` are what a dump takes before the first batch.

    ``student``: of token sequences, the one that stands in.
    """
    name, classes = name_of(options), len(job.dataset.classes)
    try:
        encoding = dataclasses.replace(job.config, **options).kept()
        encoding.specs(classes)
        arrays, encode_seconds = _encoded(job, encoding, sample)
    except EncodingError as error:
        return Estimate(name=name, options=options, problem=str(error))
    layout = layout_of(job.dataset, job.layout.groups, job.config.part_size, encoding, job.feature_specs)
    kept = encoding.decode(arrays, classes)
    kl, agreement, fidelity = _faithfulness(encoding, sample.logits, kept, config.temperature)
    backends: dict[str, Backend] = {
        "labels": label_backend(config.store, encoding, classes, layout),
        "features": ZarrBackend.create(
            "features.zarr", {n: s.array for n, s in job.feature_specs.items()}, len(layout.parts), layout.capacity
        ),
    }
    if not job.feature_specs:
        del backends["features"]
    stored = {"labels": arrays, "features": sample.features}
    held = {
        what: sizes.over_parts(sizes.array_size(backend, stored[what], layout), layout)
        for what, backend in backends.items()
    }
    relaid = dataclasses.replace(job, layout=layout, encoding=encoding, identity=_identity(job, encoding, layout))
    index = sizes.index_sizes(relaid)
    held = {"features": 0, **held, "index": round(sum(index(part) for part in layout.parts))}
    held["other"] = sizes.other_files(relaid, backends, fidelity, held)
    write_seconds, read_seconds = _storing(relaid, backends, stored)
    encode_seconds *= layout.mean_length
    each = sample.seconds_per_entry(config.workers, encode_seconds)
    # A second thread writes one part while the teacher is at the next.
    dump = setup_seconds + layout.entries * max(each, write_seconds)
    epoch = next((group.entries for group in layout.groups if group.split == "train"), layout.entries)
    return Estimate(
        name=name,
        options=options,
        identity=relaid.digest,
        part_size=layout.part_size,
        parts=len(layout.parts),
        bytes_per_label=held["labels"] / layout.positions,
        bytes={**held, "total": sum(held.values())},
        kept=len(kept.ids) / len(kept) if isinstance(kept, Sampled) else None,
        kl=kl,
        top1_agreement=agreement,
        angles=_angles(sample, kept, config) if student is None else {},
        turns={} if student is None else student.turns(kept),
        bare=student.turns(kept.bare()) if student is not None and isinstance(kept, TopK) else {},
        even=student.turns(kept, EVEN) if student is not None and isinstance(kept, TopK) else {},
        seconds={
            "encode": encode_seconds,
            "write": write_seconds,
            "read": read_seconds,
            "dump": dump,
        },
        break_even_epochs=break_even(dump, epoch * sample.forward_seconds, epoch * read_seconds),
    )


def _angles(sample: Sample, kept: SoftLabels, config: PlanConfig) -> dict[str, Angles]:
    at = config.temperature
    return {
        student: gradient_angles(sample.logits, kept, stand_in(student, sample.logits, config.seed), at)
        for student in STUDENTS
    }


def _identity(job: Job, encoding: Encoding, layout: Layout) -> dict[str, Any]:
    changed = {**job.identity, "encoding": encoding.describe(), "part_size": layout.part_size}
    del changed["digest"]
    return {**changed, "digest": digest(changed)}


def _encoded(job: Job, encoding: Encoding, sample: Sample) -> tuple[dict[str, npt.NDArray[Any]], float]:
    """The stored arrays of the sample, and the seconds that one row of it took, on the teacher's device."""
    logits = torch.from_numpy(sample.logits).to(job.device)
    step, found = job.config.batch_size, []
    if job.dataset.discrete:
        step = rows_at_once(job.device, logits.shape[1])
    keys = position_keys(job.config.seed, len(logits))
    encode(encoding, logits[:step], keys[:step])
    began = time.perf_counter()
    for first in range(0, len(logits), step):
        found.append(encode(encoding, logits[first : first + step], keys[first : first + step]))
    seconds = time.perf_counter() - began
    arrays = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    return arrays, seconds / len(logits)


def _faithfulness(
    encoding: Encoding, logits_NC: npt.NDArray[np.float32], kept: SoftLabels, temperature: float
) -> tuple[dict[str, dict[str, float]], float, dict[str, Any]]:
    """KL in nats by temperature, the share of rows that keep their largest class, and both as a manifest has them."""
    parts = row_slices(len(logits_NC), logits_NC.shape[1], ELEMENTS)
    if isinstance(kept, Sampled):
        counted = Fidelity(encoding, logits_NC.shape[1])
        for rows in parts:
            counted.compare(logits_NC[rows], kept.select(rows))
        fidelity = summarise([("train", counted.totals())])
        return {}, fidelity["top1_agreement"], fidelity
    found: dict[str, dict[str, float]] = {}
    agreed = 0
    for at in sorted({1.0, temperature} if not encoding.temperatures else {*encoding.temperatures}):
        divergences = []
        for rows in parts:
            stored = stored_logprobs(kept.select(rows), at)
            divergences.append(np.maximum(kl_divergence(log_softmax(logits_NC[rows], at), stored), 0.0))
            if at == temperature:
                agreed += int((stored.argmax(axis=1) == logits_NC[rows].argmax(axis=1)).sum())
        every = np.concatenate(divergences)
        found[f"{at:g}"] = {"mean": float(every.mean()), "max": float(every.max())}
    agreement = agreed / len(logits_NC)
    return found, agreement, {"kl": found, "top1_agreement": agreement, "entries_compared": len(logits_NC)}


def _storing(
    job: Job, backends: Mapping[str, Backend], stored: Mapping[str, Mapping[str, npt.NDArray[Any]]]
) -> tuple[float, float]:
    """Seconds for one entry to be written and to be read, with digests and checksums, in memory.

    A part of the cache's own length (or its first 65,536 positions) is filled with the sample, over and over.
    """
    whole, classes = job.layout.parts[0], len(job.dataset.classes)
    length = round(job.layout.mean_length)
    count = min(whole.entries, max(1, sizes.MOST_ROWS // length))
    part = sizes.some_entries(job, whole, count)
    filled = {
        what: some_positions(dict(arrays), backends[what].kept, _repeated(arrays, part.positions))
        for what, arrays in stored.items()
        if what in backends
    }
    kept = int(filled["labels"][KEPT].sum(dtype=np.int64)) if backends["labels"].kept else 0
    began = time.perf_counter()
    data = {path: file for what, made in backends.items() for path, file in made.encode(part, filled[what]).items()}
    data[index_files.path_of(part.number)] = index_files.encode(part, sizes.index_rows(job, part))
    files, lengths = MemoryFiles(data), {path: len(file) for path, file in data.items()}
    seals = {path: seal for made in backends.values() for path, seal in made.seals(files, part, lengths, kept).items()}
    digests = {path: FileRecord.of(file) for path, file in data.items()}
    record = PartRecord.of(part, digests, {KEPT: kept} if kept else {}, seals)
    job.encoding.bound(filled["labels"], classes)
    written = time.perf_counter() - began

    # Sequences are read whole: those of a ragged part are taken to be of the mean length.
    order, step = np.random.default_rng(0).permutation(part.positions // length), job.config.batch_size
    whole_entries = (order[:, None] * length + np.arange(length)).reshape(-1)
    batches = [whole_entries[first : first + step * length] for first in range(0, len(whole_entries), step * length)]
    # Training reads into the same arrays again and again; here they are those that were written.
    for _ in range(2):
        began = time.perf_counter()
        arrays = backends["labels"].read(files, record, filled["labels"])
        for rows in batches:
            job.encoding.decode(some_positions(arrays, backends["labels"].kept, rows), classes)
        read = time.perf_counter() - began
    return written / count, read / count


def _repeated(arrays: Mapping[str, npt.NDArray[Any]], count: int) -> npt.NDArray[np.int64]:
    """So many positions: those of a sample over and over."""
    rows = len(arrays[KEPT]) if KEPT in arrays else len(next(iter(arrays.values())))
    return np.arange(count, dtype=np.int64) % rows
