"""A training step on a GPU fed from a cache, against labels that lie on the device, and against cross-entropy."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Row, Settings, at_most, in_turn, ratio, synchronised
from benchmarks.synthetic import Points
from benchmarks.vision import resnet
from pipeline import dump
from pipeline.devices import autocast
from pipeline.losses import distillation_loss, hard_loss
from pipeline.sampler import Order, Rows
from pipeline.softlabels import Dense, SoftLabels
from pipeline.sources import CachedLabels, LiveTeacher
from pipeline.store import Cache, open_cache

BATCH = 256
PART = 1024
TEMPERATURE = 4.0
PRECISION = "bfloat16"
RESIDENT = ("none", "ram", "device")

Supply = Iterator[tuple[Tensor, Tensor, SoftLabels | None]]
"""Batch after batch, on the device: inputs, dataset rows and, where the loss wants them, soft labels."""

NOTES = (
    f"A step gathers {BATCH} inputs from the device's own memory, runs the student forward and back under autocast "
    f"({PRECISION}) and updates it with SGD; T^2 KL at T = {TEMPERATURE:g}. Labels are of 1,000 classes in float16, "
    "and read as `train` reads them: streamed (`--resident none`), from memory (`ram`) or from the device "
    "(`device`). Those already on the device are one float32 tensor of all of them, from which a step gathers its "
    "rows. The opening of epochs is in the steps. Each round of steps ends when the device is done.",
    "The live teacher is a ResNet-50 with random weights, in the same precision, on the inputs of the step.",
)


@dataclass(frozen=True)
class Student:
    """A residual network, the pictures that it sees, and how long to look at it."""

    name: str
    depth: int
    width: int
    side: int
    pictures: int
    steps: int
    rounds: int
    live: bool = False


STUDENTS = (
    Student("ResNet-10 of width 16, 32 px", 10, 16, 32, 8192, 128, 5),
    Student("ResNet-18, 224 px", 18, 64, 224, 1024, 24, 4, live=True),
)
QUICK = (Student("a tiny ResNet, 32 px", 10, 4, 32, 64, 2, 1, live=True),)


def measure(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Rows for each student."""
    rows = settings.pick(32 * PART, 4 * BATCH)
    data = Points(rows)
    dense = dumped(settings, rows)
    topk = dumped(settings, rows, encoding="topk", k=50)
    for student in QUICK if settings.quick else STUDENTS:
        yield from one(student, settings, device, data, dense, topk)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def dumped(settings: Settings, rows: int, **options: object) -> Cache:
    """A float16 cache of synthetic distributions, dumped as anybody would."""
    out = settings.scratch / str(options.get("encoding", "dense"))
    base = {
        "data": "benchmarks.synthetic:Points",
        "data_args": (f"rows={rows}",),
        "teacher": "benchmarks.synthetic:opinion",
        "out": out,
        "dtype": "float16",
        "part_size": PART,
        "device": "cpu",
    }
    dump.run(dump.DumpConfig(**{**base, **options}))  # type: ignore[arg-type]
    return open_cache(out)


def one(
    student: Student, settings: Settings, device: torch.device, data: Points, dense: Cache, topk: Cache
) -> Iterator[Row]:
    """The rows of one student."""
    step = Step(student, torch.from_numpy(data.labels).to(device), device)
    sources = {name: CachedLabels(dense, data, device=device, resident=name) for name in RESIDENT}
    kept = {f"top-50, {name}": CachedLabels(topk, data, device=device, resident=name) for name in ("none", "device")}
    order = sources["none"].order(BATCH, drop_last=True)
    supplies: dict[str, Supply] = {
        name: from_cache(source, order, step) for name, source in {**sources, **kept}.items()
    }
    supplies["ready"] = from_device(sources["device"], order, step)
    supplies["hard"] = ((step.inputs(index), index, None) for index in indices(order, device))
    if student.live:
        teacher = LiveTeacher(
            resnet(settings.pick(50, 10), settings.pick(64, 4)), 1000, device=device, precision=PRECISION
        )
        supplies["live"] = from_teacher(teacher, order, step)
    with ExitStack() as opened:
        for supply in supplies.values():
            opened.enter_context(closing(supply))  # type: ignore[type-var]
        times = in_turn({name: step.times(supply, student.steps) for name, supply in supplies.items()}, student.rounds)
    each = {name: 1e3 * statistics.median(taken) / student.steps for name, taken in times.items()}
    on = f"{BATCH} x 1,000; {student.name}; {each['hard']:.2f} ms a cross-entropy step"
    for name in (*sources, *kept):
        yield at_most(
            f"a step fed from the cache ({name}) / with its labels already on the device",
            on,
            ratio(times[name], times["ready"]),
            1.03,
            f"; {each[name]:.2f} against {each['ready']:.2f} ms",
        )
    for name in ("none", "device"):
        yield Row(
            f"a step fed from the cache ({name}) / a cross-entropy step", on, str(ratio(times[name], times["hard"]))
        )
    if student.live:
        found = ratio(times["live"], times["none"])
        yield Row("a step with the live teacher / fed from the cache (none)", on, f"{found}; {each['live']:.2f} ms")


