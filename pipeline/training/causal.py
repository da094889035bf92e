"""A causal language model as training sees it: what it says at the scored positions of its sequences, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.datasets import Dataset
from pipeline.devices import autocast
from pipeline.models.causal import split_head
from pipeline.sampler import Rows
from pipeline.sources.positions import positions_of, said_at
from pipeline.training.objective import Head, Output

CHUNK_ELEMENTS = 1 << 24
"""Logits that are held at once where nothing is learnt from them: 64 MiB of float32."""


class CausalLearner(nn.Module):
    """``model`` with its output cut down to scored positions.

    ``fused``: in training it gives hidden states and the output matrix, for a loss that makes the logits chunk by
    chunk, where the model has a head that can be taken off. Evaluation always does so.
    """

    def __init__(self, model: nn.Module, *, fused: bool) -> None:
        super().__init__()
        self.model = model
        self.fused = fused
        # In a tuple: a module would have the model's parameters under a second name.
        self._parts = (split_head(model),)

    def forward(self, x: Tensor, index: Tensor | None = None) -> Output:
        """Of tokens ``x`` (B, L), at the places ``index`` (P,): logits (P, V), or hidden states (P, D) with a head."""
        said, head = said_at(self.model, self._parts[0], x, index)
        if head is None:
            return Output(said)
        if self.training and not self.fused:
            return Output(head(said))
        return Output(said, head=Head(head.weight, head.bias))


def judge_sequences(
    learner: Callable[..., Output], dataset: Dataset, rows: Rows, x: Tensor, device: torch.device, precision: str
) -> Tensor:
    """``judged_tokens`` of the sequences ``rows`` (B,), whose tokens are ``x`` (B, T); call it without gradients."""
    positions = positions_of(dataset, rows, device)
    with autocast(device, precision):
        return judged_tokens(learner(x[:, : positions.longest], positions.index), positions.targets)


def judged_tokens(output: Output, targets_P: Tensor) -> Tensor:
    """(2,) float32: how many targets are the likeliest token, and the sum of their negative log-likelihoods (nats)."""
    found = torch.zeros(2, device=targets_P.device)
    head = output.head
    classes = output.logits.shape[1] if head is None else head.weight.shape[0]
    step = max(1, CHUNK_ELEMENTS // int(classes))
    chunks = zip(torch.split(output.logits, step), torch.split(targets_P, step), strict=True)
    for values, expected in chunks:
        logits: Any = values if head is None else functional.linear(values, head.weight.to(values.dtype), head.bias)
        logits = logits.float()
        hits = (logits.argmax(dim=1) == expected).sum()
        found += torch.stack([hits, functional.cross_entropy(logits, expected, reduction="sum")])
    return found
