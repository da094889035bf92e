"""Encoding where the logits are, and decoding to where the loss is: rows per second and device memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Row, Settings, in_turn, rate, ratio, synchronised
from pipeline.encodings import Dense, Encoding, TopK
from pipeline.encodings.encode_torch import encode
from pipeline.sources.stored import tensor_of

SIZES = ((1000, 8192), (32_000, 1024))
"""Classes, and rows at a time."""

NOTES = (
    "Encoding starts from float32 logits on the device and ends with what is kept in host memory; by numpy, it starts "
    "with a copy of all logits to the host. Decoding starts from the arrays as a cache keeps them in host memory, goes "
    "through page-locked memory as a streamed label does, and ends on the device. Memory is the largest that was "
    "allocated on the device beyond what was there before.",
)


def measure(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Rows for each encoding and number of classes."""
    for classes, rows in ((100, 64),) if settings.quick else SIZES:
        logits = made(classes, rows, device)
        k = min(50, classes)
        chosen: dict[str, Encoding] = {
            "dense float16": Dense("float16"),
            "dense int8": Dense("int8"),
            f"top-{k} float16": TopK(k, "float16", (1.0, 4.0)),
        }
        for name, encoding in chosen.items():
            yield from one(name, encoding, logits, settings.pick(9, 2), settings.pick(4, 1))


def made(classes: int, rows: int, device: torch.device) -> Tensor:
    """Logits (rows, classes) with a long tail, as a classifier has."""
    random = torch.Generator(device).manual_seed(0)
    return 3 * torch.randn(rows, classes, device=device, generator=random)


def one(name: str, encoding: Encoding, logits: Tensor, rounds: int, times: int) -> Iterator[Row]:
    """Rows for one encoding of ``logits``; a round of it encodes, or decodes, ``times`` over."""
    device, (rows, classes) = logits.device, logits.shape
    arrays = encode(encoding, logits)
    on = f"{name}, {classes:,} classes, {rows:,} rows at a time"

    def on_the_host() -> object:
        return encoding.encode(logits.cpu().numpy())

    def decoded() -> object:
        labels = encoding.decode(arrays, classes).map(lambda array: tensor_of(array, device.type == "cuda"))
        return labels.map(lambda tensor: tensor.to(device, non_blocking=True)).logits

    def timed(action: Callable[[], object], count: int) -> Callable[[], float]:
        return lambda: synchronised(device, lambda: [action() is None for _ in range(count)])

    contenders = {
        "there": timed(lambda: encode(encoding, logits), times),
        "decoded": timed(decoded, times),
    }
    found = in_turn(contenders, rounds)
    beside = in_turn({"there": timed(lambda: encode(encoding, logits), 1), "host": timed(on_the_host, 1)}, 2)
    size = sum(array.nbytes for array in arrays.values()) / rows
    yield Row(
        "encoding, rows/s; memory",
        on,
        f"{rate(times * rows, found['there']):,.0f}; {peak(device, lambda: encode(encoding, logits))}; "
        f"{size:,.0f} bytes a row",
    )
    yield Row("encoding by numpy / on the device, time", on, str(ratio(beside["host"], beside["there"])))
    yield Row("decoding, rows/s; memory", on, f"{rate(times * rows, found['decoded']):,.0f}; {peak(device, decoded)}")


def peak(device: torch.device, action: Callable[[], object]) -> str:
    """The most device memory that ``action`` took, beyond what was held before."""
    if device.type != "cuda":
        return "memory not measured"
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    action()
    return f"{(torch.cuda.max_memory_allocated(device) - before) / np.float64(2**20):,.0f} MiB"
