"""Views that mix an example with another: who its partner is, how much of each is seen, the same whenever it is asked.

Both follow from the seed of the view and the ids of the example's split, and from nothing else: neither the order of
the rows, nor what the earlier steps of the transform draw, nor the batch. A dataset whose split holds other ids gives
other partners and shares for all of its examples, which a replay of recorded views notices.

Mixing comes last. The earlier steps act on both examples, each with draws of its own, as if two views were mixed.
"""

from __future__ import annotations

import bisect
import hashlib
import struct
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pipeline.datasets.base import Dataset
from pipeline.errors import ConfigError
from pipeline.identity import SPLITS
from pipeline.transforms import Mixing


class Draw(NamedTuple):
    """What one mixed view is made of: the partner's ``row``, and what ``Mixing.share`` and ``Mixing.mix`` go by."""

    row: int
    drawn: float
    place: tuple[float, float]


@dataclass(frozen=True)
class Mixed:
    """The transform of a view that ends with a mixing step, after the steps ``before``, if any."""

    step: Mixing
    before: Callable[[Tensor], Tensor] | None = None

    @property
    def torch_only(self) -> bool:
        """Whether nothing draws from other generators than torch's."""
        return self.before is None or getattr(self.before, "torch_only", False)

    def __call__(self, x: Tensor) -> Tensor:
        """Raises ConfigError: without a dataset there is no partner."""
        raise ConfigError(f"{self.step.describe()} mixes an example with another: name the dataset that it is from")

    def draw(self, dataset: Dataset, example_id: str, seed: int) -> Draw:
        """The partner of an example of ``dataset`` in the view of ``seed``, and how the two are mixed."""
        return members_of(dataset).draw(example_id, seed, self.step.alpha)

    def share(self, dataset: Dataset, draw: Draw) -> float:
        """How much of the mixture is the example itself."""
        return self.step.share(draw.drawn, draw.place, dataset.input_shape)

    def within(self, dataset: Dataset, example_id: str, seed: int) -> Callable[[Tensor], Tensor]:
        """The transform of one example of ``dataset`` in the view of ``seed``, its partner given.

        It raises ConfigError when the two cannot be mixed for their shapes.
        """
        row, drawn, place = self.draw(dataset, example_id, seed)

        def transform(x: Tensor) -> Tensor:
            partner = dataset.load(row).clone()  # people's transforms may write into their argument
            if self.before is not None:
                x, partner = self.before(x), self.before(partner)
            shapes = {tuple(x.shape), tuple(partner.shape)}
            # Pixels are counted for the share as the model sees them.
            if len(shapes) > 1 or (len(dataset.input_shape) == 3 and x.shape[-2:] != dataset.input_shape[-2:]):
                raise ConfigError(
                    f"{self.step.name} should be given examples of the size that a model sees, {dataset.input_shape}; "
                    f"found {tuple(x.shape)} for {example_id} and {tuple(partner.shape)} for {dataset.ids[row]}. Put "
                    f"crop:size=... before it"
                )
            return self.step.mix(x, partner, drawn, place)

        return transform


class Members:
    """The examples of each split of a dataset in the order of their ids, and who is drawn from them."""

    def __init__(self, dataset: Dataset) -> None:
        self._ids: list[list[str]] = []
        self._rows: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        self._digests: list[bytes] = []
        for split in SPLITS:
            rows = np.array(sorted(dataset.rows(split).tolist(), key=dataset.ids.__getitem__), dtype=np.int64)
            ids = [dataset.ids[row] for row in rows.tolist()]
            self._rows.append(rows)
            self._ids.append(ids)
            self._digests.append(hashlib.sha256("\0".join(ids).encode()).digest())

    def draw(self, example_id: str, seed: int, alpha: float) -> Draw:
        """Another example of the split, each as likely; of a split of one, that one itself.

        Raises ConfigError for an id that is in no split.
        """
        for ids, rows, digest in zip(self._ids, self._rows, self._digests, strict=True):
            own = bisect.bisect_left(ids, example_id)
            if own == len(ids) or ids[own] != example_id:
                continue
            head = hashlib.sha256(b"mixed\0%d\0" % seed + digest).digest()
            whom, how, down, across = struct.unpack("<4Q", head)
            other = whom * (len(ids) - 1) >> 64
            place = (down / 2**64, across / 2**64)
            row = int(rows[other + (other >= own)]) if len(ids) > 1 else int(rows[own])
            return Draw(row, _beta(how & 0xFFFFFFFF, alpha), place)
        raise ConfigError(f"{example_id} is no example of the dataset whose examples are to be mixed")


_known: weakref.WeakKeyDictionary[Dataset, Members] = weakref.WeakKeyDictionary()
_random = threading.local()


def members_of(dataset: Dataset) -> Members:
    """Those of a dataset, sorted once: a second or two for a million examples."""
    found = _known.get(dataset)
    if found is None:
        found = _known[dataset] = Members(dataset)
    return found


def _beta(seed: int, alpha: float) -> float:
    # Of RandomState, whose streams stay as they are from release to release. Making one takes fifty times as long as
    # seeding it.
    if not hasattr(_random, "state"):
        _random.state = np.random.RandomState(0)
    _random.state.seed(seed)
    return float(_random.state.beta(alpha, alpha))
