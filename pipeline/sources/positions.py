"""Where the scored positions of a batch of token sequences lie, and which tokens follow there.

A sequence is one example; its positions are the places whose next token counts. Everything that is said of positions
(logits, soft labels, targets) has those of a batch one after another: a row per position, not per example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.datasets import Dataset
from pipeline.devices import on_device
from pipeline.models import logits_of
from pipeline.sampler import Rows

Forward = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Positions:
    """The P scored positions of B sequences, one sequence's after another's.

    - ``index`` (P,) int64: of each among the B * ``longest`` places of the batch; None when all of them are scored;
    - ``targets`` (P,) int64: the token that follows; ``lengths`` (B,) int64: positions of each sequence;
    - ``longest``: tokens up to the last that is scored in any of them. What lies beyond need not be computed.
    """

    index: Tensor | None
    targets: Tensor
    lengths: Tensor
    longest: int

    def __len__(self) -> int:
        return len(self.targets)

    def of(self, values: Tensor) -> Tensor:
        """(P, ...) those of ``values`` (B, longest, ...) that belong to scored positions."""
        return at_positions(values, self.index)

    def spread(self, values: Tensor) -> Tensor:
        """(P, ...): ``values`` (B, ...) of the sequences, each at all of its positions."""
        return values.repeat_interleave(self.lengths, dim=0, output_size=len(self))


def at_positions(values: Tensor, index: Tensor | None) -> Tensor:
    """(P, ...): the places ``index`` (P,) of ``values`` (B, L, ...), counted through all of them; None takes all."""
    flat = values.flatten(0, 1)
    return flat if index is None else flat.index_select(0, index)


def said_at(
    model: Forward, parts: tuple[Forward, nn.Linear] | None, tokens: Tensor, index: Tensor | None
) -> tuple[Tensor, nn.Linear | None]:
    """What ``model`` says of ``tokens`` (B, L) at the places ``index`` (P,): hidden states (P, D), and their head.

    ``parts``: body and head of the model, as ``split_head`` has them; logits of places that nobody asked for are then
    never made. Without them, logits (P, V) and None. Raises ModelError for an output that holds no logits.
    """
    if parts is None:
        return at_positions(logits_of(model(tokens)), index), None
    body, head = parts
    return at_positions(body(tokens), index), head


def positions_of(dataset: Dataset, rows: Rows, device: torch.device) -> Positions:
    """The scored positions of the sequences ``rows`` (B,), with their tensors on ``device``."""
    targets_BT = np.asarray(dataset.targets(rows), dtype=np.int64)
    scored = targets_BT >= 0
    columns = np.flatnonzero(scored.any(axis=0))
    longest = int(columns[-1]) + 1 if len(columns) else 1
    scored = scored[:, :longest]
    index = None if scored.all() else on_device(np.flatnonzero(scored), device)
    targets = on_device(targets_BT[:, :longest][scored], device)
    lengths = on_device(scored.sum(axis=1), device)
    return Positions(index, targets, lengths, longest)
