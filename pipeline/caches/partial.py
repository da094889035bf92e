"""Caches of which some parts are there: joined into a whole one when their identity is the same."""

from __future__ import annotations

import glob
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.caches.building import OWN, BuildReport, finished
from pipeline.caches.plan import PATH as PLAN
from pipeline.caches.plan import Plan
from pipeline.errors import CacheCorruptError, CacheIncompleteError, ConfigError
from pipeline.progress import Progress, Silent
from pipeline.store import Cache, CacheWriter, PartRecord, open_cache
from pipeline.store.files import LocalFiles
from pipeline.workspace import MARK, Workspace, refuse_strangers


@dataclass(frozen=True)
class Partial:
    """A local folder with some parts of the cache that ``plan`` describes.

    ``cache`` when it was committed, and then pulled in part; None for the parts of a dump that is not finished.
    """

    address: str
    folder: Path
    plan: Plan
    records: tuple[PartRecord, ...]
    cache: Cache | None = None

    @property
    def whole(self) -> bool:
        """Whether no part is missing."""
        return len(self.records) == len(self.plan.layout.parts)


def partial_at(address: str) -> Partial | None:
    """What is at a local path: a cache, whole or pulled in part, or the parts of an unfinished dump beside it.

    None for a URL. Raises CacheError when there is neither, CacheIncompleteError for scratch that cannot be read.
    """
    if "://" in address or "::" in address:
        return None
    folder = Path(address)
    scratch = _scratch(folder)
    if scratch is not None and not (folder / "manifest.json").is_file():
        plan = Plan.load(scratch)
        return Partial(address, scratch, plan, plan.writer(scratch).records)
    cache = open_cache(folder)
    there = tuple(record for record in cache.parts if _there(folder, record))
    return Partial(address, folder, plan_of(cache), there, cache)


def _scratch(folder: Path) -> Path | None:
    """The scratch directory that ``folder`` is, or that a dump to ``folder`` left beside it."""
    if (folder / PLAN).is_file():
        return folder
    found = sorted(folder.parent.glob(f".{glob.escape(folder.name)}{MARK}*/{PLAN}"))
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found)
        raise ConfigError(f"there are parts of several dumps beside {folder}: name one of {names}")
    return found[0].parent if found else None


def _there(folder: Path, record: PartRecord) -> bool:
    files = LocalFiles(folder)
    return all(files.size(path) == file.size for path, file in record.files.items())


def plan_of(cache: Cache) -> Plan:
    """What a committed cache was made by."""
    manifest = cache.manifest
    return Plan(
        identity=manifest.identity,
        layout=manifest.layout,
        classes=cache.classes,
        class_names=cache.class_names,
        features=manifest.features,
        replay=cache.replay_bytes(),
    )


def join_parts(
    found: Sequence[Partial], out: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> BuildReport:
    """The whole cache out of parts that lie in several folders, each held to its sha256.

    Where one of them has been committed, the result is what its manifest says, byte for byte. Raises
    CacheIncompleteError naming the parts that nobody has, ConfigError when ``out`` holds something else.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    plan = found[0].plan
    there = finished(Path(out))
    resumed = len(plan.layout.parts)
    if there is None or there.digest != plan.digest or not _whole(there):
        if Path(out).is_dir() and any(Path(out).iterdir()) and not overwrite:
            raise ConfigError(f"--out {out} is not empty. Name another place, or --overwrite it")
        refuse_strangers(Path(out), OWN)
        committed = next((each.cache for each in found if each.cache is not None), None)
        known = {} if committed is None else {record.number: record for record in committed.parts}
        with Workspace(Path(out), plan.digest) as space:
            writer = plan.writer(space.path)
            resumed = len(writer.done)
            with progress.bar("merge", len(plan.layout.parts), "part", resumed) as bar:
                for number in sorted({record.number for each in found for record in each.records}):
                    if not writer.look(number) and _adopt(writer, number, found, known, progress):
                        bar.update(1)
            if committed is None or len(writer.done) < len(plan.layout.parts):
                plan.finalise(writer)  # raises, naming what is missing, where something is
            else:
                writer.finalise_as(committed.files)
            space.commit()
    cache = open_cache(out)
    return BuildReport(
        verb="merge",
        sources=tuple(each.address for each in found),
        out=str(out),
        identity=plan.digest,
        entries=plan.layout.entries,
        parts=len(plan.layout.parts),
        resumed=resumed,
        bytes=sum(cache.sizes().values()),
        seconds=round(time.perf_counter() - started, 3),
        unknown=cache.manifest.unknown,
    )


def _adopt(
    writer: CacheWriter,
    number: int,
    found: Sequence[Partial],
    known: Mapping[int, PartRecord],
    progress: Progress,
) -> bool:
    """Take a part from the first folder that has it sound: as ``known`` says, or else as its own journal does."""
    for each in found:
        for record in each.records:
            if record.number != number:
                continue
            try:
                writer.adopt(known.get(number, record), each.folder)
            except (CacheCorruptError, CacheIncompleteError) as error:
                progress.log(f"{error} (looking for part {number} elsewhere)")
            else:
                return True
    return False


def _whole(cache: Cache) -> bool:
    return isinstance(cache.files, LocalFiles) and all(_there(cache.files.root, record) for record in cache.parts)
