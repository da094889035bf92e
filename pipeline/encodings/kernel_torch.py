"""What ``blocks_torch`` does, on a GPU, in one pass over the logits as they come, half precision too.

Nothing of their size is written: the largest and the sum of each block, and later a few blocks of each row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 128
"""Blocks, or draws, that one program of the GPU takes."""


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

    ``logits`` (N, C): float32, float16 or bfloat16, on a GPU, the classes of a row side by side.
    """
    rows, classes = logits.shape
    blocks = -(-classes // block)
    largest = torch.empty((rows, blocks), dtype=torch.float32, device=logits.device)
    found = []
    for scale in scales:
        sums, grid = torch.empty_like(largest), (rows, -(-blocks // TILE))
        _one_scale[grid](logits, largest, sums, classes, blocks, logits.stride(0), scale, BLOCK=block, TILE=TILE)
        found.append(sums)
    return largest, tuple(found)


@triton.jit  # type: ignore[untyped-decorator]
def _ends(largest, sums, ends, blocks, scale, low, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    block = tl.arange(0, BLOCKS)
    there, place = block < blocks, tl.program_id(0).to(tl.int64) * blocks + block
    top = tl.load(largest + place, mask=there, other=-float("inf"))
    beside = tl.exp(tl.maximum((top - tl.max(top, axis=0)) * scale, low))
    mass = tl.where(there, beside * tl.load(sums + place, mask=there, other=0.0), 0.0)
    tl.store(ends + place, tl.cumsum(mass.to(tl.float64), axis=0), mask=there)


def ends(largest: Tensor, sums: Tensor, scale: float, low: float) -> Tensor:
    """(N, G) float64: ``Blocks.ends``, an exponent below ``low`` taken for that."""
    rows, blocks = largest.shape
    found = torch.empty((rows, blocks), dtype=torch.float64, device=largest.device)
    _ends[(rows,)](largest, sums, found, blocks, scale, low, BLOCKS=triton.next_power_of_2(blocks), num_warps=8)
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _classes(  # type: ignore[no-untyped-def]
    logits, largest, sums, ends, block, wanted, ids, classes, blocks, draws, stride, scale,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    draw = tl.program_id(1) * TILE + tl.arange(0, TILE)
    there, place = draw < draws, row * draws + draw
    own = tl.load(block + place, mask=there, other=0)
    at = row * blocks + own
    begin = tl.load(ends + at - 1, mask=there & (own > 0), other=0.0)
    mass = tl.load(ends + at, mask=there, other=1.0) - begin
    share = (tl.load(wanted + place, mask=there, other=0.0) - begin) / mass
    rest = (share * tl.load(sums + at, mask=there, other=1.0)).to(tl.float32)
    top = tl.load(largest + at, mask=there, other=0.0)
    number = tl.arange(0, BLOCK)[None, :]
    columns = own[:, None] * BLOCK + number
    real = there[:, None] & (columns < classes)
    values = tl.load(logits + row * stride + columns, mask=real, other=-float("inf")).to(tl.float32)
    inside = tl.cumsum(tl.where(real, tl.exp((values - top[:, None]) * scale), 0.0), axis=1)
    rest = tl.minimum(rest, tl.max(tl.where(real, inside, 0.0), axis=1))
    first = tl.min(tl.where(inside >= rest[:, None], number, BLOCK - 1), axis=1)
    tl.store(ids + place, tl.minimum(own * BLOCK + first, classes - 1), mask=there)


def classes_at(
    logits: Tensor, largest: Tensor, sums: Tensor, ends: Tensor, block: Tensor, wanted: Tensor, scale: float, size: int
) -> Tensor:
    """(N, n) int64: ``Blocks.classes_at``, of blocks of ``size`` classes."""
    (rows, classes), draws = logits.shape, block.shape[1]
    found, tile = torch.empty_like(block), min(TILE // 2, triton.next_power_of_2(draws))
    _classes[(rows, -(-draws // tile))](
        logits, largest, sums, ends, block, wanted, found, classes, largest.shape[1], draws, logits.stride(0), scale,
        BLOCK=size, TILE=tile,
    )  # fmt: skip
    return found
