"""What each candidate costs: bytes, parameters, arithmetic, and on this machine time, memory and energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.artefacts.cost import fresh_process
from pipeline.artefacts.counting import counts_of
from pipeline.artefacts.energy import Energy, energy, nvml, rapl
from pipeline.artefacts.environment import environment
from pipeline.artefacts.latency import measure
from pipeline.datasets import Dataset
from pipeline.devices import resolve_device
from pipeline.errors import ModelError
from pipeline.evaluation.candidates import Candidate
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.scoring import labelled_rows, plain_batches
from pipeline.evaluation.table import Row
from pipeline.models.macs import count_nonzeros, known_macs
from pipeline.progress import Progress

TIMED = 64
"""Examples whose inputs are timed, over and over."""
TIMED_ELEMENTS = 1 << 25
"""Logits of one timed call of a language model, 128 MiB of float32: its sequences are cut to what comes to that."""
STARTS = 3
"""Fresh processes of each file."""
DECIDED = 2.0
"""The energy of work is measured for so many seconds, and that of rest as long."""


def cost(
    config: EvaluateConfig, rows: Sequence[Row], candidates: Sequence[Candidate], dataset: Dataset, progress: Progress
) -> dict[str, Any]:
    """Fill in the cost of each row, and return what it was measured on. JSON values.

    Of token sequences an example is one as long as the longest of the data, and ``timed_tokens`` of it are timed.
    """
    of = {candidate.name: candidate for candidate in candidates}
    measured = [row for row in rows if row.name in of]
    inputs = next(plain_batches(dataset, labelled_rows(dataset, config.split)[:TIMED], batch_size=TIMED))[1]
    for row in measured:
        _count(row, of[row.name], inputs[:1])
    where = environment(config.runtime_threads)
    where |= {"runtime_threads": config.runtime_threads, "torch_threads": torch.get_num_threads()}
    where |= {"timed": config.cost, "energy": None}
    if config.cost:
        arrays = np.ascontiguousarray(inputs.numpy())
        if dataset.discrete:
            most = TIMED_ELEMENTS // (max(config.latency_batch) * len(dataset.classes))
            arrays = np.ascontiguousarray(arrays[:, : max(1, most)])
            where["timed_tokens"] = arrays.shape[1]
        with progress.bar("cost", 1 + len(measured), "models") as bar:
            # Controls that are no files are not deployed: how long they take in torch would mislead.
            timed = [c for c in candidates if c.artefacts or not c.control]
            predictors = {(c.name, seed): c.timed(seed) for c in timed for seed in c.predictors}
            found = measure(predictors, arrays, config.latency_batch, seconds=config.latency_seconds)
            bar.update(1)
            for row in measured:
                row.timed([each for (name, _), each in found.items() if name == row.name])
                _start(row, of[row.name], config, dataset)
                bar.update(1)
        where["energy"] = _energies(measured, of, arrays, config)
    return where


def _count(row: Row, candidate: Candidate, example: torch.Tensor) -> None:
    """Bytes on disk; parameters and those that are not zero; multiply-accumulates of the float model."""
    row.file = row.file or (str(candidate.files[0]) if candidate.files else None)
    row.bytes = candidate.bytes
    if candidate.models and row.parameters is None:  # compress counts its models when it makes them
        model = next(iter(candidate.models.values()))
        row.parameters, row.nonzeros = candidate.parameters, count_nonzeros(model)
        row.macs = known_macs(model, example.to(next(model.parameters()).device))
    elif candidate.artefacts:
        try:
            counts = counts_of(next(iter(candidate.artefacts.values())).path)
            row.bits_per_parameter = counts.bits
            row.nonzeros = counts.nonzeros if row.parameters is None else row.nonzeros
            row.parameters = counts.parameters if row.parameters is None else row.parameters
        except ModelError:  # a kind whose weights only its runtime can read
            pass


def _start(row: Row, candidate: Candidate, config: EvaluateConfig, dataset: Dataset) -> None:
    """Load time and memory of a fresh process that opens the file; torch modules are no files that one deploys."""
    if not candidate.artefacts:
        return
    artefact = next(iter(candidate.artefacts.values()))
    threads, shape = config.runtime_threads, dataset.input_shape
    try:
        found = fresh_process(artefact, threads=threads, starts=STARTS, input_shape=shape)
    except ModelError as error:
        row.warnings.append(f"no fresh process could run it: {error}")
        return
    row.memory, row.load_seconds = found.model_bytes, found.load_seconds + found.first_seconds
    row.process = found.as_dict()


def _energies(rows: Sequence[Row], of: dict[str, Candidate], inputs: Any, config: EvaluateConfig) -> str:
    """Joules per example at the largest batch, where the machine counts them; else the reason."""
    device = resolve_device(config.device)
    counter = nvml(device.index or 0) if device.type == "cuda" else rapl()
    if isinstance(counter, str):
        return counter
    size = max(config.latency_batch)
    for row in rows:
        candidate = of[row.name]
        found = energy(
            candidate.timed(next(iter(candidate.predictors))), inputs, size, seconds=DECIDED, counter=counter
        )
        if isinstance(found, Energy):
            row.joules = found.joules
    return f"joules per example at batch {size}, everything on the chip included, by {counter.name}"
