"""Bringing what was made on a device to the host, without waiting for the device before it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


class Coming:
    """Tensors on their way to the host: asked for, and not yet waited for.

    Out of CUDA they come into page-locked memory, which torch keeps for the next ones of their size: on an H200's host
    64 MB came at 38 GB/s, and at 1.1 GB/s into memory that is new each time.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        self._held = {name: self._sent(tensor.detach()) for name, tensor in tensors.items()}
        if any(tensor.device.type == "cuda" for tensor in tensors.values()):
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    @staticmethod
    def _sent(tensor: Tensor) -> Tensor:
        if tensor.device.type != "cuda":
            return tensor.cpu()
        held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return held.copy_(tensor, non_blocking=True)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return {name: held.numpy() for name, held in self._held.items()}


def wide(device: torch.device) -> torch.dtype:
    """What sums are taken in: float64, which MPS has not."""
    return torch.float32 if device.type == "mps" else torch.float64