class Step:
    """Training steps of one student, whatever supplies their labels."""

    def __init__(self, student: Student, labels: Tensor, device: torch.device, *, compiled: bool = False) -> None:
        self.labels, self.device = labels, device
        self.model = resnet(student.depth, student.width).to(device).train()
        # Off a GPU only the plumbing is tried: a real compilation would take most of a minute.
        backend = "inductor" if device.type == "cuda" else "eager"
        self.forward: nn.Module = torch.compile(self.model, backend=backend) if compiled else self.model  # type: ignore
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        random = torch.Generator(device).manual_seed(0)
        shape = (student.pictures, 3, student.side, student.side)
        self.pictures = torch.rand(shape, device=device, generator=random)

    def inputs(self, index: Tensor) -> Tensor:
        """The inputs of some dataset rows, on the device."""
        return self.pictures.index_select(0, index % len(self.pictures))

    def __call__(self, inputs: Tensor, index: Tensor, soft: SoftLabels | None) -> None:
        """One step."""
        with autocast(self.device, PRECISION):
            logits = self.forward(inputs)
        if soft is None:
            loss = hard_loss(logits.float(), self.labels[index])
        else:
            loss = distillation_loss(logits.float(), soft, temperature=TEMPERATURE)
        loss.mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def times(self, supply: Supply, steps: int) -> Callable[[], float]:
        """A contender: the seconds that the next ``steps`` batches of ``supply`` take."""

        def taken() -> None:
            for inputs, index, soft in itertools.islice(supply, steps):
                self(inputs, index, soft)

        return lambda: synchronised(self.device, taken)


def compiled(settings: Settings, device: torch.device) -> Iterator[Row]:
    """What torch.compile gives each student, in cross-entropy steps on one batch."""
    labels = torch.arange(BATCH, device=device)
    for student in QUICK if settings.quick else STUDENTS:
        contenders: dict[str, Callable[[], float]] = {}
        first = 0.0
        torch.compiler.reset()  # or the pictures' other size would be taken for one that changes from step to step
        for name in ("eager", "compiled"):
            step = Step(student, labels, device, compiled=name == "compiled")
            batch = step.inputs(labels)
            first = step.times(iter([(batch, labels, None)]), 1)()
            contenders[name] = step.times(itertools.repeat((batch, labels, None)), student.steps)
        times = in_turn(contenders, student.rounds)
        each = {name: 1e3 * statistics.median(taken) / student.steps for name, taken in times.items()}
        yield Row(
            "a cross-entropy step compiled / eager",
            f"{student.name}, {BATCH} inputs, {PRECISION}",
            f"{ratio(times['compiled'], times['eager'])}; {each['compiled']:.2f} against {each['eager']:.2f} ms; "
            f"{first:.0f} s for the first step",
        )


def indices(order: Order, device: torch.device) -> Iterator[Tensor]:
    """The rows of one epoch's batches after another's, on the device."""
    for number in itertools.count():
        for rows in order.epoch(number):
            yield there(rows, device)


def there(rows: Rows, device: torch.device) -> Tensor:
    """Dataset rows on the device, copied as training copies them."""
    return torch.from_numpy(np.ascontiguousarray(rows)).to(device, non_blocking=True)


def from_cache(source: CachedLabels, order: Order, step: Step) -> Supply:
    """Labels out of the cache, as ``train`` reads them."""
    for number in itertools.count():
        with source.stream(order, number) as stream:
            for rows in order.epoch(number):
                index = there(rows, step.device)
                inputs = step.inputs(index)
                yield inputs, index, stream.next(inputs, rows)


def from_device(source: CachedLabels, order: Order, step: Step) -> Supply:
    """All labels as one float32 tensor on the device, from which each step gathers its rows."""
    with source.stream(source.order(BATCH, shuffle=False), 0) as stream:
        everything = torch.cat([soft.logits for _, soft in stream])
    for index in indices(order, step.device):
        yield step.inputs(index), index, Dense(everything.index_select(0, index))


def from_teacher(teacher: LiveTeacher, order: Order, step: Step) -> Supply:
    """Labels that a teacher computes from the inputs of the step."""
    for number in itertools.count():
        for rows in order.epoch(number):
            index = there(rows, step.device)
            inputs = step.inputs(index)
            yield inputs, index, teacher.next(inputs, rows)
