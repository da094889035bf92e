"""Sampled labels on the device where the logits are: the ids of the draws of each row cross to the host.

The twin of ``Sampled.encode``: the same thresholds, made on the host from the same keys, and the same search, first for
the block of a draw and then for its class.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encodings.blocks_torch import BLOCK, Blocks, blocks_of
from pipeline.encodings.device_torch import on_device, wide
from pipeline.encodings.sampled import Sampled


def drawn(encoding: Sampled, logits: Tensor, places: npt.NDArray[np.float64]) -> dict[str, Tensor]:
    """What ``Sampled.counted_up`` wants: ``ids`` (N, n) int32, ``each`` (N, n) where draws have weights of their own.

    And ``finite`` (N,): the rows that can be kept. ``logits`` (N, C) floating, ``places`` (N, n) as ``thresholds``
    gives them.
    """
    temperature = 1.0 / encoding.temperature
    scales = (temperature,) if encoding.counted else (encoding.proposal * temperature, temperature)
    made, dtype = blocks_of(logits, scales), wide(logits.device)
    masses = made.masses(0, dtype)
    ids = _found(made, masses, on_device(places, logits.device).to(dtype))
    found = {"ids": ids.int(), "finite": made.finite}
    if not encoding.counted:
        share = masses.sum(dim=1) / made.masses(1, dtype).sum(dim=1) / encoding.n
        relative = made.logits.gather(1, ids).float() - made.top
        found["each"] = (relative.to(dtype) * (temperature * (1.0 - encoding.proposal))).exp() * share[:, None]
    return found


def _found(made: Blocks, masses: Tensor, places: Tensor) -> Tensor:
    """The class (N, n) in whose stretch of the cumulated distribution each of ``places`` (N, n) lies.

    ``masses`` (N, G): of the blocks, by the first of the scales of ``made``.
    """
    scale = made.scales[0]
    ends = masses.cumsum(dim=1)
    wanted = places * ends[:, -1:]
    block = torch.searchsorted(ends, wanted).clamp_(max=made.count - 1)
    begin = torch.where(block > 0, ends.gather(1, (block - 1).clamp_(min=0)), 0.0)
    largest = made.largest.gather(1, block)
    # Within a block, masses are beside its own largest: so is what is left of the way to the threshold.
    share = masses.gather(1, block) / made.sums[0].gather(1, block)
    rest = ((wanted - begin) / share).float()
    inside = (made.inside(block) - largest[:, :, None]).mul_(scale).exp_().cumsum(dim=2)
    # The same sum in another order may be a bit less: no draw lies beyond the last class that has some mass.
    rest = torch.minimum(rest, inside[:, :, -1])
    return block * BLOCK + (inside < rest[:, :, None]).sum(dim=2)
