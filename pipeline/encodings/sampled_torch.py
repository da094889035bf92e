"""Sampled labels on the device where the logits are: the ids of the draws of each row cross to the host.

The twin of ``Sampled.encode``: the same thresholds, made on the host from the same keys, and the same search, first for
the block of a draw and then for its class.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.devices import on_device
from pipeline.encodings.blocks_torch import blocks_of
from pipeline.encodings.sampled import Sampled


def drawn(encoding: Sampled, logits: Tensor, places: npt.NDArray[np.float64]) -> dict[str, Tensor]:
    """What ``Sampled.counted_up`` wants: ``ids`` (N, n) int32, ``each`` (N, n) where draws have weights of their own.

    And ``finite`` (N,), the rows that can be kept, and ``best`` (N,) int64, the class of the largest. ``logits`` (N, C)
    floating, ``places`` (N, n) as ``thresholds`` gives them.
    """
    temperature = 1.0 / encoding.temperature
    scales = (temperature,) if encoding.counted else (encoding.proposal * temperature, temperature)
    made = blocks_of(logits, scales)
    ends = made.ends()
    wanted = on_device(places, logits.device).to(ends.dtype) * ends[:, -1:]
    ids = made.classes_at(ends, wanted)
    found = {"ids": ids.int(), "finite": made.finite, "best": made.best()}
    if not encoding.counted:
        share = ends[:, -1] / made.masses(1).sum(dim=1) / encoding.n
        relative = made.logits.gather(1, ids).float() - made.top
        found["each"] = (relative.to(ends.dtype) * (temperature * (1.0 - encoding.proposal))).exp() * share[:, None]
    return found
