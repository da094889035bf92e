"""A dump of a language model's labels on a GPU against its bare forward pass, and what bounds either."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.language_dumping import parts_written
from benchmarks.measure import Row, Settings, at_most, in_turn, ratio, seconds, synchronised
from benchmarks.synthetic_text import Text
from pipeline import dump
from pipeline.devices import resolve_device
from pipeline.dump.job import Job, layout_of
from pipeline.encodings import Encoding, position_keys
from pipeline.encodings.encode_torch import Begun, begin, encode
from pipeline.models import build_model, frozen
from pipeline.softlabels import Sampled
from pipeline.store import Group
from pipeline.views import Views

VOCABULARY, LENGTH, BATCH = 128_256, 1024, 8
HELD = 4
"""Batches of inputs that the bare forward pass takes in turn, in page-locked memory."""
ENTROPY = 3.5
"""Bits of the teachers' distributions, on average."""
ROWS = 2048
"""Logits that are encoded alone."""

KINDS: dict[str, dict[str, object]] = {
    "sampled": {"encoding": "sampled", "draws": 50},
    "top-50 float16": {"encoding": "topk", "k": 50, "dtype": "float16", "temperature": (1.0,)},
    "top-50 int8": {"encoding": "topk", "k": 50, "dtype": "int8", "temperature": (1.0,)},
}


@dataclass(frozen=True)
class Size:
    """A teacher, and how long it is looked at."""

    width: int
    layers: int
    tied: bool
    batches: int
    rounds: int
    part: int
    """Batches of a part."""
    vocabulary: int = VOCABULARY
    length: int = LENGTH
    longer: int = 0
    """A second dump of sampled labels has this many times the batches; 0 for none."""
    start: bool = False
    """Whether ``dump.prepare`` is timed: it digests all weights."""

    @property
    def name(self) -> str:
        """For rows."""
        return f"gpt-{self.width}, {self.layers} layers"

    def teacher(self) -> nn.Module:
        """The teacher of this size, the same one while nobody forgets it."""
        return gpt(self.vocabulary, self.width, self.layers, self.tied)

    def text(self, batches: int) -> Text:
        """As many batches of random tokens."""
        return Text(batches * BATCH, self.vocabulary, self.length)


SIZES = (Size(2048, 16, True, 64, 2, 16, longer=2, start=True), Size(4096, 34, False, 12, 2, 4))
QUICK = (Size(32, 1, True, 3, 1, 2, 1000, 16, 2, True), Size(32, 2, False, 2, 1, 2, 1000, 16))

NOTES = (
    f"Teachers have random weights, made in bfloat16 on the GPU, and a last norm scaled so that their distributions "
    f"have {ENTROPY:g} bits on average: the logits of random weights alone are nearly flat, and 50 draws of those hit "
    f"50 tokens. V = {VOCABULARY:,}; batches of {BATCH} sequences of {LENGTH:,} random tokens.",
    "The dump is what grows with the data: `write_parts` of a job whose teacher is there, which loads, runs the "
    "teacher's body, makes and encodes logits, measures fidelity, writes, hashes and fsyncs, "
    f"parts of {SIZES[0].part} and {SIZES[1].part} batches, until the last part is on the disk. Left out is the start, "
    "in a row of its own, and the end, when the cache is opened again. The last part is written while no teacher runs: "
    "it weighs on these few seconds, and not on what a longer dump takes for each further position.",
    "The bare forward pass copies batches that lie ready in page-locked memory to the device and gives all logits of a "
    "batch in bfloat16, which are thrown away. No autocast on either side.",
    "Encoding alone starts from logits that lie on the device and ends with arrays in host memory. Of its time the "
    "device is busy with kernels and copies for as long as torch's profiler says (in a pass of its own). The host asks "
    "before it waits (thresholds, launches, copies that are asked for) and packs when the device is done; in a dump it "
    "does both while the device is at another batch.",
)


def gpt(classes: int, width: int, layers: int, tied: bool) -> nn.Module:
    """For ``--teacher benchmarks.gpu_lm_dump:gpt``: the same model while nobody forgets it."""
    return _built(classes, width, layers, tied)


@functools.cache
def _built(classes: int, width: int, layers: int, tied: bool) -> nn.Module:
    """A teacher in bfloat16 where it runs: on a CPU, 8B random numbers would take minutes."""
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            arguments = {"layers": layers, "tied": tied}
            model = build_model(f"gpt-{width}", arguments, classes=classes, input_shape=(LENGTH,), discrete=True)
    finally:
        torch.set_default_dtype(dtype)
    return sharpened(frozen(model), classes, device)


