"""``images:folder``: pictures in folders, a class per subfolder, decoded where they are loaded (in loader workers).

The subfolders are classes, in sorted order; or they are ``train``, ``validation`` (or ``val``) and ``test``, with the
classes below. Without a validation folder, a sixth of ``train`` serves, chosen by id; without split folders at all,
every split follows from the ids. An id is the path within the folder, with slashes.

Digests of files are remembered, by size and times of change, under ``$XDG_CACHE_HOME/softlabels/digests`` (by default
``~/.cache``): nothing is ever written into the data folder. Deleting that folder costs one more reading of the data.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline import identity
from pipeline.datasets.base import Dataset, cut_validation, split_index
from pipeline.datasets.pictures import Pictures
from pipeline.errors import DataError
from pipeline.progress import Progress
from pipeline.references import call
from pipeline.workspace import user_cache, write_atomic

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


class Images(Dataset):
    """Pictures as float32 (channels, H, W) in [0, 1]; ``prepare`` crops the centre and normalises."""

    def __init__(self, folder: str, **options: Any) -> None:
        """``options`` are those of ``Pictures.make``: size, resize, mean, std, normalise, channels."""
        self.folder = Path(folder).expanduser().absolute()
        name = f"images:{folder}"
        self.pictures: Pictures = call(Pictures.make, options, name)
        if not self.folder.is_dir():
            raise DataError(f"{name}: there is no folder {self.folder}")
        ids = sorted(_files(self.folder))
        tops = _subfolders(self.folder)
        split_names = {top: split_index(top) for top in tops}
        by_split = bool(tops) and None not in split_names.values()
        depth = 1 if by_split else 0
        placed = [i for i in ids if i.count("/") > depth]
        if not placed:
            layout = "train/CLASS/picture.png" if by_split else "CLASS/picture.png"
            raise DataError(f"{name} is empty: it should hold pictures as {layout} ({', '.join(sorted(SUFFIXES))})")
        of_example = [i.split("/")[depth] for i in placed]
        classes = sorted({c for top in tops for c in _subfolders(self.folder / top)} if by_split else tops)
        number = {c: n for n, c in enumerate(classes)}
        splits = None
        if by_split:
            splits = cut_validation(placed, np.array([split_names[i.split("/")[0]] for i in placed], np.int8))
        super().__init__(
            name=name,
            classes=classes,
            ids=placed,
            labels=[number[c] for c in of_example],
            splits=splits,
            input_shape=self.pictures.shape,
            preprocessing=self.pictures.text,
        )
        self._memo = DigestMemo(self.folder)

    def load(self, row: int) -> Tensor:
        """(channels, H, W) float32 in [0, 1]. Raises DataError naming the file when it is no picture."""
        return self.pictures.decode(self.read(row), str(self.folder / self.ids[row]))

    def prepare(self, x: Tensor) -> Tensor:
        """(channels, size, size) float32."""
        return self.pictures.prepare(x)

    def read(self, row: int) -> bytes:
        """The bytes of the file."""
        path = self.folder / self.ids[row]
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error

    def content_digest(self, row: int) -> str:
        """sha256 of the file's bytes, remembered while its size and times stay as they are."""
        known = self._memo.get(self.ids[row])
        return known or self._memo.put(self.ids[row], identity.digest_bytes(self.read(row)))

    def digest(self, progress: Progress | None = None) -> str:
        """The dataset's identity; the digests of its files are remembered for the next process."""
        found = super().digest(progress)
        self._memo.save()
        return found


class DigestMemo:
    """sha256 of files under one folder, keyed by path, size and times, in the user's cache folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = memo_folder() / f"{identity.digest_bytes(os.fsencode(folder))[:32]}.tsv"
        self._known: dict[str, tuple[str, str]] | None = None
        self._changed = False

    def get(self, name: str) -> str | None:
        """The digest of ``folder/name`` if the file has not changed since it was taken."""
        stamp, found = self._table().get(name, ("", ""))
        return found if stamp and stamp == self._stamp(name) else None

    def put(self, name: str, digest: str) -> str:
        """Remember a digest; a file changed in the last two seconds may change again unseen, so it is not."""
        stamp = self._stamp(name)
        if stamp and "\t" not in name and "\n" not in name and "\r" not in name:
            newest = max(int(part) for part in stamp.split("-")[1:])
            if time.time_ns() - newest > 2_000_000_000:
                self._table()[name] = (stamp, digest)
                self._changed = True
        return digest

    def save(self) -> None:
        """Write the table. A home that cannot be written to is no error: the digests are taken again next time."""
        if self._changed:
            lines = [f"{stamp}\t{digest}\t{name}\n" for name, (stamp, digest) in sorted(self._table().items())]
            with contextlib.suppress(OSError):
                write_atomic(self._path, "".join(lines).encode("utf-8", "surrogateescape"))
                self._changed = False

    def _table(self) -> dict[str, tuple[str, str]]:
        if self._known is None:
            self._known = {}
            with contextlib.suppress(OSError, ValueError):
                for line in self._path.read_text("utf-8", "surrogateescape").split("\n")[:-1]:
                    stamp, digest, name = line.split("\t")
                    if len(digest) == 64:
                        self._known[name] = (stamp, digest)
        return self._known

    def _stamp(self, name: str) -> str:
        try:
            status = os.stat(self._folder / name)
        except OSError:
            return ""
        return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def memo_folder() -> Path:
    """Where digests of files are remembered: ``$XDG_CACHE_HOME/softlabels/digests``, by default in ``~/.cache``."""
    return user_cache("digests")


def _subfolders(folder: Path) -> Sequence[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _circular(here: str, name: str) -> bool:
    path = os.path.join(here, name)
    return os.path.islink(path) and Path(os.path.realpath(here)).is_relative_to(os.path.realpath(path))


def _files(folder: Path) -> Iterator[str]:
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".") and not _circular(here, f)]
        for name in names:
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                yield Path(here, name).relative_to(folder).as_posix()
