"""What every format yields: labels of a run of examples in one view, in the order of the first view."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.caches.importing.full import Full
from pipeline.caches.importing.kept import Kept
from pipeline.caches.importing.logprobs import TopLogprobs
from pipeline.errors import DataError
from pipeline.identity import digest
from pipeline.progress import Progress
from pipeline.store import FeatureSpec

Ints = npt.NDArray[np.int64]

BLOCK = 4 << 20


@dataclass(frozen=True)
class Batch:
    """N examples of one view: their ids and what was said of them; ``seeds`` and ``labels`` (N,), -1 where unknown.

    ``TopLogprobs`` are of all P positions of the examples, one after another; ``targets`` (P,): the token that the text
    goes on with; ``digests``: N hex sha256 of the examples' content.
    """

    ids: Sequence[str]
    said: Full | Kept | TopLogprobs
    seeds: Ints
    labels: Ints
    features: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    targets: Ints | None = None
    digests: Sequence[str] | None = None


@dataclass(frozen=True)
class Facts:
    """What a source says of itself before its labels are read.

    - ``splits``: name -> (examples, views); ``classes``: C, None when it does not say;
    - ``kept``: K where it has the K largest only, None where it has all C; ``precision``: of its numbers;
    - ``probabilities``: whether it has probabilities, and not logits;
    - ``augmented``: whether its images are; ``seeded``: whether it has seeds; ``at_one``: probabilities at T = 1;
    - ``unknown``: what it cannot say, beyond teacher, data and views; ``notes``: facts for the lineage;
    - ``features``: name -> what it is and how it is kept;
    - of token sequences, which are plain and known by their tokens: ``lengths``: the positions of each example of each
      split; ``content``: digest of the data; ``preprocessing``: in words, where a packing contract says it.
    """

    splits: Mapping[str, tuple[int, int]]
    classes: int | None
    precision: np.dtype[Any]
    probabilities: bool
    kept: int | None = None
    class_names: tuple[str, ...] = ()
    augmented: bool = False
    seeded: bool = False
    at_one: bool = False
    unknown: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, tuple[str, FeatureSpec]] = field(default_factory=dict)
    lengths: Mapping[str, Ints] | None = None
    content: str | None = None
    preprocessing: str | None = None


class Source(ABC):
    """A set of published files. Making one looks at names and sizes, ``scan`` at all bytes, ``read`` at some."""

    format: ClassVar[str]
    folder: Path
    files: Sequence[Path]

    @abstractmethod
    def scan(self, progress: Progress) -> dict[str, Any]:
        """Read every file once: their number, bytes, and the digest over all of them.

        Raises DataError for what is not of this format.
        """

    @abstractmethod
    def facts(self) -> Facts:
        """What it says of itself, once it is scanned."""

    @abstractmethod
    def read(self, split: str, view: int, first: int, count: int, classes: int) -> Batch:
        """Labels of ``count`` examples of a split from ``first`` on. Raises DataError, naming the place."""

    def close(self) -> None:  # noqa: B027  # most hold nothing
        """Let go of files."""


def hashed(source: Source, progress: Progress) -> Iterator[tuple[str, int, str]]:
    """The relative path, bytes and sha256 of each file of a source."""
    sizes = [path.stat().st_size for path in source.files]
    with progress.bar("read", sum(sizes), "B") as bar:
        for path, size in zip(source.files, sizes, strict=True):
            total = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(BLOCK):
                    total.update(block)
                    bar.update(len(block))
            yield path.relative_to(source.folder).as_posix(), size, total.hexdigest()


def summed(files: Sequence[tuple[str, int, str]]) -> dict[str, Any]:
    """What the lineage says of files: their number, bytes, and sha256 over their sorted paths and digests."""
    listed = sorted((path, sha256) for path, _, sha256 in files)
    return {"number": len(files), "bytes": sum(size for _, size, _ in files), "sha256": digest(listed)}


def not_text(path: Path, error: UnicodeDecodeError) -> DataError:
    """The error for ids that are no UTF-8."""
    return DataError(f"{path} should hold ids in UTF-8: {error}")
