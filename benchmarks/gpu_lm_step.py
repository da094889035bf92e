"""A whole training step of a language model on a GPU: sampled labels out of a cache, in memory, and hard ones alone."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.measure import Row, Settings, at_most, in_turn, ratio, seconds, synchronised
from benchmarks.synthetic_text import DRAWS, Text
from pipeline import dump
from pipeline.devices import autocast
from pipeline.sampler import Order
from pipeline.softlabels import Sampled
from pipeline.training import Objective, TrainConfig, prepare
from pipeline.training.causal import CausalLearner
from pipeline.training.objective import Batch
from pipeline.training.optimisation import make_optimizer
from pipeline.training.stage import initial_student
from pipeline.training.supply import Supply

PRECISION = "bfloat16"
HARD = Objective(alpha=0.0, beta=1.0, temperature=1.0)

Batches = Iterator[tuple[Tensor, Batch]]


@dataclass(frozen=True)
class Student:
    """A student, its data, and how long to look at it. An epoch has ``steps`` steps of ``batch`` sequences."""

    width: int
    layers: int
    vocabulary: int
    length: int
    batch: int
    steps: int
    rounds: int

    @property
    def rows(self) -> int:
        """Sequences."""
        return self.steps * self.batch

    @property
    def data_args(self) -> tuple[str, ...]:
        """Of ``benchmarks.synthetic_text:Text``."""
        return (f"rows={self.rows},vocabulary={self.vocabulary},length={self.length}",)


STUDENT = Student(1536, 16, 128_256, 1024, 8, 24, 3)
QUICK = Student(32, 1, 1000, 16, 4, 3, 1)

NOTES = (
    f"A training step: {STUDENT.batch} sequences of {STUDENT.length:,} positions, V = {STUDENT.vocabulary:,}, "
    f"student and loss under autocast ({PRECISION}), weights and fused AdamW in float32, uncompiled student. Sampled "
    f"labels are {DRAWS} draws of the long-tailed teacher of `benchmarks.long_tail`, 0.9 of the loss, hard ones 0.1. "
    "Inputs, positions and labels come as `train` supplies them: streamed (`--resident none`), or from memory as they "
    "are stored (`ram`). Labels that are ready were decoded, and lie batch by batch on the device. A round is an "
    "epoch, opening included, so that nothing is read ahead while another contender runs.",
)


def measure(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Rows of one student."""
    student = QUICK if settings.quick else STUDENT
    torch.compiler.reset()  # or what other sections have compiled would count towards the most that is kept
    out = settings.scratch / "cache"
    taken = seconds(lambda: dump.run(_dump(student, out, device)))  # type: ignore[arg-type]
    task = prepare(_train(student, out, "none", device)).task
    order = Order(task.blocks, student.batch)
    objective = task.objective
    supply = Supply(task, order)
    ram = Supply(prepare(_train(student, out, "ram", device)).task, order)
    with closing(supply.epoch(objective, 0, 0, 0)) as batches:
        ready = [batch.soft for _, batch in batches]
    ids = statistics.mean(len(soft.ids) / len(soft) for soft in ready if isinstance(soft, Sampled))
    step = Step(student, device)
    epochs = itertools.count()
    contenders: dict[str, Callable[[], float]] = {
        "cache": lambda: step.epoch(supply.epoch(objective, next(epochs), 0, 0), objective),
        "ram": lambda: step.epoch(ram.epoch(objective, 0, 0, 0), objective),
        "ready": lambda: step.epoch(with_labels(supply.epoch(HARD, 0, 0, 0), ready), objective),
        "hard": lambda: step.epoch(supply.epoch(HARD, 0, 0, 0), HARD),
        "whole": lambda: step.epoch(supply.epoch(HARD, 0, 0, 0), None),
    }
    times = in_turn(contenders, student.rounds)
    each = {name: 1e3 * statistics.median(taken) / student.steps for name, taken in times.items()}
    on = (
        f"gpt-{student.width}, {student.layers} layers, {step.parameters / 1e6:.0f}M parameters, "
        f"{student.batch * student.length:,} positions of {ids:.1f} ids; hard labels alone {each['hard']:.1f} ms"
    )
    for under, said in (
        ("hard", "a fused cross-entropy step with hard labels alone"),
        ("ready", "the same with its labels ready on the device"),
        ("ram", "the same with its labels in RAM"),
    ):
        yield at_most(
            f"a step with sampled and hard labels out of a cache / {said}",
            on,
            ratio(times["cache"], times[under]),
            1.03,
            f"; {each['cache']:.1f} against {each[under]:.1f} ms",
        )
    yield Row(
        "a fused cross-entropy step / one of torch over all logits",
        on,
        f"{ratio(times['hard'], times['whole'])}; {each['hard']:.1f} against {each['whole']:.1f} ms",
    )
    seen = {name: step.most_held(lambda name=name: contenders[name]()) for name in ("cache", "hard", "whole")}  # type: ignore[misc]
    if device.type == "cuda":
        held = "; ".join(f"{name} {most / 2**30:.1f} GiB" for name, most in seen.items())
        yield Row("most memory of an epoch on the device", on, held)
    yield Row("the dump of its labels, whole", on, f"{taken:.1f} s for {student.rows * student.length:,} positions")


