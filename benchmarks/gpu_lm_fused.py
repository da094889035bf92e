"""The fused output layer on a GPU: compiled chunks against uncompiled ones, and against all logits at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks import fused_loss
from benchmarks.fused_loss import ALPHA, KEPT, Layer
from benchmarks.measure import Row, Settings, at_most, in_turn, ratio, seconds
from pipeline import losses
from pipeline.softlabels import SoftLabels

NOTES = (
    "The fused layer: forward and backward of the output layer and its loss alone under bfloat16's autocast, with "
    f"gradients of hidden states and weight; sparse labels keep {KEPT} random classes a position, mixed with hard "
    f"labels, {ALPHA:g} each. All logits at once are torch's own product and cross-entropy. TFLOP/s are of 6 P V D "
    "operations: three products. Peak extra memory is beyond the gradients of hidden states and weight.",
)


def measure(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Rows of one layer: what needs no compiler first."""
    layer = Layer.made(*((512, 1024, 16) if settings.quick else (8192, 131_072, 2048)), device)
    rounds = settings.pick(7, 1)
    positions, width = layer.hidden.shape
    on = f"{positions:,} positions, V = {layer.classes:,}, D = {width:,}"
    operations = 6 * positions * layer.classes * width

    def ways(compiled: bool) -> dict[str, Callable[[], None]]:
        kinds: dict[str, SoftLabels | None] = {"hard": None, "sampled": layer.soft("sampled", 1.0)}
        return {name: layer.alone(fused(layer, soft, compiled)) for name, soft in kinds.items()}

    plain, whole = ways(False), layer.alone(layer.plain)
    times = in_turn(_timed(layer, {**plain, "torch": whole}), rounds)
    yield _speed("fused, uncompiled / all logits at once", on, times["hard"], times["torch"], operations)
    yield at_most(
        "sampled and hard labels / fused cross-entropy, both uncompiled",
        on,
        ratio(times["sampled"], times["hard"]),
        1.05,
    )
    for name, step in {**plain, "all logits at once": whole}.items():
        yield _memory(f"{name}, uncompiled" if name in plain else name, on, layer, step)
    # Off a GPU a real compilation would take most of a minute, and says nothing.
    compiled = ways(device.type == "cuda")
    for name, step in compiled.items():
        first = seconds(lambda step=step: fused_loss.timed(layer, step))  # type: ignore[misc]
        yield Row(f"first step of {name} labels, compiled", on, f"{first:.1f} s")
    both = {f"{name} compiled": step for name, step in compiled.items()} | plain
    times = in_turn(_timed(layer, both), rounds)
    for name in compiled:
        yield _speed(
            f"{name} labels, compiled chunks / uncompiled", on, times[f"{name} compiled"], times[name], operations
        )
    yield at_most(
        "sampled and hard labels / fused cross-entropy, both compiled",
        on,
        ratio(times["sampled compiled"], times["hard compiled"]),
        1.05,
    )
    if device.type == "cuda":
        # By default on CUDA: compiled, and of more kinds. Off it, `fused_loss` is a benchmark of its own.
        yield from fused_loss.measure(layer, rounds)


def fused(layer: Layer, soft: SoftLabels | None, compiled: bool) -> Callable[[], None]:
    """Hard labels, mixed with soft ones at T = 1 where there are, forward and back."""
    alpha = 0.0 if soft is None else ALPHA

    def step() -> None:
        terms = losses.fused_loss(
            layer.hidden, layer.weight, targets_P=layer.targets, soft=soft, alpha=alpha, beta=1 - alpha,
            temperature=1.0, compile_chunks=compiled,
        )  # fmt: skip
        (terms.total / len(layer.hidden)).backward()

    return step


def _timed(layer: Layer, steps: dict[str, Callable[[], None]]) -> dict[str, Callable[[], float]]:
    return {name: lambda step=step: fused_loss.timed(layer, step) for name, step in steps.items()}  # type: ignore[misc]


def _speed(what: str, on: str, over: list[float], under: list[float], operations: float) -> Row:
    one, other = (sorted(times)[len(times) // 2] for times in (over, under))
    found = f"{ratio(over, under)}; {1e3 * one:.1f} against {1e3 * other:.1f} ms, {operations / one / 1e12:.0f} TFLOP/s"
    return Row(f"{what}, time", on, found)


def _memory(name: str, on: str, layer: Layer, step: Callable[[], None]) -> Row:
    logits = 4 * len(layer.hidden) * layer.classes
    held = fused_loss.most_held(layer, step) - 4 * (layer.hidden.numel() + layer.weight.numel())
    what, found = f"peak extra memory / all logits in float32: {name}", f"{held / logits:.3f}; {held / 1e6:,.0f} MB"
    if name == "all logits at once":
        return Row(what, on, found)
    return Row(what, on, found, "at most 0.125", held <= logits / 8)
