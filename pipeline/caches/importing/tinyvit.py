"""TinyViT's saved logits: a folder ``logits_topK_epochE`` per epoch, in it ``rankR-keys.txt`` and ``rankR-values.bin``.

A line of the keys file names an example; at the same number in the values file stands a record of 4 + 4K bytes,
little-endian: the int32 seed of the augmentation, K int16 class ids, K float16 probabilities (a softmax at T = 1, the
largest first). Each process of a distributed run writes in the order in which it met the examples, which is another
one in every epoch; the sampler repeats a few examples, so that two ranks may have seen the same one: the record of the
lowest rank counts. Ids of more than 32,767 classes have wrapped around and are read as unsigned.

Source: github.com/microsoft/Cream at 4a13c40, TinyViT/save_logits.py, data/augmentation/dataset_wrapper.py,
data/augmentation/manager.py and data/sampler.py.

An epoch becomes a view, none of them plain; examples keep the order of the first epoch. Labels are read where they
lie. In memory are 28 bytes for each example, of two epochs at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.caches.importing.kept import Kept
from pipeline.caches.importing.source import Batch, Facts, Ints, Source, hashed, not_text, summed
from pipeline.errors import DataError, some
from pipeline.progress import Progress

EPOCH = re.compile(r"logits_top(\d+)_epoch(\d+)")
RANK = re.compile(r"rank(\d+)-(keys\.txt|values\.bin)")
MOST_CLASSES = 65_536
"""Beyond it several classes have the same 16 bits."""


@dataclass(frozen=True)
class _Epoch:
    """Where the records of one epoch lie, example by example: (N,) each. ``hashes`` are of the keys, in this process.

    ``ranks``: the place in ``folders``' ranks; ``records``: the number in its values file; ``offsets``: of its line.
    """

    path: Path
    names: tuple[int, ...]
    hashes: Ints
    ranks: npt.NDArray[np.int32]
    records: Ints
    offsets: Ints
    repeated: int

    def select(self, rows: Ints) -> _Epoch:
        """The examples ``rows``, in that order."""
        arrays = {name: getattr(self, name)[rows] for name in ("hashes", "ranks", "records", "offsets")}
        return _Epoch(self.path, self.names, **arrays, repeated=self.repeated)

    def keys(self, rows: slice | Ints) -> list[bytes]:
        """The keys of some examples."""
        found: list[bytes] = [b""] * len(self.ranks[rows])
        for number, rank in enumerate(self.names):
            here = np.flatnonzero(self.ranks[rows] == number)
            if not len(here):
                continue
            with open(self.path / f"rank{rank}-keys.txt", "rb") as file:
                for place, offset in zip(here.tolist(), self.offsets[rows][here].tolist(), strict=True):
                    file.seek(offset)
                    found[place] = file.readline().strip()
        return found


class TinyViT(Source):
    """The folder that holds the epochs, or one epoch."""

    format: ClassVar[str] = "tinyvit"

    def __init__(self, folder: Path, *, split: str = "train", views: int = 0) -> None:
        self.split = split
        one = EPOCH.fullmatch(folder.name)
        self.folder = folder.parent if one else folder
        found = [(EPOCH.fullmatch(path.name), path) for path in ([folder] if one else sorted(folder.iterdir()))]
        epochs = sorted((int(m[2]), int(m[1]), path) for m, path in found if m and path.is_dir())
        if not epochs:
            raise DataError(f"{folder} should hold folders logits_topK_epochE, as TinyViT saves them; there is none")
        sizes = {k for _, k, _ in epochs}
        if len(sizes) > 1 or len({e for e, _, _ in epochs}) < len(epochs):
            raise DataError(
                f"{folder} should hold each epoch once, all of the same K; found {[p.name for *_, p in epochs]}"
            )
        (self.k,) = sizes
        epochs = epochs[: views or None]
        self.epochs, self._paths = [epoch for epoch, _, _ in epochs], [path for _, _, path in epochs]
        self._ranks = [_ranks(path) for path in self._paths]
        self.files = [
            path / f"rank{rank}-{kind}"
            for path, ranks in zip(self._paths, self._ranks, strict=True)
            for rank in ranks
            for kind in ("keys.txt", "values.bin")
        ]
        self.record = np.dtype([("seed", "<i4"), ("ids", "<u2", (self.k,)), ("probs", "<f2", (self.k,))])
        self._first: _Epoch | None = None
        self._repeated = 0
        self._in_order = lru_cache(maxsize=1)(self._read_in_order)

    def scan(self, progress: Progress) -> dict[str, Any]:
        """See Source. Every epoch is found to hold the same examples."""
        files = summed(list(hashed(self, progress)))
        self._first = self._index(0)
        self._repeated = self._first.repeated
        with progress.bar("match", len(self._paths), "epoch", 1) as bar:
            for view in range(1, len(self._paths)):
                self._repeated += self._in_order(view).repeated
                bar.update()
        return files

    def facts(self) -> Facts:
        """See Source."""
        first = self._scanned()
        return Facts(
            splits={self.split: (len(first.ranks), len(self.epochs))},
            classes=None,
            precision=np.dtype(np.float16),
            probabilities=True,
            kept=self.k,
            augmented=True,
            seeded=True,
            at_one=True,
            unknown=("what images were mixed with",),
            notes={"epochs": self.epochs, "repeated records left out": self._repeated},
        )

    def _scanned(self) -> _Epoch:
        if self._first is None:
            raise ValueError("a source is scanned before it is read")
        return self._first

    def read(self, split: str, view: int, first: int, count: int, classes: int) -> Batch:
        """See Source."""
        if classes > MOST_CLASSES:
            raise DataError(
                f"TinyViT keeps class ids in 16 bits: of {classes:,} classes several have the same. Such labels cannot "
                "be read"
            )
        rows = slice(first, first + count)
        epoch, plain = (self._in_order(view) if view else self._scanned()), self._scanned()
        keys = plain.keys(rows)
        if view and epoch.keys(rows) != keys:
            raise DataError(f"{epoch.path}: two keys of these files have the same hash. Run it again")
        records = np.empty(count, self.record)
        for number, rank in enumerate(epoch.names):
            here = np.flatnonzero(epoch.ranks[rows] == number)
            if len(here):
                values = np.memmap(epoch.path / f"rank{rank}-values.bin", self.record, "r")
                # Ascending, so that a disk is read in one direction.
                here = here[np.argsort(epoch.records[rows][here])]
                records[here] = values[epoch.records[rows][here]]
        try:
            ids = [key.decode() for key in keys]
        except UnicodeDecodeError as error:
            raise not_text(plain.path, error) from None
        return Batch(
            ids=ids,
            said=Kept(records["ids"].astype(np.int64), np.ascontiguousarray(records["probs"])),
            seeds=records["seed"].astype(np.int64),
            labels=np.full(count, -1, np.int64),
        )

    def _index(self, view: int) -> _Epoch:
        """One epoch in its own order: rank after rank, each example once."""
        path, ranks = self._paths[view], self._ranks[view]
        pieces: list[tuple[Ints, Ints]] = []
        for rank in ranks:
            keys, values = path / f"rank{rank}-keys.txt", path / f"rank{rank}-values.bin"
            hashes, offsets = _lines(keys)
            if values.stat().st_size != len(hashes) * self.record.itemsize:
                raise DataError(
                    f"{values} should hold {len(hashes):,} records of {self.record.itemsize} bytes, as many as "
                    f"{keys.name} has lines; it has {values.stat().st_size:,} bytes. Is the epoch complete?"
                )
            pieces.append((hashes, offsets))
        whole = _Epoch(
            path,
            tuple(ranks),
            np.concatenate([hashes for hashes, _ in pieces]),
            np.repeat(np.arange(len(ranks), dtype=np.int32), [len(h) for h, _ in pieces]),
            np.concatenate([np.arange(len(h), dtype=np.int64) for h, _ in pieces]),
            np.concatenate([offsets for _, offsets in pieces]),
            0,
        )
        _, at, of = np.unique(whole.hashes, return_index=True, return_inverse=True)
        again = np.flatnonzero(at[of] != np.arange(len(of)))
        if len(again):
            originals = at[of[again]]
            if whole.keys(again) != whole.keys(originals):
                raise DataError(f"{path}: two keys of these files have the same hash. Run it again")
            same = again[whole.ranks[again] == whole.ranks[originals]]
            if len(same):
                names = [key.decode(errors="replace") for key in whole.keys(same[:4])]
                raise DataError(
                    f"{path}: {len(same)} keys stand twice in the file of one rank, among them {some(names)}"
                )
        kept = whole.select(np.sort(at))
        return _Epoch(**{**vars(kept), "repeated": len(again)})

    def _read_in_order(self, view: int) -> _Epoch:
        """One epoch in the order of the first. Raises DataError when it holds other examples."""
        first, other = self._scanned(), self._index(view)
        order = np.argsort(other.hashes)
        at = np.searchsorted(other.hashes, first.hashes, sorter=order)
        where = order[np.minimum(at, len(order) - 1)]
        missing = np.flatnonzero(other.hashes[where] != first.hashes)
        if len(missing) or len(order) != len(first.hashes):
            names = [key.decode(errors="replace") for key in first.keys(missing[:4])]
            raise DataError(
                f"{other.path} should hold the {len(first.hashes):,} examples of {first.path.name}; it holds "
                f"{len(order):,}, and lacks {len(missing):,} of them{f', among them {some(names)}' if names else ''}. "
                "Leave that epoch out, or find its missing files"
            )
        return other.select(where)


def _ranks(path: Path) -> list[int]:
    found: dict[int, set[str]] = {}
    for file in path.iterdir():
        if match := RANK.fullmatch(file.name):
            found.setdefault(int(match[1]), set()).add(match[2])
    alone = sorted(rank for rank, kinds in found.items() if len(kinds) < 2)
    if not found or alone:
        what = f"; of rank {alone[0]} only one is there" if alone else ""
        raise DataError(f"{path} should hold rankR-keys.txt and rankR-values.bin for every rank{what}")
    return sorted(found)


def _lines(path: Path) -> tuple[Ints, Ints]:
    """A hash of each line, stripped, good within this process, and where the line begins."""

    def each() -> Iterator[tuple[int, int]]:
        offset = 0
        with open(path, "rb") as file:
            for line in file:
                yield hash(line.strip()), offset
                offset += len(line)

    pairs = np.fromiter(each(), np.dtype((np.int64, 2)))
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
