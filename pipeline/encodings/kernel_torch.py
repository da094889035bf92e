"""``blocks_torch`` in one pass over the logits as they come, half precision too: nothing of their size is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 128
"""Blocks that one program of the GPU takes."""


@triton.jit  # type: ignore[untyped-decorator]
def _one_scale(logits, largest, sums, classes, blocks, stride, scale, BLOCK: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * TILE + tl.arange(0, TILE)
    ids = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    there = ids < classes
    values = tl.load(logits + row * stride + ids, mask=there, other=-float("inf")).to(tl.float32)
    top = tl.max(values, axis=1)
    # Neither NaN nor an infinity is below infinity in magnitude; tl.max would pass over NaN.
    bad = tl.sum((there & ~(tl.abs(values) < float("inf"))).to(tl.int32), axis=1)
    mass = tl.sum(tl.where(there, tl.exp((values - top[:, None]) * scale), 0.0), axis=1)
    place = row * blocks + block
    tl.store(largest + place, tl.where(bad > 0, float("nan"), top), mask=block < blocks)
    tl.store(sums + place, mass, mask=block < blocks)


def largest_and_sums(logits: Tensor, scales: tuple[float, ...], block: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``largest`` (N, G) and ``sums`` (N, G) for each scale, as ``Blocks`` has them; a block that is not finite is NaN.

    ``logits`` (N, C): float32, float16 or bfloat16, on a GPU.
    """
    rows, classes = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    blocks = -(-classes // block)
    largest = torch.empty((rows, blocks), dtype=torch.float32, device=logits.device)
    found = []
    for scale in scales:
        sums = torch.empty_like(largest)
        grid = (rows, -(-blocks // TILE))
        _one_scale[grid](
            logits, largest, sums, classes, blocks, logits.stride(0), scale, BLOCK=block, TILE=TILE, num_warps=4
        )
        found.append(sums)
    return largest, tuple(found)