def sharpened(model: nn.Module, classes: int, device: torch.device) -> nn.Module:
    """``model`` with a last norm scaled so that its distributions have ``ENTROPY`` bits on average."""
    ids = (classes ** torch.rand(4, 64, device=device)).long() - 1
    with torch.no_grad():
        logits = model(ids).flatten(0, 1).float()
        low, high = 0.0, 64.0
        for _ in range(20):
            scale = (low + high) / 2
            log_p = (scale * logits).log_softmax(1)
            entropy = float(-(log_p.exp() * log_p).sum(1).mean()) / np.log(2)
            low, high = (scale, high) if entropy > ENTROPY else (low, scale)
        model.body.norm.weight.mul_(scale)  # type: ignore[union-attr, operator]
    return model


def measure(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Rows for each teacher."""
    for size in QUICK if settings.quick else SIZES:
        yield from one(size, settings, resolve_device(device.type))
        _forget(device)


def one(size: Size, settings: Settings, device: torch.device) -> Iterator[Row]:
    """The rows of one teacher."""
    config = _config(size, settings, device)
    teacher = size.teacher()
    parameters = sum(parameter.numel() for parameter in teacher.parameters())
    job = made(config, size, size.batches, device)
    jobs = {name: with_encoding(job, options) for name, options in KINDS.items() if "int8" not in name}
    inputs = held(size, device)
    contenders: dict[str, Callable[[], float]] = {
        "bare": lambda: synchronised(device, lambda: passes(teacher, inputs, size.batches, device)),
        **{name: parts_written(each, settings) for name, each in jobs.items()},
    }
    if size.longer:
        long = with_encoding(made(config, size, size.longer * size.batches, device), KINDS["sampled"])
        contenders["longer"] = parts_written(long, settings)
    times = in_turn(contenders, size.rounds)
    positions = size.batches * BATCH * size.length
    forward = 1e6 * statistics.median(times["bare"]) / positions
    on = f"{size.name}, {parameters / 1e9:.2f}B parameters, bfloat16, {positions:,} positions; {forward:.2f} us each"
    for name, each in jobs.items():
        kept, size_of = looked_at(each, teacher, inputs[0], device)
        yield at_most(
            f"dump of {name} labels / bare teacher forward",
            on,
            ratio(times[name], times["bare"]),
            1.05,
            f"; {positions / statistics.median(times[name]):,.0f} positions/s; {kept:.1f} ids and {size_of:.0f} bytes "
            "each before compression",
        )
    if size.longer:
        further = [(a - b) / (size.longer - 1) for a, b in zip(times["longer"], times["sampled"], strict=True)]
        yield at_most(
            "what a longer dump of sampled labels takes for each further position / bare teacher forward",
            f"{on}; {size.longer} times as many",
            ratio(further, times["bare"]),
            1.05,
        )
    if size.start:
        taken = seconds(lambda: dump.prepare(config))
        yield Row("start of a dump: text and weights digested, teacher checked", on, f"{taken:.1f} s")


def bounds(settings: Settings, device: torch.device) -> Iterator[Row]:
    """What a position takes in each part of a dump, alone, and how much of it the device is busy."""
    size = (QUICK if settings.quick else SIZES)[0]
    config = _config(size, settings, device)
    teacher, inputs, times = size.teacher(), held(size, device), settings.pick(10, 1)
    positions = BATCH * size.length
    forward = in_turn(
        {
            "body": lambda: synchronised(device, lambda: passes(teacher.body, inputs, times, device)),  # type: ignore[arg-type]
            "whole": lambda: synchronised(device, lambda: passes(teacher, inputs, times, device)),
        },
        settings.pick(3, 1),
    )
    each = {name: 1e6 * statistics.median(taken) / positions / times for name, taken in forward.items()}
    yield Row(
        "a position forward, alone: the whole teacher; its body",
        size.name,
        f"{each['whole']:.2f} us; {each['body']:.2f} us",
    )
    with torch.inference_mode():
        logits = teacher(inputs[0].to(device)).flatten(0, 1)[: settings.pick(ROWS, 32)].clone()
    keys = position_keys(1, len(logits))
    for name, options in KINDS.items():
        encoding = replace(config, **options).kept()  # type: ignore[arg-type]
        for values in (logits, logits.float()):
            yield encoded(name, encoding, values, keys, device, settings)
    _forget(device)


def encoded(
    name: str, encoding: Encoding, logits: Tensor, keys: np.ndarray, device: torch.device, settings: Settings
) -> Row:
    """One encoding of logits that lie on the device."""
    times = settings.pick(8, 1)

    def action() -> None:
        with torch.inference_mode():
            for _ in range(times):
                encode(encoding, logits, keys)

    def launched() -> tuple[float, float]:
        """Seconds until the host has asked for all of it, and those it takes once the device is done."""
        with torch.inference_mode():
            synchronised(device, lambda: None)
            first = seconds(lambda: kept.append(begin(encoding, logits, keys, lambda: logits)))
            synchronised(device, lambda: None)
            return first, seconds(lambda: kept.pop().arrays())

    kept: list[Begun] = []
    taken = in_turn({"encode": lambda: synchronised(device, action)}, settings.pick(5, 1))["encode"]
    before, after = (statistics.median(each) for each in zip(*(launched() for _ in range(5)), strict=True))
    whole, working = statistics.median(taken) / times, busy(device, action) / times
    read = logits.numel() * logits.element_size() / 3e12
    each = "; ".join(f"{1e6 * part / len(logits):.2f} us" for part in (whole, working, before, after, read))
    return Row(
        "a position encoded, alone; of it the device is busy; the host asking; the host packing, the device done; "
        "logits read once at 3 TB/s",
        f"{name}, {str(logits.dtype).removeprefix('torch.')} logits, V = {logits.shape[1]:,}, {len(logits):,} at once",
        each,
    )


def busy(device: torch.device, action: Callable[[], None]) -> float:
    """Seconds of kernels and copies on the device while ``action`` runs; 0 where there is none to see."""
    if device.type != "cuda":
        return 0.0
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        action()
        torch.cuda.synchronize(device)
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    return sum(event.duration_ns() for event in events if str(event.device_type()) == "DeviceType.CUDA") / 1e9


def _config(size: Size, settings: Settings, device: torch.device) -> dump.DumpConfig:
    rows = size.batches * BATCH
    return dump.DumpConfig(
        data="benchmarks.synthetic_text:Text",
        data_args=(f"rows={rows},vocabulary={size.vocabulary},length={size.length}",),
        teacher="benchmarks.gpu_lm_dump:gpt",
        teacher_args=(f"width={size.width},layers={size.layers},tied={str(size.tied).lower()}",),
        out=settings.scratch / "dump",
        batch_size=BATCH,
        part_size=size.part * BATCH,
        device=device.type,
        encoding="sampled",
    )


def made(config: dump.DumpConfig, size: Size, batches: int, device: torch.device) -> Job:
    """What ``dump.prepare`` makes of a larger or smaller ``config``, without the digests of text and weights."""
    data, encoding = size.text(batches), config.kept()
    layout = layout_of(data, (Group("train", 0, len(data)),), config.part_size, encoding, {})
    identity = {"encoding": encoding.describe(), "store": config.store, "part_size": config.part_size, "digest": "0"}
    return Job(config, data, Views(), size.teacher(), encoding, {}, {}, layout, identity, device)


def with_encoding(job: Job, options: dict[str, object]) -> Job:
    """``job`` with labels of another kind; parts are cut by numbers of sequences, and stay as they are."""
    config = replace(job.config, **options)  # type: ignore[arg-type]
    encoding = config.kept()
    return replace(job, config=config, encoding=encoding, identity={**job.identity, "encoding": encoding.describe()})


def held(size: Size, device: torch.device) -> list[Tensor]:
    """A few batches of inputs, in page-locked memory where there is a GPU."""
    text = size.text(HELD)
    found = [torch.stack([text.load(row) for row in range(n * BATCH, (n + 1) * BATCH)]) for n in range(HELD)]
    return [batch.pin_memory() if device.type == "cuda" else batch for batch in found]


def passes(model: nn.Module, inputs: list[Tensor], batches: int, device: torch.device) -> None:
    """So many forward passes, whose outputs are thrown away."""
    with torch.inference_mode():
        for batch in itertools.islice(itertools.cycle(inputs), batches):
            model(batch.to(device, non_blocking=True))


def looked_at(job: Job, teacher: nn.Module, ids: Tensor, device: torch.device) -> tuple[float, float]:
    """How many ids, and bytes of arrays, the encoding of ``job`` keeps of each position, over a few hundred."""
    with torch.inference_mode():
        logits = teacher(ids.to(device)).flatten(0, 1)[:: max(1, ids.numel() // 512)]
        arrays = encode(job.encoding, logits, position_keys(1, len(logits)))
    labels = job.encoding.decode(arrays, logits.shape[1])
    kept = len(labels.ids) / len(labels) if isinstance(labels, Sampled) else labels.ids.shape[1]  # type: ignore[union-attr]
    return kept, sum(array.nbytes for array in arrays.values()) / len(logits)


def _forget(device: torch.device) -> None:
    """Make room for the next teacher."""
    _built.cache_clear()
    if device.type == "cuda":
        torch.cuda.empty_cache()
