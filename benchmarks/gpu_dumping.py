"""A dump on a GPU against the bare forward pass of its teacher, and what each part of a dump takes alone."""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import vision
from benchmarks.measure import Row, Settings, at_most, in_turn, rate, ratio, seconds, synchronised
from pipeline import dump
from pipeline.configuration import parse_arguments
from pipeline.devices import autocast
from pipeline.models import frozen
from pipeline.views import Views, input_loader

BATCH = 256
PART = 2048
HELD = 4
"""Batches of inputs that the bare forward pass takes in turn, in page-locked memory."""
SMALL = 14
"""Pixels of the pictures that are cheap to load; the teacher makes them 224 on the device."""


@dataclass(frozen=True)
class Plan:
    """A teacher, how it is run, and what it looks at."""

    name: str
    teacher: str
    arguments: str
    precision: str
    side: int
    rows: int
    rounds: int
    workers: int = 0
    topk: bool = False
    longer: int = 0
    """A second dump has this many times the rows; 0 for none."""


PLANS = (
    Plan("ViT-B/16", "vit", "enlarge=16", "bfloat16", SMALL, 32 * BATCH, 3, topk=True, longer=4),
    Plan("ResNet-50", "resnet", "depth=50", "bfloat16", 224, 24 * BATCH, 3, workers=12),
    Plan("ViT-B/16", "vit", "enlarge=16", "float32", SMALL, 12 * BATCH, 2),
)
QUICK = (
    Plan(
        "a tiny ViT", "vit", "side=28,patch=14,width=16,depth=1,heads=2,enlarge=2", "bfloat16", SMALL, 96, 1, 0, True, 2
    ),
    Plan("a tiny ResNet", "resnet", "depth=10,width=8", "float32", 32, 96, 1, workers=1),
)

NOTES = (
    f"A dump is the whole `dump.run` of a teacher with random weights over pictures of 224 pixels, batches of {BATCH}, "
    f"parts of {PART:,} rows of 1,000 classes, float16: it builds and checks the teacher, digests data and weights, "
    "loads, encodes on the device, measures fidelity, writes, hashes, fsyncs and opens the cache again. Its start and "
    "end weigh on these few seconds alone. The bare forward pass copies batches that lie ready in page-locked memory "
    "to the device, runs the teacher in the same precision, and throws its outputs away. float32 is float32: no TF32.",
    f"Where loading is cheap, pictures have {SMALL} pixels and the teacher enlarges them on the device. Loading alone "
    "is a pass over the same DataLoader, batches page-locked, with nobody to take them. The rest alone is a dump of as "
    "many cheap pictures by a teacher of one linear layer: loading them, ids, digests, seeds, encoding, writing.",
)


