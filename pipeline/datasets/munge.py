"""``munge:BASE``: synthetic examples without labels, for a teacher to label, made from those of another dataset.

MUNGE (Bucila, Caruana and Niculescu-Mizil 2006, algorithm 1): a copy of the training examples is visited one by one.
Each swaps attributes with its nearest other example, each attribute a with probability p: it becomes a draw from a
normal distribution about the other's value, and the other's a draw about its own, of the standard deviation
``|difference| / s``. As many copies are made as ``size`` asks for; of the last one, examples are drawn.

Every attribute is continuous. Distances are euclidean, of attributes scaled to [0, 1] by their range, unless all are
within [0, 1] already, as pixels are. Departures from the paper: neighbours are those of the training examples as they
were, found once, while the paper looks for them among those that other visits have changed; and values that leave an
attribute's range in the training split are set to its end, so that pixels stay pixels.

It takes memory for the base's training examples in float64 and the synthetic ones in float32. Neighbours take
2 N^2 D operations, chunk by chunk, about 11 s for 20,000 examples of 64 attributes on one core and a few minutes for
50,000 of 784; a synthetic example takes 0.03 ms at 64 attributes and 0.2 ms at 784. It is done whenever the dataset is
opened: for more, write the examples to an ``arrays:`` file once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.datasets.base import Dataset, tensor_bytes
from pipeline.errors import ConfigError, DataError
from pipeline.identity import SPLITS

Floats = npt.NDArray[np.float64]
NEIGHBOUR_BYTES = 1 << 26
"""Of the distances that are held at a time."""


class Munged(Dataset):
    """``size`` synthetic training examples, the validation and test splits of ``base``, and with ``union`` its
    training examples too, with their labels.

    Everything follows from ``seed``, the arguments and the base's training examples by id, not from their order.
    Synthetic ids are ``munge-000000`` and so on. Raises ConfigError for arguments out of range, DataError when the
    examples are fewer than two or have several shapes.
    """

    def __init__(
        self, base: Dataset, *, size: int = 5000, p: float = 0.5, s: float = 1.0, seed: int = 0, union: bool = False
    ) -> None:
        """``p``: probability that an attribute is swapped; ``s``: the larger, the closer to the other's value."""
        name = f"munge:{base.name}"
        _check_arguments(name, size, p, s, seed, union)
        if base.discrete:
            raise DataError(f"{name} needs examples made of values, to swap and move; {base.name} holds tokens")
        rows = np.array(sorted(base.rows("train").tolist(), key=base.ids.__getitem__), np.int64)
        examples = _stacked(base, rows, name)
        made = munged(examples.reshape(len(rows), -1), size, p=p, s=s, seed=seed)
        self.base = base
        self._made = torch.from_numpy(made.reshape(size, *examples.shape[1:]))
        # Dataset rows of the base that come after the synthetic ones, in its order.
        kept = np.arange(len(base)) if union else np.flatnonzero(base.splits != SPLITS.index("train"))
        self._kept = kept.astype(np.int64)
        super().__init__(
            name=name,
            classes=base.classes,
            ids=[*(f"munge-{number:06d}" for number in range(size)), *(base.ids[row] for row in kept.tolist())],
            labels=np.concatenate([np.full(size, -1), base.labels[kept]]),
            splits=np.concatenate([np.zeros(size, np.int8), base.splits[kept]]),
            input_shape=base.input_shape,
            preprocessing=base.preprocessing,
        )

    def load(self, row: int) -> Tensor:
        """A synthetic example, float32, of the shape of the base's; or one of the base."""
        return self._made[row] if row < len(self._made) else self.base.load(self._row(row))

    def prepare(self, x: Tensor) -> Tensor:
        """As the base does."""
        return self.base.prepare(x)

    def read(self, row: int) -> bytes:
        """The values of a synthetic example; the bytes of the base's as they are stored."""
        return tensor_bytes(self._made[row]) if row < len(self._made) else self.base.read(self._row(row))

    def content_digest(self, row: int) -> str:
        """sha256 of ``read``, in hex; that of the base for one of its examples."""
        return super().content_digest(row) if row < len(self._made) else self.base.content_digest(self._row(row))

    def _row(self, row: int) -> int:
        return int(self._kept[row - len(self._made)])


