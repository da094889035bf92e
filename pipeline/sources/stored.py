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
from pipeline.softlabels import SoftLabels
from pipeline.store import Cache, PartRecord

T = TypeVar("T")


class Stored(Protocol):
    """Named arrays over the positions of a cache, as windows of parts need them."""

    def allocate(self, positions: int) -> dict[str, npt.NDArray[Any]]:
        """Empty arrays that can take ``positions`` positions."""

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

    def batch(self, arrays: Mapping[str, npt.NDArray[Any]], *, pin: bool = False) -> T:
        """Stored arrays as torch tensors on the host, in page-locked memory when ``pin``."""

    def map(self, batch: T, change: Callable[[Tensor], Tensor]) -> T:
        """The same batch with ``change`` applied to every tensor (a device move, a row selection)."""


@dataclass(frozen=True)
class StoredLabels:
    """The labels of a cache."""

    cache: Cache

    def allocate(self, positions: int) -> dict[str, npt.NDArray[Any]]:
        return self.cache.allocate(positions)

    def read_part(self, part: PartRecord, out: Arrays) -> object:
        return self.cache.read_part(part, out)

    def paths(self, number: int) -> Mapping[str, str]:
        return self.cache.label_paths(number)


class LabelContent:
    """Soft labels, decoded."""

    what = "labels"

    def __init__(self, cache: Cache) -> None:
        self.stored = StoredLabels(cache)

    def batch(self, arrays: Mapping[str, npt.NDArray[Any]], *, pin: bool = False) -> SoftLabels:
        return self.stored.cache.decode(arrays).map(lambda array: tensor_of(array, pin))

    def map(self, batch: SoftLabels, change: Callable[[Tensor], Tensor]) -> SoftLabels:
        return batch.map(change)


class FeatureContent:
    """Features by name, float16 as they are stored. Raises ConfigError for names that the cache does not have."""

    what = "features"

    def __init__(self, cache: Cache, names: tuple[str, ...]) -> None:
        self.stored = cache.stored_features(names)

    def batch(self, arrays: Mapping[str, npt.NDArray[Any]], *, pin: bool = False) -> dict[str, Tensor]:
        return {name: tensor_of(array, pin) for name, array in arrays.items()}

    def map(self, batch: dict[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {name: change(tensor) for name, tensor in batch.items()}


def tensor_of(array: npt.NDArray[Any], pin: bool) -> Tensor:
    """The same values as a tensor, which shares the array's memory where it can."""
    # torch indexes with signed integers only.
    signed = array.astype(np.int64) if array.dtype.kind == "u" else array
    made = torch.from_numpy(np.ascontiguousarray(signed))
    return made.pin_memory() if pin else made