def measure(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Rows for each plan."""
    for plan in QUICK if settings.quick else PLANS:
        yield from one(replace(plan, workers=workers_for(plan)), settings, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def workers_for(plan: Plan) -> int:
    """The workers of ``plan``, fewer where there are fewer cores; 0 where shared memory does not hold their batches."""
    shared = Path("/dev/shm")
    wanted = min(plan.workers, max(1, (os.cpu_count() or 1) - 2))
    batch = BATCH * 3 * plan.side**2 * 4
    room = shutil.disk_usage(shared).free if shared.is_dir() else 0
    return wanted if wanted * 3 * batch < room else 0


def one(plan: Plan, settings: Settings, device: torch.device) -> Iterator[Row]:
    """The rows of one plan."""
    config = dump.DumpConfig(
        data="benchmarks.vision:Pictures",
        data_args=(f"rows={plan.rows},side={plan.side}",),
        teacher=f"benchmarks.vision:{plan.teacher}",
        teacher_args=(plan.arguments,),
        out=settings.scratch / "dump",
        dtype="float16",
        batch_size=settings.pick(BATCH, 32),
        part_size=settings.pick(PART, 64),
        workers=plan.workers,
        device=device.type,
        precision=plan.precision,
    )
    reports: list[dump.DumpReport] = []

    def dumped(config: dump.DumpConfig, kept: list[dump.DumpReport]) -> Callable[[], float]:
        def timed() -> float:
            taken = seconds(lambda: kept.append(dump.run(config)))  # type: ignore[arg-type]
            shutil.rmtree(config.out)
            return taken

        return timed

    idle = replace(
        config,
        data_args=(f"rows={plan.rows},side={SMALL}",),
        teacher="benchmarks.vision:instant",
        teacher_args=(f"side={SMALL}",),
        workers=0,
        precision="float32",
    )
    others: list[dump.DumpReport] = []
    contenders = {
        "dump": dumped(config, reports),
        "bare": bare(config, plan, device),
        "start": lambda: seconds(lambda: dump.prepare(config)),
        "loading": lambda: seconds(lambda: loaded(config, plan, device)),
        "rest": dumped(idle, others),
        "rest start": lambda: seconds(lambda: dump.prepare(idle)),
    }
    if plan.topk:
        contenders["topk"] = dumped(replace(config, encoding="topk", k=50), others)
    if plan.longer:
        rows = plan.longer * plan.rows
        long = replace(config, data_args=(f"rows={rows},side={plan.side}",))
        contenders["longer"] = dumped(long, others)
    times = in_turn(contenders, plan.rounds)

    def less(whole: str, part: str) -> list[float]:
        return [max(1e-6, a - b) for a, b in zip(times[whole], times[part], strict=True)]

    batches = -(-plan.rows // config.batch_size)
    each = 1e3 * statistics.median(times["bare"]) / batches
    loading = f"{plan.workers} workers" if plan.side > SMALL else "cheap to load"
    on = f"{plan.name}, {plan.precision}, {plan.rows:,} x {plan.side} px, {loading}; {each:.1f} ms a batch"
    rates = {name: rate(plan.rows, times[name]) for name in ("dump", "bare", "loading")}
    inside = statistics.median(report.teacher_seconds / report.seconds for report in reports)
    found = ratio(times["dump"], times["bare"])
    said = f"; {rates['dump']:,.0f} against {rates['bare']:,.0f} images/s; {inside:.0%} of the dump inside the teacher"
    what = "dump / bare teacher forward over the same batches"
    yield at_most(what, on, found, 1.05, said) if plan.side == SMALL else Row(what, on, f"{found}{said}")
    running = less("dump", "start")
    yield Row(
        "the same without its start (building the teacher, digests of data and weights)",
        on,
        f"{ratio(running, times['bare'])}; {rate(plan.rows, running):,.0f} images/s",
    )
    if plan.longer:
        further = [time / (plan.longer - 1) for time in less("longer", "dump")]
        yield at_most(
            "what a longer dump takes for each further image / bare",
            f"{on}; {plan.longer} times the rows",
            ratio(further, times["bare"]),
            1.05,
            f"; {rate(plan.rows, further):,.0f} against {rates['bare']:,.0f} images/s",
        )
    if plan.topk:
        yield Row("top-50 in the place of dense: dump / bare", on, str(ratio(times["topk"], times["bare"])))
    slower = [max(a, b) for a, b in zip(times["bare"], times["loading"], strict=True)]
    bound = "loading" if rates["loading"] < rates["bare"] else "the teacher"
    yield Row(
        "dump without its start / the slower of loading and teacher alone",
        on,
        f"{ratio(running, slower)}; bound by {bound}",
    )
    rest = less("rest", "rest start")
    medians = {name: statistics.median(times[name]) for name in ("loading", "bare", "start")}
    yield Row(
        "each alone: loading; teacher; the rest; start",
        on,
        f"{medians['loading']:.2f} s ({rates['loading']:,.0f} images/s); {medians['bare']:.2f} s; "
        f"{statistics.median(rest):.2f} s ({1e6 * statistics.median(rest) / plan.rows:.1f} us an example); "
        f"{medians['start']:.2f} s",
    )


def bare(config: dump.DumpConfig, plan: Plan, device: torch.device) -> Callable[[], float]:
    """A contender: the teacher of ``config`` over as many batches as its dump has."""
    make = getattr(vision, plan.teacher)
    teacher = frozen(make(**parse_arguments(config.teacher_args, "--teacher-args"))).to(device)
    data = vision.Pictures(plan.rows, plan.side)
    size = config.batch_size
    held: list[Tensor] = []
    for number in range(min(HELD, plan.rows // size)):
        batch = torch.stack([data.load(row) for row in range(number * size, (number + 1) * size)])
        held.append(batch.pin_memory() if device.type == "cuda" else batch)

    def passes() -> None:
        with torch.inference_mode():
            for batch in itertools.islice(itertools.cycle(held), -(-plan.rows // size)):
                with autocast(device, plan.precision):
                    teacher(batch.to(device, non_blocking=True))

    return lambda: synchronised(device, passes)


def loaded(config: dump.DumpConfig, plan: Plan, device: torch.device) -> None:
    """All inputs of a dump, batch by batch, as it loads them."""
    rows, size = range(plan.rows), config.batch_size
    batches = [[(row, 0) for row in rows[first : first + size]] for first in range(0, plan.rows, size)]
    data = vision.Pictures(plan.rows, plan.side)
    for _ in input_loader(data, Views(), batches, config.workers, pin_memory=device.type == "cuda"):
        pass
