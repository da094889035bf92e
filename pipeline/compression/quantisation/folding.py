"""Batch norms as part of the layer before them, as runtimes and quantisers see them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def fold_batch_norms(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of ``model`` in eval mode with every batch norm folded into the convolution or linear layer before it.

    w' = w g / sqrt(v + e), b' = (b - m) g / sqrt(v + e) + beta, for scale g, shift beta, mean m, variance v. Which
    norm follows which layer is seen by running ``example`` (B, ...): a norm is folded where its input is the output of
    one layer, both ran once, and nothing else read that output. Other norms stay.
    """
    folded = copy.deepcopy(model).eval()
    pairs = _pairs(folded, example)
    for layer, norm in pairs:
        _fold(layer, norm)
    gone = {id(norm) for _, norm in pairs}
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in gone:
                setattr(parent, name, nn.Identity())
    return folded


def _pairs(model: nn.Module, example: Tensor) -> list[tuple[Layer, nn.modules.batchnorm._BatchNorm]]:
    """Layers with the norm that alone reads their output."""
    made: dict[int, Layer] = {}
    kept: list[Tensor] = []  # alive until the end, so that a number stands for one tensor
    runs: dict[int, int] = {}
    read: dict[int, int] = {}
    found: list[tuple[Layer, nn.modules.batchnorm._BatchNorm, int]] = []

    def after_layer(module: nn.Module, _inputs: object, output: Tensor) -> None:
        runs[id(module)] = runs.get(id(module), 0) + 1
        made[id(output)] = module  # type: ignore[assignment]
        kept.append(output)

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        runs[id(module)] = runs.get(id(module), 0) + 1
        if id(inputs[0]) in made:
            found.append((made[id(inputs[0])], module, id(inputs[0])))  # type: ignore[arg-type]

    class Reading(torch.overrides.TorchFunctionMode):
        """Counts how often each output is an argument."""

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, (Tensor, tuple, list)) and func.__name__ != "__get__":  # not a question of its shape
                for value in (*args, *(kwargs or {}).values()):
                    for one in value if isinstance(value, (tuple, list)) else (value,):
                        if id(one) in made:
                            read[id(one)] = read.get(id(one), 0) + 1
            return result

    handles = [m.register_forward_hook(after_layer) for m in model.modules() if isinstance(m, _LAYERS)]
    handles += [
        m.register_forward_pre_hook(before_norm)
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    try:
        with torch.no_grad(), Reading():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (layer, norm) for layer, norm, number in found
        if runs[id(layer)] == runs[id(norm)] == 1 and read.get(number, 0) == 1
    ]  # fmt: skip


def _fold(layer: Layer, norm: nn.modules.batchnorm._BatchNorm) -> None:
    with torch.no_grad():
        mean, variance = norm.running_mean, norm.running_var
        assert isinstance(mean, Tensor) and isinstance(variance, Tensor)  # track_running_stats
        factor = torch.rsqrt(variance.double() + norm.eps)
        shift = torch.zeros_like(factor)
        if norm.affine:
            factor, shift = factor * norm.weight.double(), norm.bias.double()
        shape = (-1, *(1,) * (layer.weight.dim() - 1))
        bias = torch.zeros_like(factor) if layer.bias is None else layer.bias.double()
        bias = (bias - mean.double()) * factor + shift
        layer.weight.copy_(layer.weight.double() * factor.reshape(shape))
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype))
