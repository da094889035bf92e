"""Dump, resume, or find the same cache finished."""

from __future__ import annotations

import datetime
import platform
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pipeline.dump.config import DumpConfig, DumpReport
from pipeline.dump.job import Job, prepare
from pipeline.dump.parts import write_parts
from pipeline.errors import CacheError, ConfigError
from pipeline.fidelity import summarise
from pipeline.identity import short
from pipeline.outputs import write_beside
from pipeline.progress import Progress, Silent
from pipeline.sources.replay import replay_table
from pipeline.store import Cache, CacheWriter, open_cache
from pipeline.views import view_records
from pipeline.workspace import Workspace, refuse_strangers

REPLAYED_EXAMPLES = 8
OWN = ("manifest.json", "parts.parquet", "views.parquet", "README.md", "index*", "labels*", "features.zarr*")
"""What a cache consists of: --overwrite deletes nothing else."""


def run(config: DumpConfig, progress: Progress | None = None) -> DumpReport:
    """Dump, or resume, or find the same cache finished.

    Raises ConfigError when ``out`` holds something else (unless ``overwrite``), BusyError when another process is
    writing it, DataError, ModelError or EncodingError naming the entry that could not be kept.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    job = prepare(config)
    out = Path(config.out)
    if (out / "manifest.json").is_file():
        cache = _finished(out)
        if cache is not None and cache.digest == job.digest:
            report = _report(job, cache, time.perf_counter() - started, 0.0, resumed=len(cache.parts))
            write_beside(out, report.as_dict(), again=True)
            return report
    if out.is_dir() and any(out.iterdir()) and not config.overwrite:
        raise ConfigError(_occupied(out, job))
    refuse_strangers(out, OWN)
    with Workspace(out, job.digest) as space:
        writer = CacheWriter(
            space.path,
            job.layout,
            job.encoding,
            classes=len(job.dataset.classes),
            store=config.store,
            features=job.feature_specs,
            identity=job.digest,
        )
        resumed = len(writer.done)
        teacher_seconds = write_parts(job, writer, progress)
        # Again even where a manifest is there: a kill while finalising may have left part of the journal behind.
        writer.finalise(
            {
                "identity": job.identity,
                "class_names": job.dataset.classes,
                "fidelity": summarise((record.split, record.statistics) for record in writer.records),
                "replay": _views_as_seen(job),
            }
        )
        space.commit()
    report = _report(job, open_cache(out), time.perf_counter() - started, teacher_seconds, resumed=resumed)
    write_beside(out, report.as_dict())
    return report


def _views_as_seen(job: Job) -> pa.Table | None:
    """A few random views of the first training examples, as the teacher saw them."""
    rows = job.dataset.rows("train")[:REPLAYED_EXAMPLES].tolist() if job.views.count > 1 else []
    entries = [(row, 1 + number % (job.views.count - 1)) for number, row in enumerate(rows)]
    if not entries:
        return None
    return replay_table(view_records(job.views, job.dataset, entries))


def _finished(out: Path) -> Cache | None:
    try:
        return open_cache(out)
    except CacheError:
        return None


def _occupied(out: Path, job: Job) -> str:
    cache = _finished(out) if (out / "manifest.json").is_file() else None
    if cache is None:
        return f"--out {out} is not empty and not a finished cache. Name another place, or --overwrite it"
    differs = [key for key in job.identity if key != "digest" and cache.identity.get(key) != job.identity[key]]
    return (
        f"--out {out} holds cache {short(cache.digest)}, this dump would make {short(job.digest)} "
        f"(other {', '.join(differs)}). Name another place, or --overwrite it"
    )


def _report(job: Job, cache: Cache, seconds: float, teacher_seconds: float, *, resumed: int) -> DumpReport:
    size = sum(cache.sizes().values())
    return DumpReport(
        out=str(job.config.out),
        identity=job.digest,
        entries=sum(part.entries for part in cache.parts),
        parts=len(cache.parts),
        resumed=resumed,
        bytes=size,
        bytes_per_entry=size / max(1, sum(part.entries for part in cache.parts)),
        seconds=round(seconds, 3),
        teacher_seconds=round(teacher_seconds, 3),
        device=str(job.device),
        fidelity=dict(cache.manifest.fidelity),
        environment={
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    )
