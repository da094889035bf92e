"""A view transform of one's own: ``--transform my_views:jitter``, or ``my_views:Jitter:amount=0.1``.

It may draw from torch, from NumPy's global functions and from ``random``; each view is seeded, so that it can be
replayed. A generator of its own (``np.random.default_rng()``) could not be, and is refused.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor


def jitter(x: Tensor) -> Tensor:
    """A point moved a little and, now and then, pulled towards the centre."""
    moved = x + 0.02 * torch.randn(x.shape)
    return moved * float(np.random.uniform(0.9, 1.0)) if random.random() < 0.5 else moved


class Jitter:
    """The same with a parameter, made once and then called."""

    def __init__(self, amount: float = 0.02) -> None:
        self.amount = amount

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.amount * torch.randn(x.shape)
