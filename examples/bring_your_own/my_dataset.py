"""A dataset of one's own: points on three spirals, to be told apart. ``--data my_dataset:Spirals``.

A dataset needs stable ids, labels, class names and ``load``. Splits follow from the ids unless it has its own.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.datasets import Dataset

ARMS = 3


class Spirals(Dataset):
    """``points`` per arm as float32 (2,), drawn with a fixed seed."""

    def __init__(self, points: int = 200, noise: float = 0.05) -> None:
        super().__init__(
            name="spirals",
            classes=["red", "green", "blue"],
            # An id belongs to an example for good: more points later leave these as they are.
            ids=[f"arm{arm}/{n}" for arm in range(ARMS) for n in range(points)],
            labels=np.repeat(np.arange(ARMS), points),
            input_shape=(2,),
            preprocessing="coordinates as they are",
        )
        self._points, self._noise = points, noise

    def load(self, row: int) -> Tensor:
        """(2,) float32, what views act on."""
        arm, n = divmod(row, self._points)
        random = np.random.default_rng([arm, n])
        radius = (n % 200 + 1) / 200
        angle = 4 * radius + 2 * math.pi * arm / ARMS + random.normal(0, self._noise)
        return torch.tensor([radius * math.cos(angle), radius * math.sin(angle)])
