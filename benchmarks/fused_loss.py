"""The fused output layer: against the plain one, sparse labels against hard ones alone, and the memory of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import Row, Settings, Table, at_most, in_turn, ratio, synchronised
from pipeline.losses import fused_loss
from pipeline.softlabels import Sampled, SoftLabels, TopK

KEPT = 12
"""Classes a position keeps: what 50 draws of a trained teacher come to (Anshumann et al. 2025)."""
ALPHA = 0.5


@dataclass(frozen=True)
class Layer:
    """An output layer on one device, its inputs and targets: P positions, V classes, hidden states of D."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor

    @classmethod
    def made(cls, positions: int, classes: int, width: int, device: torch.device) -> Layer:
        """With logits of deviation 2 or so."""
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        weight = normal(classes, width).mul_(2 / width**0.5).requires_grad_()
        targets = torch.randint(classes, (positions,), generator=generator, device=device)
        return cls(normal(positions, width).requires_grad_(), weight, targets)

    @property
    def classes(self) -> int:
        """V."""
        return len(self.weight)

    def soft(self, kind: str, temperature: float) -> SoftLabels:
        """Labels of random classes: where they lie is what a memory sees."""
        positions, device = len(self.hidden), self.hidden.device
        ids = torch.randint(self.classes // KEPT, (positions, KEPT), device=device)
        ids = ids + torch.arange(KEPT, device=device) * (self.classes // KEPT)  # ascending, each once
        even = torch.full((positions, KEPT), 1 / KEPT, device=device)
        if kind == "sampled":
            offsets = torch.arange(0, KEPT * positions + 1, KEPT, device=device)
            return Sampled(ids.flatten().int(), even.flatten(), offsets, temperature, self.classes)
        third = torch.full((positions, 1), 1 / 3, device=device).log()
        normaliser = third.neg() + torch.log(torch.tensor(KEPT / 2))
        return TopK(ids.int(), torch.zeros_like(even), normaliser, third, (temperature,), self.classes)

    def plain(self) -> None:
        """Cross-entropy by torch, forward and back."""
        logits = self.hidden @ self.weight.t()
        functional.cross_entropy(logits, self.targets).backward()

    def fused(self, soft: SoftLabels | None, temperature: float) -> Callable[[], None]:
        """Hard labels, mixed with soft ones where there are, forward and back."""
        alpha = 0.0 if soft is None else ALPHA

        def step() -> None:
            terms = fused_loss(
                self.hidden, self.weight, targets_P=self.targets, soft=soft, alpha=alpha, beta=1 - alpha,
                temperature=temperature,
            )  # fmt: skip
            (terms.total / len(self.hidden)).backward()

        return step

    def alone(self, step: Callable[[], None]) -> Callable[[], None]:
        """``step`` without gradients from before it; on CUDA under bfloat16."""

        def cleared() -> None:
            self.hidden.grad = self.weight.grad = None
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.hidden.is_cuda):
                step()

        return cleared


def run(settings: Settings) -> Table:
    """Ratios of time and memory."""
    cuda = torch.cuda.is_available()
    threads = torch.get_num_threads()
    if cuda and not settings.quick:
        layer = Layer.made(8192, 131_072, 2048, torch.device("cuda"))
    else:
        torch.set_num_threads(1)
        layer = Layer.made(*((512, 1024, 16) if settings.quick else (4096, 32_768, 256)), torch.device("cpu"))
    try:
        rows = measure(layer, settings.pick(7, 1))
    finally:
        torch.set_num_threads(threads)
    clock = "the time until the device is done" if layer.hidden.is_cuda else "one thread of torch, its time on the CPU"
    return Table(
        "Fused output layer",
        rows,
        (
            "Forward and backward of the output layer and its loss alone, gradients of hidden states and weight; "
            f"{clock}. Sparse labels keep {KEPT} random classes a position, and are mixed with hard labels, {ALPHA:g} "
            "each.",
            "Memory is the most that tensors hold at once, those inside of operators too, beyond the inputs and, in "
            "the first figure, beyond the gradients of hidden states and weight, which any way of doing it leaves.",
        ),
    )


def measure(layer: Layer, rounds: int) -> list[Row]:
    """All rows of one layer."""
    steps: Mapping[str, Callable[[], None]] = {
        "torch": layer.alone(layer.plain),
        "hard": layer.alone(layer.fused(None, 1.0)),
        **{
            f"{kind} {temperature:g}": layer.alone(layer.fused(layer.soft(kind, temperature), temperature))
            for kind in ("sampled", "topk")
            for temperature in (1.0, 2.0)
        },
    }
    times = in_turn({name: lambda step=step: timed(layer, step) for name, step in steps.items()}, rounds)  # type: ignore[misc]
    positions, width = layer.hidden.shape
    on = f"{positions:,} positions, V = {layer.classes:,}, D = {width:,}"
    each = {name: ratio(taken, times["hard"]) for name, taken in times.items()}
    tokens = positions / sorted(times["hard"])[rounds // 2]
    rows = [
        Row(
            "fused / plain cross-entropy of torch, time",
            on,
            f"{ratio(times['hard'], times['torch'])}; {tokens:,.0f} positions/s",
        ),
        at_most("sampled and hard labels at T = 1 / fused cross-entropy, time", on, each["sampled 1"], 1.05),
        Row("top-k with residual and hard labels at T = 1 / fused cross-entropy, time", on, str(each["topk 1"])),
        Row("sampled at T = 2 and hard labels / fused cross-entropy, time", on, str(each["sampled 2"])),
        Row("top-k at T = 2 and hard labels / fused cross-entropy, time", on, str(each["topk 2"])),
    ]
    logits = positions * layer.classes * 4
    gradients = 4 * (layer.hidden.numel() + layer.weight.numel())
    for name in ("hard", "sampled 1", "topk 1", "sampled 2", "torch"):
        held = most_held(layer, steps[name])
        share = (held - gradients) / logits
        found = f"{share:.3f}; with the gradients {held / logits:.3f}, {held / 1e6:,.0f} of {logits / 1e6:,.0f} MB"
        what = f"peak extra memory / all logits in float32: {name}"
        rows.append(Row(what, on, found) if name == "torch" else Row(what, on, found, "at most 0.125", share <= 1 / 8))
    return rows


def timed(layer: Layer, step: Callable[[], None]) -> float:
    """Seconds of one step. On a CPU those that it ran: others who use the machine do not count."""
    if layer.hidden.is_cuda:
        return synchronised(layer.hidden.device, step)
    began = time.process_time()
    step()
    return time.process_time() - began


def most_held(layer: Layer, step: Callable[[], None]) -> int:
    """The most bytes that ``step`` holds at once beyond what was there before."""
    layer.hidden.grad = layer.weight.grad = None
    if layer.hidden.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    held = most = 0
    events = (event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
