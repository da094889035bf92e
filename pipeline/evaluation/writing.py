"""What language models write: the beginnings of held-out sequences, continued by every model with the same draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.datasets import Dataset
from pipeline.errors import MissingDependencyError
from pipeline.models.causal import generate

SAMPLES, PROMPT, TOKENS = 3, 32, 64
"""By default how many sequences; of how many tokens the beginnings are, and how many follow."""
TEMPERATURE, TOP_K, SEED = 0.8, 40, 0


def write_on(
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    models: Mapping[str, nn.Module],
    *,
    teacher: nn.Module | None = None,
    samples: int | None = None,
    left_out: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Samples of ``rows`` (N,), under ``written``, as JSON values; empty where none are asked for, or nothing is text.

    Beginnings are evenly spread over the rows, and of half the longest sequence where that has fewer than 2 ``PROMPT``
    tokens. ``text`` is how each goes on in the data itself; no model sees more tokens than the longest sequence has.
    ``left_out`` says of models why they write nothing; without text, ``note`` says so of all.
    """
    count = (SAMPLES if dataset.discrete else 0) if samples is None else samples
    if not count or not dataset.discrete:
        return {}
    read = getattr(dataset, "text_of", None)
    if not callable(read):
        return {"written": {"note": f"{dataset.name} does not know its text (text_of)"}}
    longest = dataset.input_shape[0]
    size = max(1, min(PROMPT, longest // 2))
    chosen, ends = _beginnings(dataset, rows, size, count)
    if not len(chosen):
        return {"written": {"note": f"no sequence has more than {size} tokens"}}
    sequences = [dataset.load(int(row)) for row in chosen]
    prompts = torch.stack([ids[:size] for ids in sequences])
    try:
        begun = [read(ids.tolist()) for ids in prompts]
    except MissingDependencyError as error:
        return {"written": {"note": str(error)}}

    def continued(model: nn.Module) -> list[str]:
        weight = next(model.parameters(), None)
        given = prompts if weight is None else prompts.to(weight.device)
        ids = generate(
            model, given, tokens=TOKENS, temperature=TEMPERATURE, top_k=TOP_K, longest=longest, seed=SEED
        )  # fmt: skip
        return [read(row) for row in ids[:, size:].tolist()]

    said = {
        "prompts": begun,
        "ids": [dataset.ids[int(row)] for row in chosen],
        "text": [read(ids[size : min(end, size + TOKENS)].tolist()) for ids, end in zip(sequences, ends, strict=True)],
        "teacher": None if teacher is None else continued(teacher),
        "models": {name: continued(model) for name, model in models.items()},
        "left_out": dict(left_out or {}),
        "prompt_tokens": size,
        "tokens": TOKENS,
        "temperature": TEMPERATURE,
        "top_k": TOP_K,
        "seed": SEED,
    }
    return {"written": said}


def _beginnings(
    dataset: Dataset, rows: npt.NDArray[np.int64], size: int, count: int
) -> tuple[npt.NDArray[np.int64], list[int]]:
    """At most ``count`` of the rows with more than ``size`` tokens, evenly spread, and how many tokens each has."""
    lasts = []
    for first in range(0, len(rows), 1024):  # the targets of a whole split may not fit in memory
        scored = dataset.targets(rows[first : first + 1024]) >= 0
        lasts.append(scored.shape[1] - scored[:, ::-1].argmax(axis=1))
    ends = np.concatenate(lasts) if lasts else np.zeros(0, np.int64)
    fit = np.flatnonzero(ends > size)
    picked = fit[np.unique(np.linspace(0, len(fit) - 1, min(count, len(fit))).round().astype(int))] if len(fit) else fit
    return rows[picked], ends[picked].tolist()
