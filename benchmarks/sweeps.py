"""The students of a sweep, trained together, against the same students trained one after another."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from benchmarks.measure import Row, Settings, Table, in_turn, rate, ratio
from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.models import build_model, save_weights
from pipeline.training import Objective, Prepared, TrainConfig, fit, prepare
from pipeline.training.cohort import together
from pipeline.training.shared import Shared
from pipeline.training.stage import initial_student

STUDENT = "mlp-16"
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
ALPHAS = (0.3, 0.5, 0.7, 0.9)
LOSSES = ("kl", "reverse-kl", "jensen-shannon", "skewed-kl")


def run(settings: Settings) -> Table:
    """Students per minute for 16 of them (temperatures and weights) and 64 (losses too)."""
    torch.manual_seed(0)
    teacher = build_model("mlp-64", {}, classes=10, input_shape=(1, 8, 8))
    save_weights(settings.scratch / "teacher.safetensors", teacher, {})
    cache = settings.scratch / "cache"
    weights = settings.scratch / "teacher.safetensors"
    dump(DumpConfig(data="digits", teacher="mlp-64", weights=weights, out=cache, device="cpu"))
    epochs, rounds = settings.pick(5, 1), settings.pick(5, 1)
    base = {"data": "digits", "cache": str(cache), "student": STUDENT, "device": "cpu", "threads": 1}
    config = TrainConfig(out=settings.scratch / "run", epochs=epochs, **base)
    threads = torch.get_num_threads()
    try:
        rows = measure(config, settings, rounds)
    finally:
        torch.set_num_threads(threads)
    return Table(
        "Sweeps",
        rows,
        (
            f"Both sides call the same `fit` on labels and inputs kept in memory, batches of {config.batch_size}, with "
            f"validation each epoch; one thread of torch, the fastest for either. A cohort is made, compared with its "
            "members and taken apart again in its time. A teacher with random weights gave the labels: figures of "
            "speed alone.",
            f"Students differ in temperature ({', '.join(f'{t:g}' for t in TEMPERATURES)}) and alpha "
            f"({', '.join(f'{a:g}' for a in ALPHAS)}); 64 of them in the loss too ({', '.join(LOSSES)}).",
        ),
    )


def measure(config: TrainConfig, settings: Settings, rounds: int) -> list[Row]:
    """A row for 16 students, and one for 64."""
    prepared = prepare(config)
    rows: list[Row] = []
    for losses in (LOSSES[:1], LOSSES):
        goals = [
            Objective(alpha=alpha, beta=1 - alpha, temperature=temperature, loss=loss)
            for loss, temperature, alpha in itertools.product(losses, TEMPERATURES, ALPHAS)
        ]
        goals = goals if not settings.quick else goals[:: len(goals) // 4]
        contenders = {"together": as_one(config, prepared, goals), "alone": one_by_one(config, prepared, goals)}
        times = in_turn(contenders, rounds)
        faster, count = ratio(times["alone"], times["together"]), len(goals)
        on = f"{count} {STUDENT}, digits, {config.epochs} epochs"
        per_minute = {name: 60 * rate(count, each) for name, each in times.items()}
        said = f"{faster}; {per_minute['together']:,.0f} against {per_minute['alone']:,.0f} students a minute"
        rows.append(Row("one after another / as one cohort, time", on, said))
    return rows


def as_one(config: TrainConfig, prepared: Prepared, goals: Sequence[Objective]) -> Callable[[], float]:
    """A contender: the students of one seed as a sweep trains them."""

    def timed() -> float:
        began = time.perf_counter()
        task = replace(prepared.task, objective=Shared(tuple(goals)))
        models = [initial_student(config, prepared.dataset, 0) for _ in goals]
        members, why = together(models, task.example)
        if why:
            raise RuntimeError(f"{STUDENT} was expected to be stacked: {why}")
        fit(members, task, config, seed=0)
        members.members()
        return time.perf_counter() - began

    return timed


def one_by_one(config: TrainConfig, prepared: Prepared, goals: Sequence[Objective]) -> Callable[[], float]:
    """A contender: the same students, a fit each."""

    def timed() -> float:
        began = time.perf_counter()
        for goal in goals:
            model = initial_student(config, prepared.dataset, 0)
            fit(model, replace(prepared.task, objective=goal), config, seed=0)
        return time.perf_counter() - began

    return timed
