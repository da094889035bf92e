"""What a dataset is: examples with stable ids, splits fixed by id, and a digest of what it holds.

The path of one example is ``load`` (decode) -> a view -> ``prepare`` (the declared preprocessing) -> model input.
Everything that identity needs is here too: ids in order, splits, the digest of each example's stored bytes.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline import identity
from pipeline.errors import ConfigError, DataError, some
from pipeline.identity import SPLITS
from pipeline.progress import Progress, Silent

FRACTIONS = (2 / 3, 1 / 6, 1 / 6)
"""Of train, validation and test, where a source has no splits of its own."""

# No line breaks; and a file name that is no UTF-8 reaches Python with surrogates, which cannot be written down.
_UNWRITABLE = re.compile("[\0\n\r\ud800-\udfff]")

_ALIASES = {"train": 0, "training": 0, "validation": 1, "val": 1, "valid": 1, "test": 2, "testing": 2}


def split_of(example_id: str, fractions: Sequence[float] = FRACTIONS) -> int:
    """The split of an example, as an index into SPLITS: a pure function of its id.

    A dataset that grows or is reordered keeps every example where it was.

    >>> split_of("digits/00042") == split_of("digits/00042")
    True
    """
    head = hashlib.sha256(f"split\0{example_id}".encode("utf-8", "surrogatepass")).digest()
    point = int.from_bytes(head[:8], "little") / 2**64 * sum(fractions)
    for split, fraction in enumerate(fractions[:-1]):
        if point < fraction:
            return split
        point -= fraction
    return len(fractions) - 1


def split_index(name: str) -> int | None:
    """The index of a split by any of its usual names, None for an unknown one.

    >>> [split_index(n) for n in ("train", "val", "dev")]
    [0, 1, None]
    """
    return _ALIASES.get(name.lower())


def cut_validation(ids: Sequence[str], splits: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Splits (N,) with a sixth of train, by id, as validation, when a source has train but no validation."""
    if (splits == 1).any() or not (splits == 0).any():
        return splits
    share = (1 - FRACTIONS[1], FRACTIONS[1])
    return np.array([split_of(i, share) if s == 0 else s for i, s in zip(ids, splits, strict=True)], np.int8)


class Dataset(ABC):
    """Base of every source; a dataset of one's own gives ``load`` and calls ``__init__``.

    - ``ids``: N stable, distinct names; ``labels`` (N,) int64, -1 where there is none;
    - ``splits`` (N,) int8, an index into SPLITS; by default ``split_of`` each id;
    - ``classes``: class names in the order of the logits; ``input_shape``: of what ``prepare`` returns, unbatched;
    - ``preprocessing``: what ``load`` and ``prepare`` do to the stored bytes, in words. It is part of a cache's
      identity: change the words when the arithmetic changes;
    - ``discrete``: inputs are token ids (int64, below the number of classes) instead of float32 values.
    """

    discrete: bool = False

    def __init__(
        self,
        *,
        name: str,
        classes: Sequence[str],
        ids: Sequence[str],
        input_shape: Sequence[int],
        labels: npt.ArrayLike | None = None,
        splits: npt.NDArray[Any] | None = None,
        preprocessing: str = "none",
    ) -> None:
        self.name = name
        self.classes = tuple(str(c) for c in classes)
        self.ids: Sequence[str] = ids
        self.input_shape = tuple(int(n) for n in input_shape)
        self.preprocessing = preprocessing
        given = np.full(len(ids), -1) if labels is None else np.asarray(labels)
        if given.dtype.kind not in "iu" and given.size:
            raise DataError(f"{name}: labels should be integers, found {given.dtype}")
        self.labels: npt.NDArray[np.int64] = given.astype(np.int64)
        if splits is None:
            splits = np.fromiter((split_of(i) for i in ids), np.int8, len(ids))
        self.splits: npt.NDArray[np.int8] = np.asarray(splits, np.int8)
        self._digest: str | None = None
        self._contents: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Positions (N,) at which a distribution is scored, of each example: one, but for token sequences."""
        return np.ones(len(self), np.int64)

    def targets(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The class to predict at each position, (n, T) of n rows, -1 where there is none: by default the labels."""
        return np.asarray(self.labels, np.int64)[rows][:, None]

    @abstractmethod
    def load(self, row: int) -> Tensor:
        """The decoded example, which views act on: float32, images as (C, H, W) in [0, 1]; token ids as int64 (T,)."""

    def prepare(self, x: Tensor) -> Tensor:
        """The declared preprocessing: a float32 model input of ``input_shape`` from a decoded or viewed example."""
        return x.to(torch.float32)

    def read(self, row: int) -> bytes:
        """The bytes as stored, before decoding. By default those of the decoded tensor, with its type and shape."""
        return tensor_bytes(self.load(row))

    def content_digest(self, row: int) -> str:
        """sha256 of ``read(row)``, in hex."""
        return identity.digest_bytes(self.read(row))

    def digest(self, progress: Progress | None = None) -> str:
        """The dataset's identity: sha256 over (id, split, content digest) in order. Computed once."""
        if self._digest is None:
            contents = np.empty((len(self), 32), np.uint8)
            with (progress or Silent()).bar("digest of the data", len(self), "example") as bar:
                self._digest = identity.digest_dataset(self._entries(contents, bar.update))
            self._contents = contents
        return self._digest

    def _entries(self, contents: npt.NDArray[np.uint8], update: Any) -> Iterable[tuple[str, str, str]]:
        for row, (example_id, split) in enumerate(zip(self.ids, self.splits.tolist(), strict=True)):
            content = self.content_digest(row)
            contents[row] = np.frombuffer(bytes.fromhex(content), np.uint8)
            yield example_id, SPLITS[split], content
            update(1)

    def known_digest(self, row: int) -> str:
        """``content_digest``, from memory once ``digest`` has read all: nothing is read twice, and in any thread."""
        return self.content_digest(row) if self._contents is None else self._contents[row].tobytes().hex()

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """The rows of one split, in order. Raises ConfigError on a name that is no split."""
        if split not in SPLITS:
            raise ConfigError(f"a split is one of {', '.join(SPLITS)}; found {split!r}")
        return np.flatnonzero(self.splits == SPLITS.index(split)).astype(np.int64)


