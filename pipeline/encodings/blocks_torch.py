"""Rows of logits by blocks of classes, read once: the largest of each block, and what its classes come to beside it.

What an encoding keeps of a large vocabulary is in few of its blocks: the others need not be looked at again. N rows, C
classes, G blocks, J of them asked for.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pipeline.encodings.base import LOWEST_EXPONENT
from pipeline.encodings.device_torch import wide

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

    def best(self) -> Tensor:
        """(N,) int64: the class of the largest logit of each row, the first of equal ones."""
        block = self.largest.argmax(dim=1, keepdim=True)
        return block[:, 0] * BLOCK + self.inside(block)[:, 0].argmax(dim=1)

    def classes(self, blocks: Tensor) -> Tensor:
        """(N, J, BLOCK) int64: the classes of ``blocks`` (N, J), of which the last block may have too many."""
        return blocks[:, :, None] * BLOCK + torch.arange(BLOCK, device=blocks.device)

    def inside(self, blocks: Tensor) -> Tensor:
        """(N, J, BLOCK) float32: the logits of ``blocks`` (N, J); -inf beyond the last class."""
        last, ids = self.logits.shape[1] - 1, self.classes(blocks)
        values = self.logits.gather(1, ids.clamp(max=last).flatten(1)).float().view(ids.shape)
        return values if (last + 1) % BLOCK == 0 else values.masked_fill_(ids > last, -torch.inf)

    def masses(self, number: int) -> Tensor:
        """(N, G) ``wide``: of each block the sum of exp(scale * (logit - top)), for the scale of that number."""
        beside = (self.largest - self.top).mul_(self.scales[number]).clamp_(min=LOWEST_EXPONENT).exp_()
        return beside.to(wide(beside.device)) * self.sums[number]

    def ends(self) -> Tensor:
        """(N, G) ``wide``: the ``masses`` of each block and those before it, for the first of the scales."""
        if (kernel := _kernel(self.logits)) is not None:
            found: Tensor = kernel.ends(self.largest, self.sums[0], self.scales[0], LOWEST_EXPONENT)
            return found
        return self.masses(0).cumsum(dim=1)

    def classes_at(self, ends: Tensor, wanted: Tensor) -> Tensor:
        """(N, n) int64: the class in whose stretch of the cumulated masses each of ``wanted`` (N, n) lies.

        ``ends`` (N, G) as the method gives them; ``wanted`` above 0, up to the last of them.
        """
        block = torch.searchsorted(ends, wanted).clamp_(max=self.count - 1)
        if (kernel := _kernel(self.logits)) is not None:
            given = self.logits, self.largest, self.sums[0], ends, block, wanted
            found: Tensor = kernel.classes_at(*given, self.scales[0], BLOCK)
            return found
        begin = torch.where(block > 0, ends.gather(1, (block - 1).clamp_(min=0)), 0.0)
        # Within a block, masses are beside its own largest: so is what is left of the way.
        share = (wanted - begin) / (ends.gather(1, block) - begin)
        rest = (share * self.sums[0].gather(1, block)).float()
        largest = self.largest.gather(1, block)[:, :, None]
        inside = (self.inside(block) - largest).mul_(self.scales[0]).exp_().cumsum(dim=2)
        # The same sum in another order may be a bit less: nothing lies beyond the last class that has some mass.
        rest = torch.minimum(rest, inside[:, :, -1])
        return (block * BLOCK + (inside < rest[:, :, None]).sum(dim=2)).clamp_(max=self.logits.shape[1] - 1)


def blocks_of(logits: Tensor, scales: tuple[float, ...]) -> Blocks:
    """``Blocks`` of floating ``logits`` (N, C) with N and C of at least 1, taken as float32."""
    if logits.device.type == "cuda" and logits.stride(1) != 1:
        logits = logits.contiguous()
    if (kernel := _kernel(logits)) is not None:
        largest, sums = kernel.largest_and_sums(logits, scales, BLOCK)
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


def _kernel(logits: Tensor) -> Any:
    """``kernel_torch``, where it can take such logits; None elsewhere."""
    if logits.device.type != "cuda" or logits.dtype == torch.float64:
        return None
    return usable_kernel(logits.device)


@cache
def usable_kernel(device: torch.device) -> Any:
    """``kernel_torch``, tried on ``device``; None without Triton and, with a warning, where it fails or is wrong.

    Triton comes with torch for most GPUs, and compiles for the one it finds: there are more of those than were tried.
    """
    try:
        from pipeline.encodings import kernel_torch
    except ImportError:
        return None
    try:
        _try(kernel_torch, device)
    except Exception as error:
        warnings.warn(
            f"kernels of Triton on {device} should do what torch's operators do; found {type(error).__name__}: "
            f"{str(error)[:500]}. Labels are encoded by torch's operators instead, which is slower",
            stacklevel=2,
        )
        return None
    return kernel_torch


def _try(kernel: Any, device: torch.device) -> None:
    """Raises AssertionError when the kernels say something else, of a few rows, than operators on a processor do."""
    logits = torch.arange(3 * 1000).view(3, 1000).mul(0.7).sin().mul(5)
    wanted = torch.tensor([[0.1, 0.35, 0.6, 0.85]] * 3, dtype=torch.float64)
    plain = blocks_of(logits, (1.0,))
    expected = plain.ends()
    largest, (sums,) = kernel.largest_and_sums(logits.to(device), (1.0,), BLOCK)
    ends = kernel.ends(largest, sums, 1.0, LOWEST_EXPONENT)
    torch.testing.assert_close(largest.cpu(), plain.largest)
    torch.testing.assert_close(sums.cpu(), plain.sums[0])
    torch.testing.assert_close(ends.cpu(), expected, rtol=1e-5, atol=1e-8)
    places = wanted.to(device) * ends[:, -1:]
    block = torch.searchsorted(ends, places).clamp_(max=plain.count - 1)
    found = kernel.classes_at(logits.to(device), largest, sums, ends, block, places, 1.0, BLOCK)
    torch.testing.assert_close(found.cpu(), plain.classes_at(expected, wanted * expected[:, -1:]))
