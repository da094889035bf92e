"""Checking a cache byte by byte: every digest, every chunk, every row of the index, every decoded value."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Set
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from pipeline.encodings import Encoding
from pipeline.encodings import Sampled as SampledEncoding
from pipeline.errors import CacheCorruptError, CacheError, SoftlabelsError
from pipeline.progress import Progress, Silent
from pipeline.softlabels import Dense, Sampled, SoftLabels
from pipeline.store import index as index_files
from pipeline.store import manifest as manifest_file
from pipeline.store.parts import FileRecord, PartRecord
from pipeline.store.reader import Cache

_BLOCK = 16 * 1024 * 1024  # at a URL, bytes to a request
_DATA = ("labels/", "labels.zarr/", "features.zarr/", "index/")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, with the file it is wrong with."""

    path: str
    message: str


@dataclass(frozen=True)
class VerifyReport:
    """What ``verify`` found. ``unlisted`` are files that nobody committed and no reader looks at.

    ``absent``: files that were not pulled, where that was allowed; nothing is known of them.
    """

    address: str
    digest: str
    files: int
    bytes: int
    entries: int
    problems: tuple[Problem, ...]
    unlisted: tuple[str, ...]
    absent: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the cache is what was committed."""
        return not self.problems

    @property
    def summary(self) -> str:
        """One line."""
        state = "sound" if self.ok else f"{len(self.problems)} problems, the first: {self.problems[0].message}"
        absent = f" as far as it is there: {len(self.absent):,} more files were not pulled" if self.absent else ""
        return f"{self.address}: {self.files:,} files, {self.bytes:,} bytes, {self.entries:,} entries: {state}{absent}"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "ok": self.ok}


def verify(cache: Cache, progress: Progress | None = None, *, partly: bool = False) -> VerifyReport:
    """Read the whole of ``cache`` and hold it to its digests; ``partly`` lets files of parts be absent, as after a pull
    of some of it.

    For each part: sha256 of its files, the checksums of its chunks, its index against the layout, its ids against
    those of the plain view, its soft labels finite and in range. Opening the cache has checked its metadata.
    Problems are collected, not raised; one problem a file.
    """
    progress = progress or Silent()
    problems: list[Problem] = []
    damaged: set[str] = set()
    files = size = 0
    listed = {manifest_file.PATH, *cache.manifest.files}
    absent = {p for part in cache.parts for p in part.files if partly and cache.files.size(p) is None}
    for path, record in cache.manifest.files.items():
        problems += _digest(cache, path, record)
        files, size = files + 1, size + record.size
    with progress.bar("verify", sum(r.positions for r in cache.parts), "position") as bar:
        for part in cache.parts:
            there = {path: record for path, record in part.files.items() if path not in absent}
            found = [p for path, record in there.items() for p in _digest(cache, path, record)]
            damaged.update(problem.path for problem in found)
            # A part whose bytes differ has nothing more to say, and would say it twice.
            problems += found or list(_content(cache, part, damaged, absent))
            listed.update(part.files)
            files, size = files + len(there), size + sum(record.size for record in there.values())
            bar.update(part.positions)
    strangers = [path for path in cache.files.listing() if path not in listed]
    for path in strangers:
        if path.startswith(_DATA):
            problems.append(Problem(path, f"{cache.files.where(path)} belongs to no part. Remove it"))
    return VerifyReport(
        address=cache.address,
        digest=cache.digest,
        files=files + 1,
        bytes=size + (cache.files.size(manifest_file.PATH) or 0),
        entries=cache.manifest.counts["entries"],
        problems=tuple(problems),
        unlisted=tuple(path for path in strangers if not path.startswith(_DATA)),
        absent=tuple(sorted(absent)),
    )


def _digest(cache: Cache, path: str, record: FileRecord) -> list[Problem]:
    """The problem with one file's bytes, if there is one."""
    total = hashlib.sha256()
    try:
        cache.files.check_size(path, record.size)
        with cache.files.open(path) as file:
            while block := file.read(_BLOCK):
                total.update(block)
    except CacheError as error:
        return [Problem(path, str(error))]
    except OSError as error:
        return [Problem(path, str(cache.files.unreadable(path, error)))]
    if total.hexdigest() == record.sha256:
        return []
    return [Problem(path, str(cache.files.corrupt(path, f"its sha256 is not {record.sha256[:12]}...")))]


