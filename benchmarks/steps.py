"""A training step fed from the cache, against the same step with labels in RAM, cross-entropy, and a live teacher."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Row, Settings, Table, at_most, in_turn, ratio
from benchmarks.synthetic import Points, depth_for, dumped, network
from pipeline.losses import distillation_loss, hard_loss
from pipeline.sampler import Order, Rows
from pipeline.softlabels import Dense, SoftLabels
from pipeline.sources import CachedLabels, LiveTeacher

BATCH = 256
PART = 1024
TEMPERATURE = 4.0

Supply = Iterator[tuple[Tensor, Rows, SoftLabels | None]]
"""Batch after batch: inputs, dataset rows and, where the loss wants them, soft labels."""


@dataclass(frozen=True)
class Student:
    """A student of ``target`` seconds per cross-entropy step: its width, and how long to look at it."""

    target: float
    width: int
    steps: int
    rounds: int
    live_steps: int


STUDENTS = (Student(0.005, 256, 128, 7, 16), Student(0.020, 512, 64, 5, 8), Student(0.100, 1024, 12, 5, 3))
QUICK = (Student(0.005, 128, 4, 2, 2),)


def run(settings: Settings) -> Table:
    """The ratios of one step to another, for students of three sizes."""
    rows = settings.pick(32 * PART, 2 * PART)
    cache = dumped(settings.scratch / "cache", rows, part_size=PART)
    data = Points(rows)
    source = CachedLabels(cache, data, resident="none")
    kept = CachedLabels(cache, data)
    found: list[Row] = []
    for student in QUICK if settings.quick else STUDENTS:
        found += measure(student, source, kept, data)
    return Table(
        "Training steps",
        found,
        (
            f"{rows:,} examples of 1,000 classes, float16, in parts of {PART:,}: an epoch is {rows // BATCH} steps "
            f"and reads {max(1, rows // PART // 8)} windows of 8 parts, whose cost, like that of opening each epoch, "
            f"is in the steps. Files in the page cache, {torch.get_num_threads()} threads of torch, so that reading "
            "competes with the student for cores.",
            "A step gathers its inputs from RAM, runs the student forward and back, and updates it with SGD. "
            f"Distillation is T^2 KL at T = {TEMPERATURE:g}; labels in RAM are one float32 tensor of all of them, "
            "from which a step gathers its rows as it gathers its inputs. Labels of less than 256 MiB are kept in "
            "memory unless told otherwise (`--resident auto`); these take 66 MB, so that streaming is asked for.",
            "Students are residual networks of linear layers, as deep as the named cross-entropy step needs on this "
            "machine; the live teacher has ten times the student's layers.",
        ),
    )


def measure(student: Student, source: CachedLabels, kept: CachedLabels, data: Points) -> list[Row]:
    """The rows of one student."""
    labels = torch.from_numpy(data.labels)
    inputs = data.inputs(np.arange(len(data)))
    depth = depth_for(student.target, student.width, lambda model: one_step(model, inputs, labels))
    model = network(student.width, depth)
    teacher = LiveTeacher(network(student.width, 10 * depth), 1000)
    order = source.order(BATCH, drop_last=True)
    step = Step(model, labels)
    supplies = {
        "cache": from_cache(source, order, inputs),
        "kept": from_cache(kept, order, inputs),
        "ram": from_ram(source, order, inputs),
        "ready": from_ready(source, order, inputs),
        "hard": ((inputs[torch.from_numpy(rows)], rows, None) for rows in forever(order)),
    }
    contenders = {name: step.times(supply, student.steps) for name, supply in supplies.items()}
    times = in_turn(contenders, student.rounds)
    live = {
        "cache": step.times(supplies["cache"], student.live_steps),
        "live": step.times(from_teacher(teacher, order, inputs), student.live_steps),
    }
    beside = in_turn(live, min(3, student.rounds))
    supplies["cache"].close()  # type: ignore[attr-defined]
    milliseconds = {name: 1e3 * statistics.median(each) / student.steps for name, each in times.items()}
    on = f"{BATCH} x 1,000; student of {milliseconds['hard']:.1f} ms"
    against = ratio(times["cache"], times["hard"])
    name = "streamed / a cross-entropy step"
    cheap = at_most(name, on, against, 1.05) if student.target == 0.100 else Row(name, on, str(against))
    return [
        at_most(
            "a step fed from the cache, labels streamed / with its labels in RAM",
            on,
            ratio(times["cache"], times["ram"]),
            1.03,
            f"; {milliseconds['cache']:.2f} against {milliseconds['ram']:.2f} ms",
        ),
        at_most(
            "a step fed from the cache, labels kept / with its labels in RAM",
            on,
            ratio(times["kept"], times["ram"]),
            1.03,
            f"; {milliseconds['kept']:.2f} ms",
        ),
        Row(
            "streamed / with batches of labels that lie ready, not even gathered",
            on,
            f"{ratio(times['cache'], times['ready'])}; {milliseconds['ready']:.2f} ms",
        ),
        cheap,
        Row("a step with the live teacher / fed from the cache", on, str(ratio(beside["live"], beside["cache"]))),
    ]


class Step:
    """Training steps of one model, whatever supplies their labels."""

    def __init__(self, model: nn.Module, labels: Tensor) -> None:
        self.model, self.labels = model, labels
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def __call__(self, inputs: Tensor, rows: Rows, soft: SoftLabels | None) -> None:
        """One step."""
        logits = self.model(inputs)
        if soft is None:
            loss = hard_loss(logits, self.labels[torch.from_numpy(rows)])
        else:
            loss = distillation_loss(logits, soft, temperature=TEMPERATURE)
        loss.mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def times(self, supply: Supply, steps: int) -> Callable[[], float]:
        """A contender: the seconds that the next ``steps`` batches of ``supply`` take."""

        def timed() -> float:
            began = time.perf_counter()
            for inputs, rows, soft in itertools.islice(supply, steps):
                self(inputs, rows, soft)
            return time.perf_counter() - began

        return timed


def one_step(model: nn.Module, inputs: Tensor, labels: Tensor) -> Callable[[], object]:
    """A cross-entropy step, over and over on the same batch."""
    step, rows = Step(model, labels), np.arange(BATCH)
    return lambda: step(inputs[:BATCH], rows, None)


def forever(order: Order) -> Iterator[Rows]:
    """The batches of one epoch after another."""
    return itertools.chain.from_iterable(order.epoch(number) for number in itertools.count())


def from_cache(source: CachedLabels, order: Order, inputs: Tensor) -> Supply:
    """Labels streamed from the cache, as ``train`` streams them."""
    for number in itertools.count():
        with source.stream(order, number) as stream:
            for rows in order.epoch(number):
                batch = inputs[torch.from_numpy(rows)]
                yield batch, rows, stream.next(batch, rows)


def from_ram(source: CachedLabels, order: Order, inputs: Tensor) -> Supply:
    """All labels as one float32 tensor in memory, from which each step gathers its rows."""
    held: list[Tensor] = []
    with source.stream(source.order(BATCH, shuffle=False), 0) as stream:
        held += [dense(soft).logits for _, soft in stream]
    everything = torch.cat(held)
    del held
    for rows in forever(order):
        index = torch.from_numpy(rows)
        yield inputs[index], rows, Dense(everything.index_select(0, index))


def from_ready(source: CachedLabels, order: Order, inputs: Tensor, batches: int = 32) -> Supply:
    """The same few batches of labels over and over, with nothing left to gather: less than any shuffled epoch needs."""
    with source.stream(order, 0) as stream:
        held = [(rows, Dense(dense(soft).logits.clone())) for rows, soft in itertools.islice(stream, batches)]
    for rows, soft in itertools.cycle(held):
        yield inputs[torch.from_numpy(rows)], rows, soft


def dense(soft: SoftLabels) -> Dense:
    """These labels, which are dense."""
    if not isinstance(soft, Dense):
        raise TypeError(f"dense labels were dumped, found {type(soft).__name__}")
    return soft


def from_teacher(teacher: LiveTeacher, order: Order, inputs: Tensor) -> Supply:
    """Labels that a teacher computes from the inputs of the step."""
    for rows in forever(order):
        batch = inputs[torch.from_numpy(rows)]
        yield batch, rows, teacher.next(batch, rows)
