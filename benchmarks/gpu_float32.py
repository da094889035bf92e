"""What float32 costs on a GPU: convolutions in float32, in TF32 as torch leaves them, and in bfloat16."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import Row, Settings, in_turn, ratio, synchronised
from benchmarks.vision import resnet
from pipeline.devices import autocast

BATCH = 256
KINDS = ("float32", "TF32", "bfloat16")
TRIED = 16
"""Pictures whose logits are compared with those of float64."""

NOTES = (
    f"Forward passes are of {BATCH} pictures under inference_mode, steps forward and back with SGD. TF32 is "
    "torch's default for convolutions of float32. The error is the largest difference from logits in float64, of the "
    f"largest of those, over {TRIED} pictures.",
)


def measure(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Rows for a forward pass and for a training step."""
    size, side = settings.pick(BATCH, 4), settings.pick(224, 32)
    x = torch.rand(size, 3, side, side, device=device, generator=torch.Generator(device).manual_seed(0))
    left = torch.backends.cudnn.allow_tf32
    try:
        depth, width = settings.pick(50, 10), settings.pick(64, 4)
        model = resnet(depth, width).to(device).eval()
        yield from _compared(
            "a forward pass", f"ResNet-{depth}, {size} x {side} px", _passes(model, x), device, settings
        )
        yield _errors(f"ResNet-{depth}, {side} px", model, x[:TRIED])
        depth = settings.pick(18, 10)
        model = resnet(depth, width).to(device).train()
        yield from _compared("a step", f"ResNet-{depth}, {size} x {side} px", _steps(model, x), device, settings)
    finally:
        torch.backends.cudnn.allow_tf32 = left


def in_kind(kind: str, device: torch.device, action: Callable[[], object]) -> object:
    """``action`` with convolutions in ``kind``."""
    torch.backends.cudnn.allow_tf32 = kind == "TF32"
    with autocast(device, "float32" if kind == "TF32" else kind):
        return action()


def _compared(
    what: str, on: str, action: Callable[[], object], device: torch.device, settings: Settings
) -> Iterator[Row]:
    times = settings.pick(6, 1)

    def contender(kind: str) -> Callable[[], float]:
        return lambda: synchronised(device, lambda: [in_kind(kind, device, action) is None for _ in range(times)])

    found = in_turn({kind: contender(kind) for kind in KINDS}, settings.pick(3, 1))
    each = {kind: 1e3 * statistics.median(taken) / times for kind, taken in found.items()}
    for kind in KINDS[1:]:
        said = f"{ratio(found['float32'], found[kind])}; {each['float32']:.1f} against {each[kind]:.1f} ms"
        yield Row(f"{what} in float32 / in {kind}", on, said)


def _passes(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def action() -> Tensor:
        with torch.inference_mode():
            found: Tensor = model(x)
        return found

    return action


def _steps(model: nn.Module, x: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    labels = torch.arange(len(x), device=x.device)

    def action() -> None:
        nn.functional.cross_entropy(model(x).float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return action


def _errors(on: str, model: nn.Module, x: Tensor) -> Row:
    found = {kind: in_kind(kind, x.device, _passes(model, x)) for kind in KINDS}
    exact = _passes(model.double(), x.double())()
    assert isinstance(exact, Tensor)
    scale = exact.abs().max()
    errors = [float((logits.double() - exact).abs().max() / scale) for logits in found.values()]  # type: ignore[attr-defined]
    model.float()
    return Row("largest error of logits: " + "; ".join(found), on, "; ".join(f"{error:.1e}" for error in errors))
