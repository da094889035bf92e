"""What a student comes to on the validation rows after an epoch, over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.devices import autocast
from pipeline.models import logits_of
from pipeline.sampler import Order
from pipeline.training.causal import judge_sequences
from pipeline.training.ranks import Ranks
from pipeline.training.recipe import Recipe
from pipeline.training.tally import exact_sum, judged
from pipeline.training.task import Task

VALIDATION_BATCHES = 4
"""Validation batches are this many times as long as training ones: nothing is kept for a backward pass."""


def validate(
    learner: nn.Module, forward: Callable[..., Any], task: Task, recipe: Recipe, ranks: Ranks, members: int
) -> tuple[Tensor, Tensor]:
    """Accuracy and mean negative log-likelihood (nats) on the validation rows, scalars or (n,) of ``members``.

    ``forward`` is ``learner``, or what was compiled of it; the learner is left in evaluation mode.
    """
    size = recipe.batch_size * (1 if task.sequences is not None else VALIDATION_BATCHES)
    order = Order((task.validation,), size, shuffle=False, rank=ranks.rank, world=ranks.world)
    ranks.same_buffers(learner)
    labels = torch.from_numpy(task.validation_labels).to(task.device)
    found: list[Tensor] = []
    learner.eval()
    with torch.no_grad():
        for rows, x in zip(order.epoch(0), task.validation_inputs.stream(order, 0, 0, 0), strict=True):
            if task.sequences is not None:
                where = task.device, recipe.precision
                found.append(judge_sequences(forward, task.sequences, rows, x, *where))
                continue
            with autocast(task.device, recipe.precision):
                logits = logits_of(forward(x)).float()
            expected = labels[torch.from_numpy(rows).to(task.device)]
            found.append(judged(logits, expected))
        if ranks.sharded and len(found) < -(-order.all_batches // ranks.world):
            whole = Order((task.validation,), size, shuffle=False)
            forward(next(task.validation_inputs.stream(whole, 0, 0, 0)))  # as often as rank 0
    none = torch.zeros(0, 2, *([members] if members else []))
    hits, nll = exact_sum(ranks.rows(torch.stack(found).cpu() if found else none))
    count = order.examples if task.sequences is None else int(task.sequences.lengths[task.validation].sum())
    return hits / count, nll / count
