"""The k largest logits of each row, and the masses of all, on the device where the logits are.

The k largest of a row lie in k of its blocks: in those whose largest are largest. The twin of ``TopK.encode``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.encodings.base import LOWEST_EXPONENT
from pipeline.encodings.blocks_torch import Blocks, blocks_of
from pipeline.encodings.device_torch import wide
from pipeline.encodings.topk import TopK

_LOW = 2**32 - 1


def largest(encoding: TopK, logits: Tensor) -> dict[str, Tensor]:
    """What ``TopK.packed`` wants of ``logits`` (N, C >= k), floating, and ``finite`` (N,): the rows that can be kept.

    ``ids`` (N, k) int32, ``logits`` (N, k) float32 beside the row's largest, ``log_normaliser`` and ``log_residual``
    (N, S) float32. And ``best`` (N,) int64, the class of the largest.
    """
    made = blocks_of(logits, tuple(1.0 / t for t in encoding.temperatures))
    rows, classes = logits.shape
    number = min(made.count, encoding.k)
    blocks = torch.arange(made.count, device=logits.device).expand(rows, -1)
    if number < made.count:
        blocks = _ids(_highest(_keys(made.largest, blocks), number))
    values, ids = made.inside(blocks).flatten(1), made.classes(blocks).flatten(1)
    keys = _keys(values, ids)
    first = _highest(keys, encoding.k)
    kept = _ids(first).sort(dim=1).values
    chosen = made.logits.gather(1, kept).float() - made.top
    lowest = float(np.finfo(np.float32).min)
    normaliser = torch.stack([_log_sum_of_exp(chosen, scale) for scale in made.scales], dim=1)
    residual = torch.full_like(normaliser, -torch.inf)  # kept for "nothing was dropped"
    if encoding.k < classes:
        dropped = values.masked_fill_(keys >= first.amin(dim=1, keepdim=True), -torch.inf)
        tail = _tails(made, blocks, dropped)
        normaliser = torch.logaddexp(normaliser, tail)
        residual = (tail - normaliser).clamp(min=lowest)
    return {
        "ids": kept.int(),
        "logits": chosen.clamp(min=lowest),
        "log_normaliser": normaliser.float(),
        "log_residual": residual.float(),
        "finite": made.finite,
        "best": made.best(),
    }


def _keys(values: Tensor, ids: Tensor) -> Tensor:
    """(N, M) int64, in the order of ``values`` (N, M) float32 and, of equal ones, with the smaller of ``ids`` above."""
    bits = (values + 0.0).view(torch.int32)  # that of -0 and of 0 is the same
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (_LOW - ids)


def _highest(keys: Tensor, k: int) -> Tensor:
    """(N, k): the ``k`` largest of ``keys`` (N, M) int64, in no order."""
    if keys.device.type == "cpu":  # numpy parts them with vector instructions: 3 us a row of 1,600 where topk takes 20
        return torch.from_numpy(np.partition(keys.numpy(), keys.shape[1] - k, axis=1)[:, keys.shape[1] - k :])
    return keys.topk(k, dim=1, sorted=False).values


def _ids(keys: Tensor) -> Tensor:
    """The ids that ``keys`` were made of."""
    return _LOW - (keys & _LOW)


def _tails(made: Blocks, blocks: Tensor, dropped: Tensor) -> Tensor:
    """(N, S): the log of the sum of exp(scale * (logit - top)) over dropped classes, for each of the scales.

    In ``blocks`` (N, J) they are ``dropped`` (N, M), with -inf for others; other blocks are dropped whole. All are
    summed beside their own largest, so that a mass below float32's smallest still has its logarithm.
    """
    dtype = wide(dropped.device)
    elsewhere = made.largest.scatter(1, blocks, -torch.inf)
    beside = torch.maximum(dropped.amax(dim=1, keepdim=True), elsewhere.amax(dim=1, keepdim=True))
    within, without, below = dropped - beside, elsewhere - beside, (beside - made.top)[:, 0].to(dtype)
    found = []
    for scale, sums in zip(made.scales, made.sums, strict=True):
        total = _exp(within, scale).sum(dim=1, dtype=dtype) + (_exp(without, scale) * sums).sum(dim=1, dtype=dtype)
        found.append(total.log() + below * scale)
    return torch.stack(found, dim=1)


def _log_sum_of_exp(relative: Tensor, scale: float) -> Tensor:
    return _exp(relative, scale).sum(dim=1, dtype=wide(relative.device)).log()


def _exp(relative: Tensor, scale: float) -> Tensor:
    """exp(scale * relative), but 0 where it is a denormal number: slow, and lost beside exp(0)."""
    scaled = relative * scale
    return scaled.clamp(min=LOWEST_EXPONENT).exp_().masked_fill_(scaled < LOWEST_EXPONENT, 0.0)
