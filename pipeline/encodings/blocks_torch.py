"""Rows of logits by blocks of classes, read once: the largest of each block, and what its classes come to beside it.

What an encoding keeps of a large vocabulary is in few of its blocks: the others need not be looked at again. N rows, C
classes, G blocks, J of them asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pipeline.encodings.base import LOWEST_EXPONENT

BLOCK = 32
"""Classes of a block: with 50 draws a row, of 32,000 to 128,000 classes, near the least work in blocks and in them."""


@dataclass(frozen=True)
class Blocks:
    """``logits`` (N, C); ``largest`` (N, G) float32 of each block, and for each of the ``scales``

    ``sums`` (N, G) float32: over the block, of exp(scale * (logit - largest)). ``finite`` (N,): whether the row is.
    """

    logits: Tensor
    largest: Tensor
    scales: tuple[float, ...]
    sums: tuple[Tensor, ...]
    finite: Tensor

    @property
    def top(self) -> Tensor:
        """(N, 1) float32: the largest of each row."""
        return self.largest.amax(dim=1, keepdim=True)

    @property
    def count(self) -> int:
        """G."""
        return self.largest.shape[1]

    def classes(self, blocks: Tensor) -> Tensor:
        """(N, J, BLOCK) int64: the classes of ``blocks`` (N, J), of which the last block may have too many."""
        return blocks[:, :, None] * BLOCK + torch.arange(BLOCK, device=blocks.device)

    def inside(self, blocks: Tensor) -> Tensor:
        """(N, J, BLOCK) float32: the logits of ``blocks`` (N, J); -inf beyond the last class."""
        last, ids = self.logits.shape[1] - 1, self.classes(blocks)
        values = self.logits.gather(1, ids.clamp(max=last).flatten(1)).float().view(ids.shape)
        return values if (last + 1) % BLOCK == 0 else values.masked_fill_(ids > last, -torch.inf)

    def masses(self, number: int, dtype: torch.dtype) -> Tensor:
        """(N, G) ``dtype``: of each block the sum of exp(scale * (logit - top)), for the scale of that number."""
        beside = (self.largest - self.top).mul_(self.scales[number]).clamp_(min=LOWEST_EXPONENT).exp_()
        return beside.to(dtype) * self.sums[number]


def blocks_of(logits: Tensor, scales: tuple[float, ...]) -> Blocks:
    """``Blocks`` of floating ``logits`` (N, C) with N and C of at least 1, taken as float32."""
    kernel = _kernel() if logits.device.type == "cuda" and logits.dtype != torch.float64 else None
    if kernel is not None:
        largest, sums = kernel(logits, scales, BLOCK)
        return Blocks(logits, largest, scales, sums, largest.isfinite().all(dim=1))
    values = logits.float()
    whole = values.shape[1] // BLOCK * BLOCK
    parts = [values[:, :whole].view(len(values), -1, BLOCK)] if whole else []
    if whole < values.shape[1]:
        parts.append(values[:, None, whole:])
    largest = _joined([part.amax(dim=2) for part in parts])
    # NaN travels through either: two numbers of each row see every bad value.
    finite = largest.amax(dim=1).isfinite() & values.amin(dim=1).isfinite()
    sums = []
    for scale in scales:
        found, first = [], 0
        for part in parts:
            blocks = part.shape[1]
            scaled = part - largest[:, first : first + blocks, None]
            if scale != 1.0:
                scaled.mul_(scale)
            found.append(scaled.clamp_(min=LOWEST_EXPONENT).exp_().sum(dim=2))
            first += blocks
        sums.append(_joined(found))
    return Blocks(values, largest, scales, tuple(sums), finite)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@cache
def _kernel() -> Any:
    """The same in one pass of a GPU; None where Triton, which torch brings along for most GPUs, is not there."""
    try:
        from pipeline.encodings.kernel_torch import largest_and_sums
    except ImportError:
        return None
    return largest_and_sums
