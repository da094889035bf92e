"""The order in which an epoch visits its examples: blocks shuffled, then rows within a window of blocks.

A block is the examples that share a part of the cache, so a window of ``window`` blocks is all that a reader has to
hold, and every row of it is used before the next window is read. The order is a pure function of (seed, epoch):
it does not depend on loader workers, on where a run was resumed, or on where the labels come from, so a cache, a
live teacher and hard labels alone see the same batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError

Rows: TypeAlias = npt.NDArray[np.int64]


def blocks_of(rows: Rows, block_ids: npt.NDArray[Any]) -> tuple[Rows, ...]:
    """Cut ``rows`` (N,) into blocks by ``block_ids`` (N,), keeping the order within each.

    >>> [b.tolist() for b in blocks_of(np.array([5, 6, 7, 8]), np.array([1, 0, 1, 0]))]
    [[6, 8], [5, 7]]
    """
    order = np.argsort(block_ids, kind="stable")
    cuts = np.flatnonzero(np.diff(block_ids[order])) + 1
    return tuple(np.asarray(b, dtype=np.int64) for b in np.split(rows[order], cuts)) if len(rows) else ()


@dataclass(frozen=True)
class Order:
    """Shuffled batches of dataset rows, epoch by epoch.

    - ``blocks``: the dataset rows of each block;
    - ``batch_size``: rows per batch and rank; ``world`` ranks take turns, batch by batch;
    - ``window``: blocks mixed at a time; ``shuffle=False`` visits blocks and rows as they come;
    - ``first_window``: blocks of the very first window of a run, for an early first batch: in epoch 0 windows hold so
      many, then twice as many, and so on up to ``window``. 0: all windows are alike;
    - ``drop_last``: leave out a last batch that is short.
    """

    blocks: Sequence[Rows]
    batch_size: int
    seed: int = 0
    window: int = 8
    shuffle: bool = True
    drop_last: bool = False
    rank: int = 0
    world: int = 1
    first_window: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.window < 1 or not 0 <= self.rank < self.world:
            raise ConfigError(
                f"batch size and window should be at least 1 and rank below world; found batch size "
                f"{self.batch_size}, window {self.window}, rank {self.rank} of {self.world}"
            )
        if not 0 <= self.first_window <= self.window:
            raise ConfigError(
                f"the first window should be 0 (as all others) to {self.window} (the window); found {self.first_window}"
            )

    @property
    def examples(self) -> int:
        """Examples in one epoch, over all ranks."""
        return sum(len(block) for block in self.blocks)

    @property
    def batches(self) -> int:
        """Batches of one epoch on this rank. Ranks may differ by one."""
        return len(range(self.rank, self.all_batches, self.world))

    @property
    def all_batches(self) -> int:
        """Batches of one epoch over all ranks."""
        whole, rest = divmod(self.examples, self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def windows(self, epoch: int) -> Iterator[tuple[Rows, Rows]]:
        """(block numbers, dataset rows in the order of visit) of each window of one epoch, over all ranks."""
        random = np.random.default_rng([self.seed, epoch])
        numbers = random.permutation(len(self.blocks)) if self.shuffle else np.arange(len(self.blocks))
        first, size = 0, (self.first_window if epoch == 0 else 0) or self.window
        while first < len(numbers):
            chosen = numbers[first : first + size]
            first, size = first + size, min(2 * size, self.window)
            rows = np.concatenate([self.blocks[n] for n in chosen])
            yield chosen, random.permutation(rows) if self.shuffle else rows

    def epoch(self, epoch: int, start: int = 0, windows: Iterable[tuple[Rows, Rows]] | None = None) -> Iterator[Rows]:
        """This rank's batches of dataset rows, from its batch number ``start`` on.

        ``windows``: those of this epoch, where somebody has drawn them already.
        """
        rest = np.empty(0, dtype=np.int64)
        number = 0
        first = self.rank + start * self.world
        for _, rows in self.windows(epoch) if windows is None else windows:
            rest = np.concatenate([rest, rows])
            whole = len(rest) // self.batch_size
            for i in range(whole):
                if number >= first and (number - self.rank) % self.world == 0:
                    yield rest[i * self.batch_size : (i + 1) * self.batch_size]
                number += 1
            rest = rest[whole * self.batch_size :]
        if len(rest) and not self.drop_last and number >= first and (number - self.rank) % self.world == 0:
            yield rest
