"""What a dump of a language model's labels adds to the teacher's forward pass."""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from collections.abc import Callable

import torch
from torch import nn

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

    def dumps(name: str, encoding: dict[str, object]) -> Callable[[], float]:
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
        job = dump.prepare(config)
        timed, forward = parts_written(job, settings, time.process_time), ForwardTime(job)

        def whole() -> float:
            forward.seconds = 0.0
            taken = timed()
            beside[name].append((taken - forward.seconds) / forward.seconds)
            return taken

        return whole

    kinds: dict[str, dict[str, object]] = {
        "sampled": {"encoding": "sampled", "draws": DRAWS},
        "topk": {"encoding": "topk", "k": 50, "dtype": "float16", "temperature": (1.0,)},
    }
    beside: dict[str, list[float]] = {name: [] for name in kinds}
    times = in_turn({"bare": bare, **{name: dumps(name, kind) for name, kind in kinds.items()}}, rounds)
    position = 1e3 * statistics.median(times["bare"]) / (rows * LENGTH)
    on = f"V = {vocabulary:,}; gpt-{width}, {layers} layers: {position:.2f} ms of processor a position"
    what = "what grows with the data / bare teacher forward over the same batches"
    found = []
    for name, shares in beside.items():
        each, (low, middle, high) = ratio(times[name], times["bare"]), statistics.quantiles(shares[-rounds:], n=4)
        found.append(at_most(f"dump of {name} labels, {what}", on, each, 1.05, f"; {each.sure()}"))
        measured = f"{middle:.1%} ({low:.1%} to {high:.1%})"
        found.append(
            Row("of it, all that is not the teacher's forward pass, beside that pass in the same dump", on, measured)
        )
    return found


class ForwardTime:
    """``seconds`` of processor time of the teacher's forward passes in a dump, without the threads of Python beside it.

    A dump writes in a thread of its own meanwhile; torch's threads are none of Python's.
    """

    def __init__(self, job: Job) -> None:
        if job.body_and_head is None:
            raise TypeError("the teacher should be a body and a head")
        self.seconds, self._began = 0.0, 0.0
        for module in job.body_and_head:
            if not isinstance(module, nn.Module):
                raise TypeError(f"a module should make hidden states, and another logits; found {type(module)}")
            module.register_forward_pre_hook(self._begin)
            module.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self._began = _without_others()

    def _end(self, *_: object) -> None:
        self.seconds += _without_others() - self._began


def _without_others() -> float:
    others = [each.ident for each in threading.enumerate() if each is not threading.current_thread()]
    clocks = [time.pthread_getcpuclockid(each) for each in others if each is not None]
    return time.process_time() - sum(time.clock_gettime(each) for each in clocks)


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
