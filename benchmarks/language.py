"""Language models: a step fed from sampled labels, decoding them, and what a dump adds to its teacher."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.language_dumping import dumping
from benchmarks.long_tail import Teacher
from benchmarks.measure import Row, Settings, Table, at_most, in_turn, ratio, seconds
from benchmarks.synthetic_text import BATCH, DRAWS, LENGTH, VOCABULARY, Text, gpt
from pipeline import dump
from pipeline.encodings import Sampled, position_keys
from pipeline.encodings.encode_torch import encode
from pipeline.sampler import Order, Rows
from pipeline.softlabels import Sampled as SampledLabels
from pipeline.softlabels import SoftLabels
from pipeline.sources import CachedLabels
from pipeline.store import Cache, open_cache
from pipeline.training.causal import CausalLearner
from pipeline.training.objective import Batch, Objective

DECODED = 4096

Supply = Iterator[tuple[Tensor, Batch]]


def run(settings: Settings) -> Table:
    """Steps, decoding and dumping, of sampled labels."""
    sections = {"decode": decoding, "step": steps, "dump": dumping}
    found = [row for name in settings.chosen(sections) for row in sections[name](settings)]
    return Table(
        "Language models",
        found,
        (
            f"Sampled labels: {DRAWS} draws, systematic, of the long-tailed teacher of `benchmarks.long_tail`. "
            f"{torch.get_num_threads()} threads of torch, but where a row says one core.",
            f"A step: {BATCH} sequences of {LENGTH} positions, V = {VOCABULARY:,}, a gpt, the fused loss of sampled "
            "labels at T = 1 and hard ones, AdamW. Labels in RAM are those of all sequences, decoded, of which a step "
            "selects its rows.",
            "Decoding: from the arrays as they are stored, in memory, to ids, weights and offsets.",
            "The dump is what grows with the data: `write_parts` of a job that is prepared (loading, body, logits, "
            "encoding, fidelity, writing, hashing, fsync); the bare forward pass gives logits in batches that already "
            "lie in RAM, and throws them away.",
            "Ratios are of processor time, of all threads of the process: what others do with the machine does not "
            "count, and neither does waiting, of which the labels of a step alone would show some.",
            "A round varies by 5 to 10%, for a rented processor shares its clock rate and memory, so there are many. "
            "'Within' is twice the standard error of a median, estimated from the rounds' middle half.",
        ),
    )


def decoding(settings: Settings) -> list[Row]:
    """Positions a second on one core."""
    rows = settings.pick(1 << 14, 1 << 9)
    teacher, encoding = Teacher.make(), Sampled(n=DRAWS)
    pieces = []
    for first in range(0, rows, DECODED):
        logits = teacher.logits(teacher.hidden(min(DECODED, rows), seed=first))
        pieces.append(encode(encoding, logits, position_keys(first, len(logits))))
    arrays = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    classes = len(teacher.bias)
    unique = len(encoding.decode(arrays, classes).ids) / rows
    taken = [seconds(lambda: encoding.decode(arrays, classes)) for _ in range(9)]
    rate = rows / statistics.median(taken)
    aim = 3_000_000
    return [
        Row(
            "decoding sampled labels, positions a second, one core",
            f"V = {classes:,}, {unique:.1f} ids for each position",
            f"{rate / 1e6:.2f} million ({rate * unique / 1e6:.0f} million ids)",
            f"at least {aim / 1e6:.0f} million at 12 ids",
            bool(rate * unique / 12 >= aim),
        )
    ]


@dataclass(frozen=True)
class Student:
    """A student of a size."""

    width: int
    layers: int
    steps: int
    rounds: int


def steps(settings: Settings) -> list[Row]:
    """A step fed from the cache against the same with its labels in RAM, and with hard labels alone."""
    rows = settings.pick(128, 32)
    vocabulary = settings.pick(VOCABULARY, 1000)
    data, cache = Text(rows, vocabulary), dumped(settings, rows, vocabulary)
    source, found = CachedLabels(cache, data, resident="none"), []
    plans = [Student(128, 2, 4, 3)] if settings.quick else [Student(256, 4, 6, 24)]
    inputs = torch.stack([data.load(row) for row in range(rows)])
    targets = torch.from_numpy(data.targets(np.arange(rows)))
    for plan in plans:
        model = gpt(vocabulary, plan.width, plan.layers)
        step, order = Step(model), source.order(BATCH, drop_last=True)
        supplies = {
            "cache": from_cache(source, order, inputs, targets),
            "ram": from_ram(source, order, inputs, targets),
            "hard": (
                (inputs[torch.from_numpy(r)], Batch(targets[torch.from_numpy(r)].flatten())) for r in forever(order)
            ),
        }
        each = {name: waited(supplies[name], settings.pick(256, 4)) for name in ("cache", "ram")}
        alone = "; ".join(f"{1e3 * clock:.2f} ms ({1e3 * processor:.2f})" for clock, processor in each.values())
        times = in_turn({name: step.times(supply, plan.steps) for name, supply in supplies.items()}, plan.rounds)
        supplies["cache"].close()  # type: ignore[attr-defined]
        milliseconds = {name: 1e3 * statistics.median(each) / plan.steps for name, each in times.items()}
        on = f"gpt-{plan.width}, {plan.layers} layers; hard labels alone {milliseconds['hard']:.0f} ms of processor"
        fed, alike = ratio(times["cache"], times["ram"]), ratio(times["cache"], times["hard"])
        found += [
            at_most(
                "a step fed from the cache / the same with its labels in RAM",
                on,
                fed,
                1.03,
                f"; {milliseconds['cache']:.0f} ms; {fed.sure()}",
            ),
            Row("a step fed from the cache / with hard labels alone", on, f"{alike}; {alike.sure()}"),
            Row("the labels of a step alone, by the clock (of processor): out of the cache; in RAM", on, alone),
        ]
    return found


class Step:
    """Training steps of one model, whatever supplies their labels."""

    def __init__(self, model: nn.Module) -> None:
        self.learner = CausalLearner(model, fused=True).train()
        self.objective = Objective(alpha=0.9, beta=0.1, temperature=1.0)
        self.hard = Objective(alpha=0.0, beta=1.0, temperature=1.0)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def __call__(self, x: Tensor, batch: Batch) -> None:
        """One step."""
        objective = self.hard if batch.soft is None else self.objective
        (objective(self.learner(x), batch).total / len(batch.labels)).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()

    def times(self, supply: Supply, count: int) -> Callable[[], float]:
        """A contender: the seconds of processor time that the next ``count`` batches of ``supply`` take."""

        def timed() -> float:
            began = time.process_time()
            for x, batch in itertools.islice(supply, count):
                self(x, batch)
            return time.process_time() - began

        return timed


def waited(supply: Supply, count: int) -> tuple[float, float]:
    """Seconds until a batch is there with its labels, by the clock and of processor: a mean over the next ``count``."""
    next(supply)
    began = time.process_time()
    clock = seconds(lambda: list(itertools.islice(supply, count)))
    return clock / count, (time.process_time() - began) / count


def forever(order: Order) -> Iterator[Rows]:
    """The batches of one epoch after another."""
    return itertools.chain.from_iterable(order.epoch(number) for number in itertools.count())


def from_cache(source: CachedLabels, order: Order, inputs: Tensor, targets: Tensor) -> Supply:
    """Labels streamed from the cache, as ``train`` streams them."""
    for number in itertools.count():
        with source.stream(order, number) as stream:
            for rows in order.epoch(number):
                index = torch.from_numpy(rows)
                yield inputs[index], Batch(targets[index].flatten(), stream.next(inputs, rows))


def from_ram(source: CachedLabels, order: Order, inputs: Tensor, targets: Tensor) -> Supply:
    """All labels decoded in memory, from which each step selects its rows."""
    (everything,) = whole(source)
    place = torch.arange(inputs.shape[1])
    for rows in forever(order):
        index = torch.from_numpy(rows)
        positions = (index[:, None] * inputs.shape[1] + place).flatten()
        yield inputs[index], Batch(targets[index].flatten(), everything.select(positions))


def whole(source: CachedLabels) -> list[SoftLabels]:
    """The labels of all rows, in order, as one batch."""
    with source.stream(source.order(len(source.rows), shuffle=False), 0) as stream:
        return [soft for _, soft in stream]


def dumped(settings: Settings, rows: int, vocabulary: int) -> Cache:
    """A cache of sampled labels of ``rows`` sequences."""
    out = settings.scratch / "cache"
    dump.run(
        dump.DumpConfig(
            data="benchmarks.synthetic_text:Text",
            data_args=(f"rows={rows},vocabulary={vocabulary}",),
            teacher="benchmarks.synthetic_text:sure",
            out=out,
            encoding="sampled",
            draws=DRAWS,
            part_size=64,
            device="cpu",
        )
    )
    cache = open_cache(out)
    if not isinstance(cache.decode(cache.read_part(0)), SampledLabels):
        raise TypeError("sampled labels were dumped")
    return cache
