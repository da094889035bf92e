"""The 1,797 handwritten digits, 8 x 8, that scikit-learn ships: real images, no download; larger if asked for.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
(the test part). The file is read as it lies in the installed package; importing scikit-learn would cost a second in
every stage.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.datasets.base import Dataset
from pipeline.errors import ConfigError, DataError, MissingDependencyError

SIDE = 8
LARGEST = 1024


def digits_path() -> Path:
    """Where scikit-learn keeps the digits. Raises MissingDependencyError when it is not installed."""
    found = importlib.util.find_spec("sklearn")  # finds the package without importing it
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn", name="sklearn"
        )
    return Path(next(iter(found.submodule_search_locations))) / "datasets" / "data" / "digits.csv.gz"


class Digits(Dataset):
    """1,797 grey images as float32 (1, size, size) in [0, 1], ten classes, splits by id."""

    def __init__(self, size: int = SIDE) -> None:
        """``size``: the side in pixels; above 8, images are resized where they are loaded. Raises ConfigError."""
        if not isinstance(size, int) or isinstance(size, bool) or not SIDE <= size <= LARGEST:
            raise ConfigError(f"--data digits: size should be a side of {SIDE} to {LARGEST} pixels; found {size!r}")
        path = digits_path()
        try:
            with gzip.open(path) as file:
                table = np.array(file.read().replace(b"\n", b",").rstrip(b",").split(b","), dtype=np.uint8)
            table = table.reshape(-1, SIDE * SIDE + 1)
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"{path} should hold the digits of scikit-learn and cannot be read: {error}") from error
        super().__init__(
            name="digits",
            classes=[str(n) for n in range(10)],
            ids=[f"digits/{row:05d}" for row in range(len(table))],
            labels=table[:, -1],
            input_shape=(1, size, size),
            preprocessing="values 0 to 16 divided by 16"
            + (f", resized to {size} x {size} (bilinear)" if size != SIDE else ""),
        )
        self._stored = np.ascontiguousarray(table[:, :-1])
        self._images = torch.from_numpy(self._stored.astype(np.float32) / 16).reshape(-1, 1, SIDE, SIDE)

    def load(self, row: int) -> Tensor:
        """(1, size, size) float32 in [0, 1]."""
        x, sides = self._images[row], self.input_shape[1:]
        return x if sides == x.shape[1:] else F.interpolate(x[None], sides, mode="bilinear")[0]

    def prepare(self, x: Tensor) -> Tensor:
        """Nothing more to do."""
        return x

    def read(self, row: int) -> bytes:
        """The 64 values as the file has them, one byte each."""
        return bytes(self._stored[row])
