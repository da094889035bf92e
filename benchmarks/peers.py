"""Peers of one kind, their weights stacked, against the same peers one after another in each step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.measure import Row, Settings, Table, in_turn, rate, ratio
from pipeline.training import Prepared, TrainConfig, fit, prepare
from pipeline.training.cohort import Cohort
from pipeline.training.members import Team
from pipeline.training.peers import FEWEST, Peers, with_peers
from pipeline.training.stage import initial_student

STUDENT = "mlp-16"
COUNTS = (2, 4, 6, 16)
EXCHANGES = ("mutual", "ensemble")


def run(settings: Settings) -> Table:
    """Steps per second of 2 to 16 peers, for each way of learning from each other that has equals."""
    epochs, rounds = settings.pick(5, 1), settings.pick(7, 1)
    base = {"data": "digits", "student": STUDENT, "device": "cpu", "threads": 1, "epochs": epochs}
    threads = torch.get_num_threads()
    rows: list[Row] = []
    try:
        for exchange in EXCHANGES:
            config = TrainConfig(out=settings.scratch / "run", peers=COUNTS[0], exchange=exchange, **base)
            prepared = prepare(config)
            rows += [measure(replace(config, peers=count), prepared, rounds) for count in COUNTS]
    finally:
        torch.set_num_threads(threads)
    return Table(
        "Peers",
        rows,
        (
            f"Both sides call the same `fit` on inputs kept in memory, batches of {config.batch_size}, hard labels, "
            "with validation each epoch; one thread of torch. The peers are made outside of the time, and stacked "
            f"whatever their number; train does so on a CPU from {FEWEST} on.",
        ),
    )


def measure(config: TrainConfig, prepared: Prepared, rounds: int) -> Row:
    """A row for the peers of ``config``."""
    times = in_turn({"stacked": fitted(config, prepared, Cohort), "apart": fitted(config, prepared, Team)}, rounds)
    steps = config.epochs * -(-sum(map(len, prepared.task.blocks)) // config.batch_size)
    rates = {name: rate(steps, each) for name, each in times.items()}
    return Row(
        "one by one / stacked, time",
        f"{config.peers} {STUDENT}, {config.exchange}, digits, {config.epochs} epochs",
        f"{ratio(times['apart'], times['stacked'])}; {rates['stacked']:,.0f} against {rates['apart']:,.0f} steps/s",
    )


def fitted(config: TrainConfig, prepared: Prepared, kind: type[Cohort] | type[Team]) -> Callable[[], float]:
    """A contender: a fit of the peers that ``train`` makes, stacked or one by one whatever it would choose."""

    def timed() -> float:
        student = initial_student(config, prepared.dataset, 0)
        made = with_peers(student, config, prepared.dataset, 0)
        peers = Peers(kind(made.members()), gated=made.gate is not None)
        began = time.perf_counter()
        fit(peers, prepared.task, config, seed=0)
        return time.perf_counter() - began

    return timed