def munged(x_ND: Floats, size: int, *, p: float, s: float, seed: int) -> npt.NDArray[np.float32]:
    """``size`` synthetic examples (size, D) float32 from N (N, D), at least two; the same for the same seed."""
    random = np.random.RandomState(seed)  # its streams stay as they are from release to release
    neighbours = nearest(scaled(x_ND))
    low, high = x_ND.min(axis=0), x_ND.max(axis=0)
    made: list[npt.NDArray[np.float32]] = []
    for left in range(size, 0, -len(x_ND)):
        copy = x_ND.copy()
        for one, two in enumerate(neighbours.tolist()):
            _swap(copy, one, two, p, s, random)
        chosen = np.sort(random.permutation(len(copy))[:left]) if left < len(copy) else slice(None)
        made.append(np.clip(copy, low, high)[chosen].astype(np.float32))
    return np.concatenate(made)


def _swap(x_ND: Floats, one: int, two: int, p: float, s: float, random: np.random.RandomState) -> None:
    swapped = np.flatnonzero(random.random_sample(x_ND.shape[1]) < p)
    a, b = x_ND[one, swapped], x_ND[two, swapped]
    spread = np.abs(a - b) / s
    noise = random.standard_normal((2, len(swapped)))
    x_ND[one, swapped] = b + spread * noise[0]
    x_ND[two, swapped] = a + spread * noise[1]


def scaled(x_ND: Floats) -> Floats:
    """Attributes scaled to [0, 1] by their range, those without one to 0; all as they are when all lie there."""
    low, high = x_ND.min(axis=0), x_ND.max(axis=0)
    if low.min() >= 0 and high.max() <= 1:
        return x_ND
    return np.asarray((x_ND - low) / np.where(high > low, high - low, 1))


def nearest(x_ND: Floats) -> npt.NDArray[np.int64]:
    """(N,): the nearest other row of each, the first of several as near. Several rows at a time."""
    n = len(x_ND)
    squares = np.einsum("nd,nd->n", x_ND, x_ND)
    found = np.empty(n, np.int64)
    step = max(1, NEIGHBOUR_BYTES // (8 * n))
    for first in range(0, n, step):
        rows = np.arange(first, min(first + step, n))
        distances = squares - 2 * (x_ND[rows] @ x_ND.T)  # but for the row's own square, the same for all
        distances[np.arange(len(rows)), rows] = np.inf
        found[rows] = distances.argmin(axis=1)
    return found


def _stacked(base: Dataset, rows: npt.NDArray[np.int64], name: str) -> Floats:
    """The base's examples (N, ...) as they are loaded."""
    if len(rows) < 2:
        raise DataError(
            f"{name} needs two training examples or more, to swap values between; {base.name} has {len(rows)}"
        )
    first = base.load(int(rows[0]))
    examples = np.empty((len(rows), *first.shape))
    for place, row in enumerate(rows.tolist()):
        x = base.load(row)
        if x.shape != first.shape:
            raise DataError(
                f"{name} needs training examples of one shape; found {tuple(first.shape)} for {base.ids[int(rows[0])]} "
                f"and {tuple(x.shape)} for {base.ids[row]}. Store them at one size"
            )
        examples[place] = x.numpy()
    return examples


def _check_arguments(name: str, size: Any, p: Any, s: Any, seed: Any, union: Any) -> None:
    whole = [isinstance(value, int) and not isinstance(value, bool) for value in (size, seed)]
    number = [isinstance(value, (int, float)) and not isinstance(value, bool) for value in (p, s)]
    problems = {
        f"size should be a whole number from 1; found {size!r}": whole[0] and size >= 1,
        f"p should be a probability, 0 to 1; found {p!r}": number[0] and 0 <= p <= 1,
        f"s should be a number above 0; found {s!r}": number[1] and s > 0,
        f"seed should be a whole number, 0 to {2**32 - 1}; found {seed!r}": whole[1] and 0 <= seed < 2**32,
        f"union should be true or false; found {union!r}": isinstance(union, bool),
    }
    if found := [f"--data {name}: {text}" for text, fine in problems.items() if not fine]:
        raise ConfigError(found)
