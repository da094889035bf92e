"""A cache that exists already, brought to ``--out`` instead of running the teacher.

It counts as the same cache when its whole identity is; every byte is held to its sha256 on the way. Whatever is not
whole or not what it says is left alone, and the teacher runs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.caches.catalog import COMPLETE, Listed, Wanted, catalog
from pipeline.errors import CacheError, some
from pipeline.identity import canonical_json, short
from pipeline.progress import Progress
from pipeline.store import open_cache
from pipeline.store.files import LocalFiles
from pipeline.store.manifest import PATH as MANIFEST
from pipeline.store.remote import Patience, PatientFiles
from pipeline.store.transfer import pull, scratch_of
from pipeline.workspace import Workspace

_NEAR, _SHOWN = 3, 3


def reuse(
    identity: Mapping[str, Any], out: Path, places: Sequence[str], progress: Progress, *, overwrite: bool = False
) -> str | None:
    """The address of a cache of this ``identity`` under one of ``places`` that is now at ``out``; None without one.

    Raises BusyError, DiskFullError and ConfigError as ``pull`` does; what is wrong with a place or a cache is logged.
    """
    near: list[tuple[str, tuple[str, ...]]] = []
    for place in places:
        for row in _rows(place, str(identity["digest"]), progress):
            differs = differences(identity, row.description)
            if differs:
                near = sorted([*near, (row.address, differs)], key=lambda item: len(item[1]))[:_SHOWN]
            elif row.state != COMPLETE:
                progress.log(f"{row.address} is this cache and cannot be reused: {row.state}. {row.problem}")
            elif not _same_place(row.address, out) and _brought(row.address, out, progress, overwrite):
                return row.address
    progress.log(_none(identity, places, near))
    return None


def _rows(place: str, digest: str, progress: Progress) -> Iterator[Listed]:
    """The caches of a place whose manifest can be read; a place that cannot be listed is logged."""
    try:
        for row in catalog(place, weighed=Wanted(identity=digest)):
            if row.description:
                yield row
            else:
                progress.log(f"{row.address} cannot be reused: {row.state}")
    except CacheError as error:
        progress.log(f"--reuse {place}: {error}")


def differences(identity: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """What two identities differ in, by key. A part size follows from the rest: it is named when it stands alone.

    >>> differences({"data": 1, "part_size": 4, "digest": "a"}, {"data": 2, "part_size": 8, "digest": "b"})
    ('data',)
    """
    keys = [key for key in {**identity, **other} if key != "digest"]
    found = [key for key in keys if canonical_json(identity.get(key)) != canonical_json(other.get(key))]
    if not found and identity.get("digest") != other.get("digest"):
        return ("digest",)
    return tuple(key for key in found if key != "part_size") or tuple(found)


def _brought(address: str, out: Path, progress: Progress, overwrite: bool) -> bool:
    """Whether the cache at ``address`` is at ``out`` now, every file with the bytes that were committed."""
    progress.log(f"{address} is this cache: it is brought to {out}, and the teacher does not run")
    local = "://" not in address and "::" not in address
    scratch = None
    try:
        scratch = scratch_of((LocalFiles(Path(address)) if local else PatientFiles(address)).read(MANIFEST))
        if local:
            _link(Path(address), out, scratch)
        pull(address, out, overwrite=overwrite, progress=progress, patience=Patience(attempts=1) if local else None)
        return True
    except CacheError as error:
        progress.log(f"{address} is not used after all: {error}")
    if scratch is not None:
        with Workspace(out, scratch) as space:
            space.clear()
    return False


def _link(folder: Path, out: Path, scratch: str) -> None:
    """Give the files of a local cache a second name in the scratch directory of its pull, which then checks them.

    Committed files are never written again. What cannot be linked (another disk, another owner) is copied by the pull.
    """
    files = open_cache(folder).file_records()
    with Workspace(out, scratch) as space:
        for path in files:
            target = space.path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                os.link(os.path.realpath(folder / path), target)


def _same_place(address: str, out: Path) -> bool:
    return "://" not in address and os.path.realpath(address) == os.path.realpath(out)


def _none(identity: Mapping[str, Any], places: Sequence[str], near: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    line = f"no cache {short(str(identity['digest']))} to reuse under {some(places)}: the teacher runs"
    close = [(address, differs) for address, differs in near if len(differs) <= _NEAR]
    fewest = min((len(differs) for _, differs in close), default=0)
    said = [f"{address} differs in {', '.join(differs)}" for address, differs in close if len(differs) == fewest]
    return f"{line} ({'; '.join(said)})" if said else line
