"""Sampled labels on the device where the logits are: a few ids and counts of each row cross to the host.

The twin of ``Sampled.encode``: the same thresholds, made on the host from the same keys, and the same search. Sums are
float64 (float32 on MPS, which has no other).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encodings.base import LOWEST_EXPONENT, Keys
from pipeline.encodings.device_torch import finite, host
from pipeline.encodings.drawing import BLOCK
from pipeline.encodings.sampled import Sampled

_ROWS_TIMES_CLASSES = {"cpu": 2**21, "cuda": 2**28}
"""Logits that are worked on at a time: on a processor those that stay near it, on a GPU 1 GB of them in float32."""


def encode(encoding: Sampled, logits: Tensor, keys: Keys | None) -> dict[str, npt.NDArray[Any]]:
    """``encoding.encode`` of ``logits`` (N, C), taken as float32, on their device; the arrays lie on the host.

    Raises EncodingError as that does.
    """
    logits = logits.detach()
    if logits.ndim == 2 and logits.is_floating_point() and min(logits.shape) > 0:
        rows, classes = logits.shape
        places = encoding.places(keys, rows)
        parts = []
        for part in encoding.slices(rows, classes, _ROWS_TIMES_CLASSES.get(logits.device.type, 2**26)):
            found = _kept(encoding, logits[part].float(), places[part])
            if found is None:
                break
            parts.append(found)
        else:
            return encoding.packed(
                classes, *(np.concatenate([host(t) for t in each]) for each in zip(*parts, strict=True))
            )
    # Something that cannot be kept: numpy's own method says which row it is.
    wide = logits if logits.dtype == torch.float64 or not logits.is_floating_point() else logits.float()
    return encoding.encode(wide.cpu().numpy(), keys)


def _kept(encoding: Sampled, values: Tensor, places: npt.NDArray[np.float64]) -> tuple[Tensor, ...] | None:
    """What ``Sampled.packed`` wants of some rows, but for the number of classes; None when a value is not finite."""
    top, bottom = values.amax(dim=1, keepdim=True), values.amin(dim=1)
    if not finite(top, bottom):
        return None
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    scaled = values - top
    if encoding.temperature != 1.0:
        # By a tensor: with a number, CUDA multiplies by its reciprocal, which rounds otherwise.
        scaled /= torch.full_like(top, encoding.temperature)
    scaled.clamp_(min=torch.finfo(torch.float32).min)
    masses = (scaled if encoding.counted else scaled * encoding.proposal).clamp(min=LOWEST_EXPONENT).exp_()
    ids = _drawn(masses, torch.from_numpy(places).to(values.device, wide))
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = first.view(-1).nonzero()[:, 0]
    counts = starts.diff(append=starts.new_tensor([ids.numel()]))
    weights = values.new_zeros(0)
    if not encoding.counted:
        total = scaled.clamp(min=LOWEST_EXPONENT).exp_().sum(dim=1, dtype=wide)
        share = masses.sum(dim=1, dtype=wide) / total / encoding.n
        each = (scaled.gather(1, ids).to(wide) * (1.0 - encoding.proposal)).exp() * share[:, None]
        weights = each[first] * counts
    return first.sum(dim=1), ids[first], counts, weights


def _drawn(masses: Tensor, places: Tensor) -> Tensor:
    """``drawing.drawn``."""
    rows, classes = masses.shape
    blocks = -(-classes // BLOCK)
    if classes % BLOCK:
        masses = torch.nn.functional.pad(masses, (0, blocks * BLOCK - classes))
    blocked = masses.view(rows, blocks, BLOCK)
    ends = blocked.sum(dim=2, dtype=places.dtype).cumsum(dim=1)
    wanted = places * ends[:, -1:]
    block = torch.searchsorted(ends, wanted).clamp_(max=blocks - 1)
    inside = blocked[torch.arange(rows, device=masses.device)[:, None], block].cumsum(dim=2, dtype=places.dtype)
    end = ends.gather(1, block)[:, :, None]
    begin = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)[:, :, None]
    reached = torch.where(inside == inside[:, :, -1:], end, torch.minimum(begin + inside, end))
    return block * BLOCK + (reached < wanted[:, :, None]).sum(dim=2)
