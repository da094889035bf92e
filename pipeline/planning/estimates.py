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

from pipeline import encodings
from pipeline.dump import Job
from pipeline.encodings import Encoding
from pipeline.encodings.encode_torch import encode
from pipeline.errors import EncodingError
from pipeline.fidelity import kl_divergence, stored_logprobs
from pipeline.identity import digest
from pipeline.metrics import log_softmax
from pipeline.planning import sizes
from pipeline.planning.angles import STUDENTS, Angles, gradient_angles, slices, stand_in
from pipeline.planning.config import PlanConfig, default_k
from pipeline.planning.sampling import Sample
from pipeline.softlabels import SoftLabels
from pipeline.store import FileRecord, Layout, PartRecord, part_size_for
from pipeline.store import index as index_files
from pipeline.store.backend import Backend
from pipeline.store.files import MemoryFiles
from pipeline.store.writer import label_backend
from pipeline.store.zarr_backend import ZarrBackend


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """One encoding. ``problem`` says why it cannot keep the sample; nothing else but its options is known then.

    - ``options``: of ``softlabels dump``; ``identity`` of the cache that it makes with them; ``part_size``, ``parts``:
      as it would cut the entries;
    - ``bytes_per_label``: of the label arrays, for each entry; ``bytes``: of the whole cache by what they hold, and
      ``total``;
    - ``kl``: KL(teacher || stored) in nats over the sample, ``mean`` and ``max``, by temperature;
    - ``top1_agreement``: share of the sample whose largest class is the teacher's, at the training temperature;
    - ``angles``: of the gradient, in degrees, by the student that stands in (``pipeline/planning/angles.py``);
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
    kl: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    top1_agreement: float = math.nan
    angles: Mapping[str, Angles] = dataclasses.field(default_factory=dict)
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


def candidates(config: PlanConfig, classes: int) -> list[dict[str, Any]]:
    """The options of ``softlabels dump`` that the table compares: dense in three precisions, topk for several k.

    topk is kept as float16, which costs it next to nothing, at T = 1 and at the training temperature.
    """
    temperatures = tuple(sorted({1.0, float(config.temperature)}))
    dense = [{"encoding": "dense", "dtype": dtype} for dtype in ("float32", "float16", "int8")]
    kept = sorted(set(config.k or default_k(classes)), reverse=True)
    return dense + [{"encoding": "topk", "k": k, "dtype": "float16", "temperature": temperatures} for k in kept]


def estimate(
    job: Job, sample: Sample, options: Mapping[str, Any], config: PlanConfig, setup_seconds: float
) -> Estimate:
    """Measure one encoding. ``setup_seconds`` are what a dump takes before the first batch."""
    k = options.get("k")
    name = f"{options['encoding']}-{k}" if k else f"{options['encoding']} {options['dtype']}"
    encoding = encodings.make(
        options["encoding"], dtype=options["dtype"], k=k, temperatures=options.get("temperature", (1.0,))
    )
    classes = len(job.dataset.classes)
    try:
        encoding.specs(classes)
        arrays, encode_seconds = _encoded(job, encoding, sample)
    except EncodingError as error:
        return Estimate(name=name, options=options, problem=str(error))
    layout = _layout(job, encoding, classes)
    kept = encoding.decode(arrays, classes)
    kl, agreement = _faithfulness(sample.logits, kept, config.temperature)
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
    fidelity = {"kl": kl, "top1_agreement": agreement, "entries_compared": len(sample.logits)}
    held = {"features": 0, **held, "index": round(sum(index(part) for part in layout.parts))}
    held["other"] = sizes.other_files(relaid, backends, fidelity, held)
    write_seconds, read_seconds = _storing(relaid, backends, stored)
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
        kl=kl,
        top1_agreement=agreement,
        angles={
            student: gradient_angles(
                sample.logits, kept, stand_in(student, sample.logits, config.seed), config.temperature
            )
            for student in STUDENTS
        },
        seconds={"encode": encode_seconds, "write": write_seconds, "read": read_seconds, "dump": dump},
        break_even_epochs=break_even(dump, epoch * sample.forward_seconds, epoch * read_seconds),
    )


def _layout(job: Job, encoding: Encoding, classes: int) -> Layout:
    """How a dump with this encoding would cut the entries into parts."""
    specs = [*encoding.specs(classes).values(), *(spec.array for spec in job.feature_specs.values())]
    size = job.config.part_size or part_size_for(sum(spec.row_bytes for spec in specs), job.layout.groups)
    return dataclasses.replace(job.layout, part_size=size)


def _identity(job: Job, encoding: Encoding, layout: Layout) -> dict[str, Any]:
    changed = {**job.identity, "encoding": encoding.describe(), "part_size": layout.part_size}
    del changed["digest"]
    return {**changed, "digest": digest(changed)}


def _encoded(job: Job, encoding: Encoding, sample: Sample) -> tuple[dict[str, npt.NDArray[Any]], float]:
    """The stored arrays of the sample, and the seconds that one entry took, on the teacher's device."""
    logits = torch.from_numpy(sample.logits).to(job.device)
    step, found = job.config.batch_size, []
    encode(encoding, logits[:step])
    began = time.perf_counter()
    for first in range(0, len(logits), step):
        found.append(encode(encoding, logits[first : first + step]))
    seconds = time.perf_counter() - began
    arrays = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    return arrays, seconds / len(logits)


