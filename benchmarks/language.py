"""Language models: a step fed from sampled labels, decoding them, and what a dump adds to its teacher."""

from __future__ import annotations

import itertools
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.long_tail import Teacher
from benchmarks.measure import Row, Settings, Table, at_most, in_turn, ratio, seconds
from pipeline import dump
from pipeline.datasets import Dataset
from pipeline.encodings import Sampled, position_keys
from pipeline.encodings.encode_torch import encode
from pipeline.models import build_model
from pipeline.sampler import Order, Rows
from pipeline.softlabels import Sampled as SampledLabels
from pipeline.softlabels import SoftLabels
from pipeline.sources import CachedLabels
from pipeline.store import Cache, open_cache
from pipeline.training.causal import CausalLearner
from pipeline.training.objective import Batch, Objective

VOCABULARY, LENGTH, BATCH = 32_000, 256, 8
DECODED, DRAWS = 4096, 50

Supply = Iterator[tuple[Tensor, Batch]]


class Text(Dataset):
    """``rows`` sequences of random tokens, frequent ones more often; every position is scored."""

    discrete = True

    def __init__(self, rows: int, vocabulary: int = VOCABULARY, length: int = LENGTH) -> None:
        random = np.random.default_rng(3)
        drawn = (vocabulary ** random.random((rows, length + 1)) - 1).astype(np.int64)
        self._tokens = np.minimum(drawn, vocabulary - 1)
        super().__init__(
            name=f"{rows} synthetic sequences",
            classes=[f"token {number}" for number in range(vocabulary)],
            ids=[f"sequence/{row:08d}" for row in range(rows)],
            splits=np.zeros(rows, np.int8),
            input_shape=(length,),
        )

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.full(len(self), self.input_shape[0], np.int64)

    def load(self, row: int) -> Tensor:
        return torch.from_numpy(self._tokens[row, :-1].copy())

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def targets(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self._tokens[rows, 1:]


class Sure(nn.Module):
    """A teacher that costs nothing to run: the long-tailed one of ``benchmarks.long_tail``, by the token it sees."""

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.teacher = Teacher.make(vocabulary)
        states = self.teacher.hidden(vocabulary, seed=1)
        self.body = nn.Embedding(vocabulary, states.shape[1], _weight=states)
        self.bias = nn.Parameter(self.teacher.bias)
        self.weight = nn.Parameter(self.teacher.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.linear(self.body(ids), self.weight, self.bias)


def sure(classes: int) -> nn.Module:
    """For ``--teacher benchmarks.language:sure``."""
    return Sure(classes)


def gpt(classes: int, width: int, layers: int) -> nn.Module:
    """For ``--teacher benchmarks.language:gpt``: random weights, and known to be meant so."""
    torch.manual_seed(0)
    return build_model(f"gpt-{width}", {"layers": layers}, classes=classes, input_shape=(LENGTH,), discrete=True)


def run(settings: Settings) -> Table:
    """Steps, decoding and dumping, of sampled labels."""
    found = [*decoding(settings), *steps(settings), *dumping(settings)]
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
            "The dump is the whole `dump.run` (teacher built and checked, digests, sampling, writing, fsync); the bare "
            "forward pass gives logits in batches that already lie in RAM, and throws them away.",
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
    plans = [Student(128, 2, 4, 3)] if settings.quick else [Student(256, 4, 6, 5)]
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
        times = in_turn({name: step.times(supply, plan.steps) for name, supply in supplies.items()}, plan.rounds)
        supplies["cache"].close()  # type: ignore[attr-defined]
        milliseconds = {name: 1e3 * statistics.median(each) / plan.steps for name, each in times.items()}
        on = f"gpt-{plan.width}, {plan.layers} layers; hard labels alone {milliseconds['hard']:.0f} ms"
        found += [
            at_most(
                "a step fed from the cache / the same with its labels in RAM",
                on,
                ratio(times["cache"], times["ram"]),
                1.03,
                f"; {milliseconds['cache']:.0f} ms",
            ),
            Row("a step fed from the cache / with hard labels alone", on, str(ratio(times["cache"], times["hard"]))),
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
        """A contender: the seconds that the next ``count`` batches of ``supply`` take."""

        def timed() -> float:
            began = time.perf_counter()
            for x, batch in itertools.islice(supply, count):
                self(x, batch)
            return time.perf_counter() - began

        return timed


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
            data="benchmarks.language:Text",
            data_args=(f"rows={rows},vocabulary={vocabulary}",),
            teacher="benchmarks.language:sure",
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


def dumping(settings: Settings) -> list[Row]:
    """What a dump of sampled, and of top-k labels adds to the teacher's forward pass."""
    rows, vocabulary = settings.pick(8, 8), settings.pick(VOCABULARY, 1000)
    width, layers, rounds = (64, 1, 2) if settings.quick else (1024, 12, 2)
    data = Text(rows, vocabulary)
    inputs = [torch.stack([data.load(row) for row in range(f, f + BATCH)]) for f in range(0, rows, BATCH)]
    teacher = gpt(vocabulary, width, layers).eval()

    def bare() -> float:
        with torch.inference_mode():
            return seconds(lambda: [teacher(batch) is None for batch in inputs])

    def dumps(encoding: dict[str, object]) -> Callable[[], float]:
        out = settings.scratch / "timed"
        config = dump.DumpConfig(
            data="benchmarks.language:Text",
            data_args=(f"rows={rows},vocabulary={vocabulary}",),
            teacher="benchmarks.language:gpt",
            teacher_args=(f"width={width},layers={layers}",),
            out=out,
            batch_size=BATCH,
            device="cpu",
            **encoding,  # type: ignore[arg-type]
        )

        def timed() -> float:
            taken = seconds(lambda: dump.run(config))
            shutil.rmtree(out)
            return taken

        start = lambda: seconds(lambda: dump.prepare(config))  # noqa: E731
        return lambda: timed() - start()

    kinds: dict[str, dict[str, object]] = {
        "sampled": {"encoding": "sampled", "draws": DRAWS},
        "topk": {"encoding": "topk", "k": 50, "dtype": "float16", "temperature": (1.0,)},
    }
    times = in_turn({"bare": bare, **{name: dumps(kind) for name, kind in kinds.items()}}, rounds)
    each = 1e3 * statistics.median(times["bare"]) / (rows * LENGTH)
    on = f"V = {vocabulary:,}; gpt-{width}, {layers} layers: {each:.2f} ms a position"
    what = "without its start / bare teacher forward over the same batches"
    return [at_most(f"dump of {name} labels, {what}", on, ratio(times[name], times["bare"]), 1.05) for name in kinds]
