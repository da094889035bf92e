"""Examples, teachers and students of any size, made on the fly: what the benchmarks run on where digits are too few.

Reached as anybody's own parts are: ``--data benchmarks.synthetic:Points``, ``--teacher benchmarks.synthetic:opinion``.

How the logits are made: each of C classes has a random direction in 64 dimensions. An example is the direction of its
class plus noise of a random strength. The teacher's logit of a class is SHARPNESS times the cosine between the example
and that class's direction, so that classes near each other are confused, some examples are hard, and the tail of a
row is smooth, as in a real classifier. No real teacher has looked at anything here.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline import dump
from pipeline.datasets import Dataset
from pipeline.store import Cache, open_cache

FEATURES = 64
SHARPNESS = 20.0
BLOCK = 1024


class Names(Sequence[str]):
    """Ids that are made when they are asked for, so that memory measured is memory of the pipeline."""

    def __init__(self, rows: int) -> None:
        self._rows = range(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]
        return f"point/{self._rows[row]:08d}"


def directions(classes: int) -> npt.NDArray[np.float32]:
    """The unit direction of each class, (C, 64)."""
    drawn = np.random.default_rng(7).standard_normal((classes, FEATURES), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


class Points(Dataset):
    """``rows`` unit vectors (64,), all of them training examples, made in blocks as they are read."""

    def __init__(self, rows: int, classes: int = 1000) -> None:
        self._directions = directions(classes)
        self._held: tuple[int, Tensor] = (-1, torch.empty(0))
        super().__init__(
            name=f"{rows} synthetic points",
            classes=[f"class {c}" for c in range(classes)],
            ids=Names(rows),
            labels=np.arange(rows) * 7919 % classes,
            splits=np.zeros(rows, dtype=np.int8),
            input_shape=(FEATURES,),
        )

    def load(self, row: int) -> Tensor:
        """(64,) float32, of length 1."""
        block, place = divmod(row, BLOCK)
        if self._held[0] != block:
            self._held = (block, torch.from_numpy(self._make(block)))
        return self._held[1][place]

    def content_digest(self, row: int) -> str:
        """A digest of how the row is made: hashing rows that nobody stores would be measured as the pipeline's work."""
        return hashlib.sha256(f"{self.name}\0{row}".encode()).hexdigest()

    def _make(self, block: int) -> npt.NDArray[np.float32]:
        rows = slice(block * BLOCK, (block + 1) * BLOCK)
        random = np.random.default_rng([11, block])
        own = self._directions[self.labels[rows]]
        noise = random.standard_normal(own.shape, dtype=np.float32) / np.float32(FEATURES**0.5)
        points = own + noise * random.uniform(0.3, 1.8, (len(own), 1)).astype(np.float32)
        return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True))

    def inputs(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """The model inputs (n, 64) of some rows."""
        return torch.stack([self.load(int(row)) for row in rows])


def opinion(classes: int = 1000) -> nn.Module:
    """The teacher of the module's first lines: one linear layer."""
    layer = nn.Linear(FEATURES, classes, bias=False)
    layer.weight.data = torch.from_numpy(SHARPNESS * directions(classes))
    return layer


class _Layer(nn.Module):
    """A residual layer, so that neither activations nor gradients fade into denormal numbers, which are slow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.relu(self.linear(x))


class _Repeated(nn.Module):
    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.layer, self.times = _Layer(width), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.layer(x)
        return x


def network(width: int = 256, depth: int = 1, classes: int = 1000) -> nn.Module:
    """A network whose cost is chosen: ``depth`` residual layers of ``width``. The same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [_Layer(width) for _ in range(depth)]
        return nn.Sequential(nn.Linear(FEATURES, width), *layers, nn.Linear(width, classes))


def repeated(width: int = 256, depth: int = 1, classes: int = 1000) -> nn.Module:
    """One layer, ``depth`` times over: much arithmetic for few weights, as convolutions have."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(FEATURES, width), _Repeated(width, depth), nn.Linear(width, classes))


def depth_for(
    target: float,
    width: int,
    call: Callable[[nn.Module], Callable[[], object]],
    make: Callable[[int, int], nn.Module] = network,
) -> int:
    """The depth at which ``call(make(width, depth))()`` takes about ``target`` seconds on this machine."""

    def taken(depth: int) -> float:
        action = call(make(width, depth))
        times = []
        for _ in range(8):
            began = time.perf_counter()
            action()
            times.append(time.perf_counter() - began)
        return sorted(times[1:])[3]

    shallow, deep = taken(1), taken(9)
    return int(np.clip(round(1 + 8 * (target - shallow) / max(1e-6, deep - shallow)), 1, 200))


def dumped(out: Path, rows: int, *, classes: int = 1000, store: str = "zarr", part_size: int = 0) -> Cache:
    """A float16 cache of ``rows`` synthetic distributions, dumped as anybody would."""
    dump.run(
        dump.DumpConfig(
            data="benchmarks.synthetic:Points",
            data_args=(f"rows={rows},classes={classes}",),
            teacher="benchmarks.synthetic:opinion",
            teacher_args=(f"classes={classes}",),
            out=out,
            dtype="float16",
            store=store,
            part_size=part_size,
            device="cpu",
        )
    )
    return open_cache(out)