def _faithfulness(
    logits_NC: npt.NDArray[np.float32], kept: SoftLabels, temperature: float
) -> tuple[dict[str, dict[str, float]], float]:
    """KL in nats by temperature, and the share of rows that keep their largest class."""
    found: dict[str, dict[str, float]] = {}
    agreed = 0
    for at in sorted({1.0, temperature}):
        divergences = []
        for rows in slices(*logits_NC.shape):
            stored = stored_logprobs(kept.map(lambda array, rows=rows: array[rows]), at)  # type: ignore[misc]
            divergences.append(np.maximum(kl_divergence(log_softmax(logits_NC[rows], at), stored), 0.0))
            if at == temperature:
                agreed += int((stored.argmax(axis=1) == logits_NC[rows].argmax(axis=1)).sum())
        every = np.concatenate(divergences)
        found[f"{at:g}"] = {"mean": float(every.mean()), "max": float(every.max())}
    return found, agreed / len(logits_NC)


def _storing(
    job: Job, backends: Mapping[str, Backend], stored: Mapping[str, Mapping[str, npt.NDArray[Any]]]
) -> tuple[float, float]:
    """Seconds for one entry to be written and to be read, with digests and checksums, in memory.

    A part of the cache's own length (or its first 65,536 entries) is filled with the sample, over and over.
    """
    whole, classes = job.layout.parts[0], len(job.dataset.classes)
    count = min(whole.entries, sizes.MOST_ROWS)
    part = dataclasses.replace(whole, entries=count, positions=count * job.layout.length)
    filled = {
        what: {name: _repeated(value, part.positions) for name, value in arrays.items()}
        for what, arrays in stored.items()
    }
    began = time.perf_counter()
    data = {path: file for what, made in backends.items() for path, file in made.encode(part, filled[what]).items()}
    data[index_files.path_of(part.number)] = index_files.encode(part, sizes.index_rows(job, part), job.layout.length)
    files, lengths = MemoryFiles(data), {path: len(file) for path, file in data.items()}
    seals = {path: seal for made in backends.values() for path, seal in made.seals(files, part, lengths).items()}
    record = PartRecord.of(part, {path: FileRecord.of(file) for path, file in data.items()}, {}, seals)
    job.encoding.bound(filled["labels"], classes)
    written = time.perf_counter() - began

    order = np.random.default_rng(0).permutation(part.positions)
    batches = [order[first : first + job.config.batch_size] for first in range(0, len(order), job.config.batch_size)]
    # Training reads into the same arrays again and again; here they are those that were written.
    for _ in range(2):
        began = time.perf_counter()
        arrays = backends["labels"].read(files, record, filled["labels"])
        for rows in batches:
            job.encoding.decode({name: value[rows] for name, value in arrays.items()}, classes)
        read = time.perf_counter() - began
    return written / count, read / count


def _repeated(rows: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    return np.take(rows, np.arange(count) % len(rows), axis=0)
