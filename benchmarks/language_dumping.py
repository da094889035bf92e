"""What a dump of a language model's labels adds to the teacher's forward pass."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.measure import Row, Settings, at_most, in_turn, ratio, synchronised
from benchmarks.synthetic_text import BATCH, DRAWS, LENGTH, VOCABULARY, Text, gpt
from pipeline import dump
from pipeline.caches.plan import Plan
from pipeline.dump.claims import Claims, Share
from pipeline.dump.job import Job
from pipeline.dump.parts import write_parts
from pipeline.progress import Silent


def dumping(settings: Settings) -> list[Row]:
    """What a dump of sampled, and of top-k labels adds to the teacher's forward pass."""
    rows, vocabulary = settings.pick(16, 8), settings.pick(VOCABULARY, 1000)
    width, layers, rounds = (64, 1, 2) if settings.quick else (1024, 12, 24)
    data = Text(rows, vocabulary)
    inputs = [torch.stack([data.load(row) for row in range(f, f + BATCH)]) for f in range(0, rows, BATCH)]
    teacher = gpt(vocabulary, width, layers).eval()

    def bare() -> float:
        with torch.inference_mode():
            began = time.process_time()
            for batch in inputs:
                teacher(batch)
            return time.process_time() - began

    def dumps(encoding: dict[str, object]) -> Callable[[], float]:
        config = dump.DumpConfig(
            data="benchmarks.synthetic_text:Text",
            data_args=(f"rows={rows},vocabulary={vocabulary}",),
            teacher="benchmarks.synthetic_text:gpt",
            teacher_args=(f"width={width},layers={layers}",),
            out=settings.scratch / "timed",
            batch_size=BATCH,
            device="cpu",
            **encoding,  # type: ignore[arg-type]
        )
        return parts_written(dump.prepare(config), settings, time.process_time)

    kinds: dict[str, dict[str, object]] = {
        "sampled": {"encoding": "sampled", "draws": DRAWS},
        "topk": {"encoding": "topk", "k": 50, "dtype": "float16", "temperature": (1.0,)},
    }
    times = in_turn({"bare": bare, **{name: dumps(kind) for name, kind in kinds.items()}}, rounds)
    position = 1e3 * statistics.median(times["bare"]) / (rows * LENGTH)
    on = f"V = {vocabulary:,}; gpt-{width}, {layers} layers: {position:.2f} ms of processor a position"
    what = "what grows with the data / bare teacher forward over the same batches"
    found = {f"dump of {name} labels, {what}": ratio(times[name], times["bare"]) for name in kinds}
    return [at_most(name, on, each, 1.05, f"; {each.sure()}") for name, each in found.items()]


def parts_written(job: Job, settings: Settings, clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """A contender: the seconds until all parts of ``job`` are written."""
    classes = tuple(job.dataset.classes)
    plan = Plan(job.identity, job.layout, len(classes), classes, {}, None)

    def timed() -> float:
        folder = settings.scratch / "parts"
        folder.mkdir(parents=True)
        writer = plan.writer(folder)
        with Silent().bar("dump", 0, "entries") as bar:
            synchronised(job.device, lambda: None)
            began = clock()
            synchronised(job.device, lambda: write_parts(job, writer, Claims(writer, Share()), bar))
            taken = clock() - began
        if len(writer.done) != len(job.layout.parts):
            raise RuntimeError(f"{len(job.layout.parts)} parts should be there; found {len(writer.done)}")
        shutil.rmtree(folder)
        return taken

    return timed
