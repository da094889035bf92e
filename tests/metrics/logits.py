"""Logits that tests of the metrics share."""

from __future__ import annotations

import numpy as np


def random_logits(rows: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3, size=(rows, classes)).astype(np.float32)
