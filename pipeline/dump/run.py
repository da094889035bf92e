"""Dump, resume, or find the same cache finished."""

from __future__ import annotations

import datetime
import glob
import os
import platform
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.caches.building import OWN, finished, occupied
from pipeline.caches.plan import PATH as PLAN
from pipeline.caches.plan import Plan
from pipeline.configuration import url_of
from pipeline.dump import remote
from pipeline.dump.claims import Claims, Share
from pipeline.dump.claims import folder_of as claims_folder
from pipeline.dump.config import DumpConfig, DumpReport, PartialReport
from pipeline.dump.job import Job, prepare
from pipeline.dump.parts import write_parts
from pipeline.dump.reuse import reuse
from pipeline.errors import ConfigError
from pipeline.identity import short
from pipeline.outputs import write_beside
from pipeline.progress import Progress, Silent
from pipeline.sources.replay import replay_table
from pipeline.store import Cache, CacheWriter, open_cache, replay_file
from pipeline.store.remote import PatientFiles
from pipeline.views import view_records
from pipeline.workspace import MARK, SharedWorkspace, Workspace, refuse_strangers

REPLAYED_EXAMPLES = 8
POLL_SECONDS = 0.5


def run(config: DumpConfig, progress: Progress | None = None) -> DumpReport | PartialReport:
    """Dump, or resume, or find the same cache finished.

    Several processes may make one cache: ranks of torchrun (RANK and WORLD_SIZE in the environment), of which rank 0
    finishes it when all parts are there, or tasks with ``parts`` each, after which somebody calls ``finalize``. Those
    that do not finish it return a PartialReport.

    Raises ConfigError when ``out`` holds something else (unless ``overwrite``), BusyError when another process is
    writing it, DataError, ModelError or EncodingError naming the entry that could not be kept.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    share = Share.of_this_process(config.parts)
    job = prepare(config)
    out = Path(config.out)
    if (url := url_of(config.out)) is not None:
        return _run_at(url, job, share, progress, started)
    if (found := _found_finished(job, started)) is not None:
        return found
    if out.is_dir() and any(out.iterdir()) and not config.overwrite:
        raise ConfigError(occupied(out, finished(out), job.identity))
    refuse_strangers(out, OWN)
    if config.reuse:
        if share.shared:
            raise ConfigError(
                "--reuse brings a whole cache, for one process: leave it out where several make the parts"
            )
        if source := reuse(job.identity, out, config.reuse, progress, overwrite=config.overwrite):
            return _finished_report(job, started, 0.0, resumed=0, reused=source)
    plan = _plan(job)
    if not share.shared:
        with Workspace(out, job.digest) as space:
            writer = plan.writer(space.path)
            resumed = len(writer.done)
            seconds = _make_parts(job, writer, share, progress)
            # Again even where a manifest is there: a kill while finalising may have left part of the journal behind.
            plan.finalise(writer)
            space.commit()
        return _finished_report(job, started, seconds, resumed)
    with SharedWorkspace(out, job.digest) as shared:
        if (found := _found_finished(job, started)) is not None:  # while this process waited to join
            return found
        writer = plan.writer(shared.path)
        plan.save(shared.path)
        shared.join()
        resumed = len(writer.done)
        seconds = _make_parts(job, writer, share, progress)
        if share.chosen is not None or share.rank:
            there = sum(writer.look(part.number) for part in job.layout.parts)
            return _partial_report(job, there, time.perf_counter() - started, seconds)
        with shared.alone():
            plan.finalise(writer)
            shared.commit()
        shutil.rmtree(claims_folder(shared.path), ignore_errors=True)
    return _finished_report(job, started, seconds, resumed)


def _plan(job: Job) -> Plan:
    classes = tuple(job.dataset.classes)
    return Plan(job.identity, job.layout, len(classes), classes, job.feature_specs, _views_as_seen(job))


def _run_at(url: str, job: Job, share: Share, progress: Progress, started: float) -> DumpReport | PartialReport:
    """The same, straight to a URL: there is no scratch, and nothing to lock."""
    made = remote.make(job, _plan(job), url, share, progress)
    seconds = time.perf_counter() - started
    if not made.finished:
        return _partial_report(job, made.there, seconds, made.seconds)
    report = _report(job, Cache(PatientFiles(url)), seconds, made.seconds, resumed=made.resumed)
    remote.write_beside(url, report.as_dict(), again=made.resumed == report.parts)
    return report


def _make_parts(job: Job, writer: CacheWriter, share: Share, progress: Progress) -> float:
    """Make parts until none of the share is left, or none that this process may wait for; seconds in the teacher."""
    claims = Claims(writer, share)
    total = sum(part.entries for part in job.layout.parts)
    written = writer.done
    done = sum(part.entries for part in job.layout.parts if part.number in written)
    with progress.bar("dump", total, "entries", done) as bar:
        seconds = write_parts(job, writer, claims, bar)
        # Other ranks are at the rest. Should one of them die without torchrun, its claims are free again.
        while share.shared and share.chosen is None and claims.left:
            time.sleep(POLL_SECONDS)
            seconds += write_parts(job, writer, claims, bar)
    return seconds


def finalize(out: Path | str, identity: str = "", *, overwrite: bool = False) -> Cache:
    """Turn the parts that several processes made beside ``out``, or at that URL, into the cache; or find that done.

    ``identity``: the first characters of the one that is meant, where parts of several caches lie there. Raises
    CacheIncompleteError when parts are missing, BusyError while they are being made, ConfigError when there is
    nothing, or more than one thing, to finish, or when ``out`` holds another cache and ``overwrite`` is not given.
    """
    if (url := url_of(out)) is not None:
        if overwrite:
            raise ConfigError(f"--overwrite is for local folders: a dump at {url} has begun where nothing else was")
        return remote.finalize(url, identity)
    out = Path(os.path.realpath(out))
    pattern = f".{glob.escape(out.name)}{MARK}*"
    plans = {path.parent: Plan.load(path.parent) for path in sorted(out.parent.glob(f"{pattern}/{PLAN}"))}
    plans = {path: plan for path, plan in plans.items() if plan.digest.startswith(identity)}
    if not plans and (cache := finished(out)) is not None and cache.digest.startswith(identity):
        return cache
    if len(plans) != 1:
        there = ", ".join(short(plan.digest) for plan in plans.values()) or "none"
        raise ConfigError(
            f"there should be the parts of one cache beside {out}, made by softlabels dump --parts; found {there}"
            + (". Name one with --identity" if plans else "")
        )
    ((folder, plan),) = plans.items()
    if not overwrite and (cache := finished(out)) is not None and cache.digest != plan.digest:
        raise ConfigError(
            f"{out} holds cache {short(cache.digest)}, these parts make {short(plan.digest)}. Move or --overwrite it"
        )
    refuse_strangers(out, OWN)
    with Workspace(out, plan.digest) as space:
        plan.finalise(plan.writer(folder))
        space.commit()
    shutil.rmtree(claims_folder(folder), ignore_errors=True)
    return open_cache(out)


def _found_finished(job: Job, started: float) -> DumpReport | None:
    out = Path(job.config.out)
    cache = finished(out) if (out / "manifest.json").is_file() else None
    if cache is None or cache.digest != job.digest:
        return None
    report = _report(job, cache, time.perf_counter() - started, 0.0, resumed=len(cache.parts))
    write_beside(out, report.as_dict(), again=True)
    return report


def _finished_report(job: Job, started: float, teacher_seconds: float, resumed: int, reused: str = "") -> DumpReport:
    out, seconds = Path(job.config.out), time.perf_counter() - started
    report = _report(job, open_cache(out), seconds, teacher_seconds, resumed=resumed, reused=reused)
    write_beside(out, report.as_dict())
    return report


def _partial_report(job: Job, there: int, seconds: float, teacher_seconds: float) -> PartialReport:
    return PartialReport(
        out=url_of(job.config.out) or str(job.config.out),
        identity=job.digest,
        parts=len(job.layout.parts),
        there=there,
        seconds=round(seconds, 3),
        teacher_seconds=round(teacher_seconds, 3),
        device=str(job.device),
    )


def _views_as_seen(job: Job) -> bytes | None:
    """A few random views of the first training examples, as the teacher saw them: a cache's views.parquet."""
    rows = job.dataset.rows("train")[:REPLAYED_EXAMPLES].tolist() if job.views.count > 1 else []
    entries = [(row, 1 + number % (job.views.count - 1)) for number, row in enumerate(rows)]
    if not entries:
        return None
    return replay_file(replay_table(view_records(job.views, job.dataset, entries)))


def _report(
    job: Job, cache: Cache, seconds: float, teacher_seconds: float, *, resumed: int, reused: str = ""
) -> DumpReport:
    size = sum(cache.sizes().values())
    return DumpReport(
        out=url_of(job.config.out) or str(job.config.out),
        identity=job.digest,
        entries=sum(part.entries for part in cache.parts),
        parts=len(cache.parts),
        resumed=resumed,
        bytes=size,
        bytes_per_entry=size / max(1, sum(part.entries for part in cache.parts)),
        seconds=round(seconds, 3),
        teacher_seconds=round(teacher_seconds, 3),
        device=str(job.device),
        reused=reused,
        fidelity=dict(cache.manifest.fidelity),
        positions=sum(part.positions for part in cache.parts),
        environment={
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    )
