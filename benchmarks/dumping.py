"""A dump against the bare forward pass of its teacher over the same batches."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Row, Settings, Table, at_most, in_turn, ratio, seconds
from benchmarks.synthetic import Points, depth_for, repeated
from pipeline import dump

BATCH = 256
WIDTH = 1024
PART = 2048
"""Rows to a part: enough parts that the last one, which is written when the teacher is done, weighs little."""


def run(settings: Settings) -> Table:
    """What a dump adds to its teacher."""
    found: list[Row] = []
    plans = ((0.005, 4, 2),) if settings.quick else ((0.020, 128, 3), (0.100, 40, 3))
    for target, batches, rounds in plans:
        found += measure(settings, target, batches, rounds)
    return Table(
        "Dumping",
        found,
        (
            "The dump is the whole `dump.run`: it builds and checks the teacher, digests data and weights, loads "
            "each example, runs the teacher, encodes to float16, measures fidelity, writes, hashes and fsyncs a "
            "cache and opens it again. The bare forward pass starts from batches that already lie in RAM and throws "
            "its outputs away.",
            f"Parts of {PART:,} rows. The start and the end of a dump fall on these few seconds alone; real dumps are "
            "longer.",
        ),
    )


def measure(settings: Settings, target: float, batches: int, rounds: int) -> list[Row]:
    """The rows of one teacher."""
    rows = batches * BATCH
    data = Points(rows)
    inputs = [data.inputs(np.arange(first, first + BATCH)) for first in range(0, rows, BATCH)]

    def bare(model: nn.Module, over: list[Tensor]) -> Callable[[], float]:
        def timed() -> float:
            with torch.inference_mode():
                return seconds(lambda: [model(batch) is None for batch in over])

        return timed

    depth = depth_for(target, WIDTH, lambda model: bare(model.eval(), inputs[:1]), repeated)
    teacher = repeated(WIDTH, depth).eval()
    reports: list[dump.DumpReport] = []

    config = dump.DumpConfig(
        data="benchmarks.synthetic:Points",
        data_args=(f"rows={rows}",),
        teacher="benchmarks.synthetic:repeated",
        teacher_args=(f"width={WIDTH},depth={depth}",),
        out=settings.scratch / f"{target}",
        dtype="float16",
        batch_size=BATCH,
        part_size=PART,
        device="cpu",
    )

    def dumped() -> float:
        taken = seconds(lambda: reports.append(dump.run(config)))
        shutil.rmtree(config.out)
        return taken

    starting = {"start": lambda: seconds(lambda: dump.prepare(config))}
    times = in_turn({"dump": dumped, "bare": bare(teacher, inputs), **starting}, rounds)
    each = 1e3 * statistics.median(times["bare"]) / batches
    inside = statistics.median(report.teacher_seconds / report.seconds for report in reports)
    running = [whole - start for whole, start in zip(times["dump"], times["start"], strict=True)]
    on = f"{batches} batches of {BATCH} x 1,000; teacher of {each:.0f} ms"
    return [
        at_most(
            "dump / bare teacher forward over the same batches",
            on,
            ratio(times["dump"], times["bare"]),
            1.05,
            f"; {inside:.0%} of the dump inside the teacher",
        ),
        Row(
            "the same without its start (building the teacher, digests of data and weights)",
            on,
            str(ratio(running, times["bare"])),
        ),
    ]