class Step:
    """Training steps of one student, whatever supplies their labels."""

    def __init__(self, student: Student, device: torch.device) -> None:
        self.device = device
        config = _train(student, Path("cache"), "none", device)
        with device:  # hundreds of millions of random numbers
            self.model = initial_student(config, Text(1, student.vocabulary, student.length), 0)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.fused = CausalLearner(self.model, fused=True).train()
        self.whole = CausalLearner(self.model, fused=False).train()
        self.optimizer = make_optimizer(self.fused, config)

    def epoch(self, batches: Batches, objective: Objective | None) -> float:
        """The seconds of steps over ``batches``; ``objective`` None is torch's cross-entropy over all logits."""

        def action() -> None:
            with closing(batches):  # type: ignore[type-var]
                for x, batch in batches:
                    self(x, batch, objective)

        return synchronised(self.device, action)

    def __call__(self, x: Tensor, batch: Batch, objective: Objective | None) -> None:
        """One step."""
        with autocast(self.device, PRECISION):
            if objective is None:
                loss = functional.cross_entropy(self.whole(x, batch.index).logits, batch.labels)
            else:
                loss = objective(self.fused(x, batch.index), batch).total / len(batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()

    def most_held(self, action: Callable[[], object]) -> int:
        """The most bytes on a GPU while ``action`` runs, weights and the optimiser's state included."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            action()
            return torch.cuda.max_memory_allocated(self.device)
        return 0


def with_labels(batches: Batches, labels: list) -> Batches:  # type: ignore[type-arg]
    """Batches of the same order with soft labels that are there already."""
    with closing(batches):  # type: ignore[type-var]
        for (x, batch), soft in zip(batches, labels, strict=True):
            yield x, replace(batch, soft=soft)


def _dump(student: Student, out: Path, device: torch.device) -> dump.DumpConfig:
    return dump.DumpConfig(
        data="benchmarks.synthetic_text:Text",
        data_args=student.data_args,
        teacher="benchmarks.synthetic_text:sure",
        out=out,
        encoding="sampled",
        draws=DRAWS,
        part_size=2 * student.batch,
        batch_size=student.batch,
        device=device.type,
    )


def _train(student: Student, cache: Path, resident: str, device: torch.device) -> TrainConfig:
    return TrainConfig(
        data="benchmarks.synthetic_text:Text",
        data_args=student.data_args,
        cache=str(cache),
        resident=resident,
        student=f"gpt-{student.width}",
        student_args=(f"layers={student.layers}",),
        alpha=0.9,
        beta=0.1,
        temperature=1.0,
        batch_size=student.batch,
        precision=PRECISION,
        lr=1e-4,
        device=device.type,
        out=cache.parent / "run",
    )