def tensor_bytes(x: Tensor) -> bytes:
    """A tensor's dtype, shape and bytes, as one string of bytes."""
    array = np.ascontiguousarray(x.detach().cpu().numpy())
    return f"{array.dtype.str}{array.shape}\n".encode() + array.tobytes()


def check_dataset(dataset: Dataset) -> None:
    """Find the usual mistakes before any work is done.

    Raises DataError: empty, duplicate ids, labels out of range, lengths that differ, an example that does not load to
    the declared shape, or that loads differently the second time.
    """
    name, n, classes = dataset.name, len(dataset.ids), len(dataset.classes)
    if n == 0:
        raise DataError(f"{name} is empty: it should hold at least one example")
    if len(dataset.labels) != n or len(dataset.splits) != n:
        raise DataError(
            f"{name} should have one label and one split per id; found {n} ids, {len(dataset.labels)} labels, "
            f"{len(dataset.splits)} splits"
        )
    if classes == 0 or len(set(dataset.classes)) != classes:
        raise DataError(f"{name} should name each class once; found {some(dataset.classes) or 'no class'}")
    check_ids(name, dataset.ids)
    wrong = np.flatnonzero((dataset.labels < -1) | (dataset.labels >= classes))
    if len(wrong):
        raise DataError(
            f"{name}: labels should be 0 to {classes - 1}, or -1 for none; {len(wrong)} of {n} are not, among them "
            + some([f"{dataset.ids[r]} ({dataset.labels[r]})" for r in wrong[:3]])
        )
    if ((dataset.splits < 0) | (dataset.splits >= len(SPLITS))).any():
        raise DataError(f"{name}: splits should be 0, 1 or 2 ({', '.join(SPLITS)})")
    for row in sorted({0, n - 1}):
        _check_example(dataset, row)


def check_ids(name: str, ids: Sequence[str]) -> None:
    """Raise DataError unless each id is a non-empty text of one line, and occurs once."""
    counts: dict[str, int] = {}
    for example_id in ids:
        if not isinstance(example_id, str) or not example_id or _UNWRITABLE.search(example_id):
            raise DataError(f"{name}: an id should be a non-empty text of one line; found {example_id!r}")
        counts[example_id] = counts.get(example_id, 0) + 1
    twice = [i for i, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"{name}: each id should occur once; {len(twice)} occur more often, among them {some(twice)}")


def _check_example(dataset: Dataset, row: int) -> None:
    example_id = dataset.ids[row]
    first = dataset.load(row)
    if not isinstance(first, Tensor):
        raise DataError(f"{dataset.name}: {example_id} should load as a tensor, found {type(first).__name__}")
    first = first.clone()
    again = dataset.load(row)
    if first.shape != again.shape or not torch.equal(torch.nan_to_num(first), torch.nan_to_num(again)):
        raise DataError(
            f"{dataset.name}: {example_id} loaded differently the second time. Take random transforms out of the "
            f"dataset and name them as views, which are replayed"
        )
    x = dataset.prepare(again.clone())
    wanted = torch.int64 if dataset.discrete else torch.float32
    if tuple(x.shape) != dataset.input_shape or x.dtype != wanted:
        raise DataError(
            f"{dataset.name}: {example_id} should be prepared as {_dtype_name(wanted)} of shape {dataset.input_shape}; "
            f"found {_dtype_name(x.dtype)} of shape {tuple(x.shape)}"
        )
    if dataset.discrete and bool(((x < 0) | (x >= len(dataset.classes))).any()):
        raise DataError(f"{dataset.name}: {example_id} should hold token ids from 0 to {len(dataset.classes) - 1}")
    if not bool(torch.isfinite(x).all()):
        raise DataError(f"{dataset.name}: {example_id} holds NaN or infinite values")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