def _content(cache: Cache, part: PartRecord, damaged: Set[str], absent: Set[str]) -> Iterator[Problem]:
    """What is wrong with a part whose bytes are as committed; some files of parts before it are ``damaged``.

    What would need an ``absent`` file is left out.
    """
    checks: dict[str, Callable[[Cache, PartRecord], str | None]] = {
        index_files.path_of(part.number): partial(_wrong_index, damaged=damaged | absent),
        next(iter(cache.label_paths(part.number).values())): _wrong_labels,
        **{f"features.zarr/{name}": partial(_wrong_feature, name=name) for name in cache.feature_names},
    }
    for path, check in checks.items():
        needed = set(cache.label_paths(part.number).values()) if check is _wrong_labels else {path}
        if any(file in absent for file in part.files if file in needed or file.startswith(f"{path}/")):
            continue
        try:
            wrong = check(cache, part)
        except SoftlabelsError as error:
            yield Problem(path, str(error))
        else:
            if wrong:
                yield Problem(path, f"{cache.files.where(path)}, part {part.number}: {wrong}. Dump again")


def _wrong_index(cache: Cache, part: PartRecord, damaged: Set[str]) -> str | None:
    rows = cache.index(part)
    if len(set(rows.example_ids)) != len(rows):
        return "it has the same example id twice"
    plain = cache.parts_of(part.split, 0)[part.first // cache.part_size]
    # A damaged index has been named already: that nothing can be compared with it is no fault of this one.
    if part.view == 0 or index_files.path_of(plain.number) in damaged:
        return None
    there = cache.index(plain)
    if rows.example_ids != there.example_ids:
        return "it has other example ids than the plain view of the same examples"
    if not np.array_equal(index_files.lengths_of(part, rows), index_files.lengths_of(plain, there)):
        return "its entries have other numbers of positions than those of the plain view"
    return None


def _wrong_labels(cache: Cache, part: PartRecord) -> str | None:
    soft = cache.decode(cache.read_part(part))
    return wrong_values(soft) or wrong_draws(soft, cache.encoding)


def _wrong_feature(cache: Cache, part: PartRecord, name: str) -> str | None:
    return None if np.isfinite(cache.read_feature(name, part)).all() else "it is not finite"


def check_values(cache: Cache, soft: SoftLabels, what: str) -> None:
    """Raise CacheCorruptError when ``soft``, ``what`` of the cache, are no soft labels."""
    wrong = wrong_values(soft)
    if wrong is not None:
        raise CacheCorruptError(f"{cache.address}, {what}: {wrong}. Fetch the cache again, or dump again")


def wrong_values(soft: SoftLabels) -> str | None:
    """What makes ``soft`` (numpy) no soft labels: values that are not finite, ids out of range; None when sound."""
    if isinstance(soft, Dense):
        return None if np.isfinite(soft.logits).all() else "its logits are not finite"
    if soft.ids.size and not (soft.ids.min() >= 0 and soft.ids.max() < soft.classes):
        return f"its ids should lie below {soft.classes}; found {soft.ids.max()}"
    if isinstance(soft, Sampled):
        if (np.diff(soft.offsets) < 1).any():
            return "it has positions without any class"
        within = np.ones(max(0, len(soft.ids) - 1), bool)
        within[soft.offsets[1:-1] - 1] = False
        if not (np.diff(soft.ids)[within] > 0).all():
            return "its ids do not ascend"
        return None if (np.isfinite(soft.weights) & (soft.weights >= 0)).all() else "its weights are not 0 or more"
    if soft.ids.shape[1] > 1 and not (np.diff(soft.ids, axis=1) > 0).all():
        return "its ids do not ascend"
    if not (np.isfinite(soft.logits).all() and np.isfinite(soft.log_normaliser).all()):
        return "its logits or normalisers are not finite"
    whole = soft.ids.shape[1] == soft.classes
    if not (np.isneginf(soft.log_residual).all() if whole else np.isfinite(soft.log_residual).all()):
        return "its residuals are not those of the classes that were dropped"
    return None


def wrong_draws(soft: SoftLabels, encoding: Encoding) -> str | None:
    """What ``soft`` (numpy), otherwise sound, cannot be of this encoding: counts that are not all of its draws."""
    if not (isinstance(soft, Sampled) and isinstance(encoding, SampledEncoding) and encoding.counted and len(soft)):
        return None
    counts = np.rint(soft.weights.astype(np.float64) * encoding.n)
    if not (np.add.reduceat(counts, soft.offsets[:-1]) == encoding.n).all():
        return f"its positions do not have {encoding.n} draws each"
    return None
