"""A dump straight to a URL: the plan, then part after part with its journal entry, and the manifest last.

Ranks of torchrun, and tasks with ``--parts``, divide the parts by number: an object store has no locks. Rank 0 finishes
the cache when all parts are there, and makes those that do not come.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.caches.plan import PATH as PLAN
from pipeline.caches.plan import REPLAY, Plan
from pipeline.dump.claims import Claims, Share, chosen_parts
from pipeline.dump.job import Job
from pipeline.dump.parts import write_parts
from pipeline.errors import CacheIncompleteError, CacheMismatchError, CacheNotFoundError, ConfigError
from pipeline.identity import short
from pipeline.outputs import json_bytes
from pipeline.progress import Progress
from pipeline.store import Cache, Part
from pipeline.store.files import safe_name
from pipeline.store.remote import PatientFiles
from pipeline.store.remote_writer import RemoteWriter, clear, put, settle
from pipeline.workspace import JOINING_SECONDS

PLANS = (REPLAY, PLAN)
POLL_SECONDS = 2.0
STALLED_SECONDS = 300.0
"""Rank 0 makes missing parts itself when no other has come for so long."""


@dataclass(frozen=True)
class Made:
    """What one process did: parts found ``resumed``, seconds in the teacher, parts ``there`` and whether that is all.

    ``finished``: the manifest is written.
    """

    resumed: int
    seconds: float
    there: int
    finished: bool


class Turns(Claims):
    """The parts of a share of a cache at a URL that nobody has written yet. There is nothing to claim."""

    def __init__(self, writer: RemoteWriter, parts: list[Part]) -> None:
        self._writer, self._parts, self._shared = writer, parts, False
        self._held = {}


def parts_of(share: Share, parts: tuple[Part, ...]) -> list[Part]:
    """Every ``world``-th of the parts that were chosen, from the rank on."""
    numbers = range(len(parts)) if share.chosen is None else chosen_parts(share.chosen, len(parts))
    return [parts[number] for number in numbers[share.rank :: share.world]]


def make(job: Job, plan: Plan, url: str, share: Share, progress: Progress) -> Made:
    """Make this process's share of the cache at ``url``, and finish it if that falls to this process.

    Raises CacheMismatchError when something else lies there, CacheError when it cannot be reached or written.
    """
    remote = PatientFiles(url, progress=progress)
    if not _begin(remote, plan, share, overwrite=job.config.overwrite):
        count = len(plan.layout.parts)
        return Made(count, 0.0, count, True)
    writer = _writer(remote, plan)
    resumed = len(writer.done)
    mine = parts_of(share, plan.layout.parts)
    total, written = sum(part.entries for part in mine), writer.done
    with progress.bar("dump", total, "entries", sum(part.entries for part in mine if part.number in written)) as bar:
        seconds = write_parts(job, writer, Turns(writer, mine), bar)
        if share.chosen is not None or share.rank:
            return Made(resumed, seconds, len(writer.refresh()), False)
        if missing := _missing(writer, plan):
            seconds += write_parts(job, writer, Turns(writer, missing), bar)
    _finish(writer, plan)
    return Made(resumed, seconds, len(plan.layout.parts), True)


def finalize(url: str, identity: str = "") -> Cache:
    """Turn the parts at ``url`` into a cache; or find that done. As ``pipeline.dump.finalize``."""
    remote = PatientFiles(url)
    plan = _plan_at(remote)
    if plan is None or not plan.digest.startswith(identity):
        cache = _cache_at(url)
        if cache is not None and cache.digest.startswith(identity):
            return cache
        there = "none" if plan is None else short(plan.digest)
        raise ConfigError(f"there should be the parts of one cache at {url}, made by softlabels dump; found {there}")
    if not settle(remote, plan.digest, lambda: plan.digest, PLANS, overwrite=False):
        _finish(_writer(remote, plan), plan)
    else:
        clear(remote, PLANS)
    return Cache(remote)


def _begin(remote: PatientFiles, plan: Plan, share: Share, *, overwrite: bool) -> bool:
    """See to it that this cache's plan lies at the URL; False if the cache is finished there.

    With ``overwrite`` rank 0 removes what else is there, and the others wait for that. Tasks with --parts know nothing
    of each other: one that comes late would remove what the others have made.
    """
    if overwrite and share.rank:
        _wait_for_rank_0(remote, plan)
    alone = share.chosen is None and not share.rank
    try:
        finished = settle(remote, plan.digest, lambda: _digest_at(remote), PLANS, overwrite=overwrite and alone)
    except CacheMismatchError as error:
        if not overwrite:
            raise
        what = str(error).replace("Name another URL, or --overwrite it", "Name another URL, or remove it first")
        raise CacheMismatchError(f"{what}: tasks with --parts would remove each other's") from None
    if finished:
        clear(remote, PLANS)
        return False
    if _digest_at(remote) != plan.digest:
        with tempfile.TemporaryDirectory() as folder:
            plan.save(Path(folder))
            for name in PLANS:
                if (Path(folder) / name).exists():
                    put(remote, name, (Path(folder) / name).read_bytes())
    return True


def _wait_for_rank_0(remote: PatientFiles, plan: Plan) -> None:
    began = time.monotonic()
    while _digest_at(remote) != plan.digest:
        cache = _cache_at(remote.address)
        if cache is not None and cache.digest == plan.digest:
            return
        if time.monotonic() - began > JOINING_SECONDS:
            raise CacheIncompleteError(
                f"{remote.address} has no {PLAN} of this dump after {JOINING_SECONDS:.0f} s: rank 0 should have put it "
                "there. Look at what that says, and run the same command again"
            )
        time.sleep(POLL_SECONDS)


def _writer(remote: PatientFiles, plan: Plan) -> RemoteWriter:
    return RemoteWriter(
        remote,
        plan.layout,
        plan.encoding,
        classes=plan.classes,
        store=str(plan.identity["store"]),
        features=plan.features,
        identity=plan.digest,
    )


def _cache_at(url: str) -> Cache | None:
    try:
        return Cache(PatientFiles(url))
    except CacheNotFoundError:
        return None


def _digest_at(remote: PatientFiles) -> str | None:
    """The identity of the dump under way at a URL: None without one, "" where its plan cannot be read."""
    try:
        plan = _plan_at(remote)
    except CacheIncompleteError:
        return ""
    return None if plan is None else plan.digest


def _plan_at(remote: PatientFiles) -> Plan | None:
    remote.filesystem.invalidate_cache()
    if remote.size(PLAN) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name in PLANS:
            if remote.size(name) is not None:
                (Path(folder) / name).write_bytes(remote.read(name))
        try:
            return Plan.load(Path(folder))
        except CacheIncompleteError as error:
            raise CacheIncompleteError(str(error).replace(folder, remote.address)) from error


def _missing(writer: RemoteWriter, plan: Plan) -> list[Part]:
    """Wait for the parts of others; [] when all are there, those that are missing when no more come."""
    last, there = time.monotonic(), writer.refresh()
    while len(there) < len(plan.layout.parts):
        if time.monotonic() - last > STALLED_SECONDS:
            return [part for part in plan.layout.parts if part.number not in there]
        time.sleep(POLL_SECONDS)
        found = writer.refresh()
        if found - there:
            last = time.monotonic()
        there = found
    return []


def _finish(writer: RemoteWriter, plan: Plan) -> None:
    """Raises CacheIncompleteError naming the parts that are not there."""
    writer.refresh()
    plan.finalise(writer)
    clear(writer.remote, PLANS)


def write_beside(url: str, report: dict[str, Any], *, again: bool = False) -> None:
    """``report`` as URL.report.json, as ``pipeline.outputs`` does beside a folder; nothing beside a whole bucket."""
    parent, _, name = url.rstrip("/").rpartition("/")
    path = f"{name}.report.json"
    if parent.endswith("/") or not safe_name(path):
        return
    beside = PatientFiles(parent)
    if not (again and beside.size(path) is not None):
        put(beside, path, json_bytes(report))
