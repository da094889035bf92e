"""What the encodings do alike on the device where the logits are."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def host(tensor: Tensor) -> npt.NDArray[Any]:
    """``tensor`` on the host, out of CUDA in page-locked memory: torch keeps that for the next one of its size.

    On an H200's host 64 MB came at 38 GB/s, and at 1.1 GB/s into memory that is new each time.
    """
    pin = tensor.device.type == "cuda"
    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor) if pin else tensor.cpu()
    array: npt.NDArray[Any] = held.numpy()
    return array


def finite(*rows: Tensor) -> bool:
    """Whether every value is."""
    return all(bool(torch.isfinite(each).all()) for each in rows)
