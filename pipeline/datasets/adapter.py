"""Any map-style dataset of torch as a Dataset: what it needs, and what is taken for granted.

Needed: ``len()``, ``[row]`` giving ``x`` or ``(x, label)``, and ``classes``, the class names in order. ``x`` is a
tensor, a NumPy array or a Pillow image, always of one shape. Optional attributes: ``ids`` (by default the row number,
so rows must keep their place), ``labels`` or ``targets`` (by default every item is read once to collect them),
``splits`` (names, or numbers as in SPLITS) and ``preprocessing``, a text. Content digests cover the values of ``x``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.datasets.base import Dataset, split_index
from pipeline.datasets.pictures import Pictures
from pipeline.errors import DataError
from pipeline.identity import SPLITS


class MapStyle(Dataset):
    """A map-style dataset of one's own, or of torchvision. uint8 values are divided by 255, others kept."""

    def __init__(
        self,
        source: Any,
        name: str,
        *,
        classes: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        splits: npt.NDArray[np.int8] | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        """``pictures`` decides how Pillow images become tensors; without it they keep their size."""
        for need in ("__len__", "__getitem__"):
            if not hasattr(source, need):
                raise DataError(f"{name} should be a Dataset or a map-style dataset; it has no {need}")
        self._source = source
        self._pictures = pictures
        classes = classes if classes is not None else getattr(source, "classes", None)
        if classes is None:
            raise DataError(f"{name} should have an attribute 'classes': the class names, in the order of the logits")
        size = len(source)
        if size == 0:
            raise DataError(f"{name} is empty: it should hold at least one example")
        if ids is None:
            ids = [str(i) for i in getattr(source, "ids", range(size))]
        first = self._tensor(_x(source[0]), name)
        super().__init__(
            name=name,
            classes=list(classes),
            ids=ids,
            labels=_labels(source, size, name),
            splits=_splits(getattr(source, "splits", None), name) if splits is None else splits,
            input_shape=pictures.shape if pictures else first.shape,
            preprocessing=pictures.text if pictures else getattr(source, "preprocessing", "as the dataset gives them"),
        )

    def load(self, row: int) -> Tensor:
        """The item as float32."""
        return self._tensor(_x(self._source[row]), self.ids[row])

    def prepare(self, x: Tensor) -> Tensor:
        """Centre crop and normalisation of pictures; otherwise nothing."""
        return self._pictures.prepare(x) if self._pictures else x.to(torch.float32)

    def _tensor(self, x: Any, where: str) -> Tensor:
        if hasattr(x, "convert") and hasattr(x, "mode"):  # a Pillow image, known without importing Pillow
            if self._pictures:
                return self._pictures.tensor(x)
            x = np.atleast_3d(np.asarray(x)).transpose(2, 0, 1)
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(np.ascontiguousarray(x))
        if not isinstance(x, Tensor):
            raise DataError(f"{where} should be a tensor, a NumPy array or a Pillow image; found {type(x).__name__}")
        return x.to(torch.float32) / 255 if x.dtype == torch.uint8 else x.to(torch.float32)


def _x(item: Any) -> Any:
    return item[0] if isinstance(item, (tuple, list)) else item


def _labels(source: Any, size: int, name: str) -> npt.NDArray[Any]:
    for attribute in ("labels", "targets"):
        if getattr(source, attribute, None) is not None:
            return np.asarray(getattr(source, attribute))
    items = (source[row] for row in range(size))
    found = [item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else -1 for item in items]
    try:
        return np.array([int(label) for label in found], np.int64)
    except (TypeError, ValueError):
        raise DataError(f"{name}: labels should be integers, found {found[0]!r}") from None


def _splits(given: Any, name: str) -> npt.NDArray[np.int8] | None:
    if given is None:
        return None
    indices = [split_index(item) if isinstance(item, str) else int(item) for item in given]
    if None in indices:
        raise DataError(f"{name}: splits should be among {', '.join(SPLITS)}")
    return np.array(indices, np.int8)
