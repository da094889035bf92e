"""What is streamed out of a cache: how its parts are read, and what the arrays of a batch become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encodings import Arrays
from pipeline.softlabels import Sampled, SoftLabels
from pipeline.store import Cache, PartRecord

T = TypeVar("T")


class Stored(Protocol):
    """Named arrays over the positions of a cache, as windows of parts need them."""

    @property
    def kept(self) -> frozenset[str]:
        """Names of those that have a row for each kept class instead."""

    def allocate(self, positions: int, kept: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Empty arrays that can take ``positions`` positions, which keep ``kept`` classes in all."""

    def read_part(self, part: PartRecord, out: Arrays) -> object:
        """Read the arrays of a part into ``out``."""

    def paths(self, number: int) -> Mapping[str, str]:
        """Array name -> path of the file that holds part ``number`` of it."""


class Content(Protocol[T]):
    """What is streamed, under the name ``what``: ``stored`` arrays that become batches of ``T``."""

    @property
    def what(self) -> str: ...

    @property
    def stored(self) -> Stored: ...

    @property
    def position_bytes(self) -> float:
        """Bytes of the tensors of one position, in the mean."""

    def batch(self, arrays: Mapping[str, npt.NDArray[Any]], *, pin: bool = False) -> T:
        """Stored arrays as torch tensors on the host, in page-locked memory when ``pin``."""

    def map(self, batch: T, change: Callable[[Tensor], Tensor]) -> T:
        """The same batch with ``change`` applied to every tensor (a device move)."""

    def select(self, batch: T, positions: Tensor) -> T:
        """Some positions (P,) of a batch, on the device where it is."""


@dataclass(frozen=True)
class StoredLabels:
    """The labels of a cache."""

    cache: Cache

    @property
    def kept(self) -> frozenset[str]:
        return self.cache.stored_labels().kept

    def allocate(self, positions: int, kept: int = 0) -> dict[str, npt.NDArray[Any]]:
        return self.cache.allocate(positions, kept)

    def read_part(self, part: PartRecord, out: Arrays) -> object:
        return self.cache.read_part(part, out)

    def paths(self, number: int) -> Mapping[str, str]:
        return self.cache.label_paths(number)


class LabelContent:
    """Soft labels, decoded."""

    what = "labels"

    def __init__(self, cache: Cache) -> None:
        self.stored = StoredLabels(cache)

    @property
    def position_bytes(self) -> float:
        cache = self.stored.cache
        if not self.stored.kept:
            return _weigh(self.batch(_blank(self.stored)).map)
        # Some position, as if it kept the mean number of classes.
        some = cache.encoding.encode(np.zeros((1, cache.classes), np.float32), np.zeros(1, np.uint64))
        kept = sum(part.kept for part in cache.parts) / max(1, sum(part.positions for part in cache.parts))
        return _weigh(self.batch(some).map) * kept / len(some[min(self.stored.kept)])

    def batch(self, arrays: Mapping[str, npt.NDArray[Any]], *, pin: bool = False) -> SoftLabels:
        return self.stored.cache.decode(arrays).map(lambda array: tensor_of(array, pin))

    def map(self, batch: SoftLabels, change: Callable[[Tensor], Tensor]) -> SoftLabels:
        return batch.map(change)

    def select(self, batch: SoftLabels, positions: Tensor) -> SoftLabels:
        if isinstance(batch, Sampled):
            return batch.select(positions)
        return batch.map(lambda tensor: tensor.index_select(0, positions))


class FeatureContent:
    """Features by name, float16 as they are stored. Raises ConfigError for names that the cache does not have."""

    what = "features"

    def __init__(self, cache: Cache, names: tuple[str, ...]) -> None:
        self.stored = cache.stored_features(names)

    @property
    def position_bytes(self) -> float:
        return float(sum(rows.nbytes for rows in _blank(self.stored).values()))

    def batch(self, arrays: Mapping[str, npt.NDArray[Any]], *, pin: bool = False) -> dict[str, Tensor]:
        return {name: tensor_of(array, pin) for name, array in arrays.items()}

    def map(self, batch: dict[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {name: change(tensor) for name, tensor in batch.items()}

    def select(self, batch: dict[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
        return self.map(batch, lambda tensor: tensor.index_select(0, positions))


def _blank(stored: Stored) -> dict[str, npt.NDArray[Any]]:
    return {name: np.zeros_like(rows) for name, rows in stored.allocate(1).items()}


def _weigh(each: Callable[[Callable[[Tensor], Tensor]], object]) -> int:
    """Bytes of all tensors that ``each`` gives to a function."""
    sizes: list[int] = []

    def weigh(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    each(weigh)
    return sum(sizes)


def tensor_of(array: npt.NDArray[Any], pin: bool) -> Tensor:
    """The same values as a tensor, which shares the array's memory where it can."""
    # torch indexes with signed integers only.
    signed = array.astype(np.int64) if array.dtype.kind == "u" else array
    made = torch.from_numpy(np.ascontiguousarray(signed))
    return made.pin_memory() if pin else made
