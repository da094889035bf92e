"""Quantisation-aware training: the model trains with the rounding that the int8 file will have.

Weights are rounded to signed 8 bits per output channel, activations to unsigned 8 bits with a range each, and gradients
pass where a value is within its range (straight-through; Jacob et al. 2018, section 3; Krishnamoorthi 2018). Where ONNX
Runtime's quantiser puts a pair of QuantizeLinear and DequantizeLinear, an activation is rounded here: at inputs and
outputs of convolutions, matrix products and additions, after a ReLU or clip that follows; additions stay in float in
networks with layer norms, as they do in ``static.operators_of``. Ranges are least and greatest
values over calibration batches, as ``quantise_static`` finds them, so the file made of ``finish_qat`` with the
same batches computes what training saw. Softmax, norms and activation functions compute in float.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pipeline.compression.quantisation.folding import fold_batch_norms
from pipeline.errors import ModelError
from pipeline.models import logits_of

_LAYERS: set[Any] = {torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d, F.linear}
_PRODUCTS: set[Any] = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm}
_ADDED_TO: set[Any] = {torch.Tensor.add_, torch.Tensor.__iadd__}
_ADDITIONS: set[Any] = {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__} | _ADDED_TO
_READING: set[Any] = {F.scaled_dot_product_attention}
_CLIPS: set[Any] = {F.relu, torch.relu, torch.Tensor.relu, F.relu6, F.hardtanh, torch.clamp, torch.Tensor.clamp}
_CLIPS |= {torch.relu_, torch.Tensor.relu_, F.relu_, F.hardtanh_, torch.Tensor.clamp_}
_WHOLE: set[Any] = {F.multi_head_attention_forward}


class Rounded(nn.Module):
    """A model whose weights and activations are rounded on the way; called as the model is, gives logits (B, C).

    ``ranges`` (N, 2) float32 holds the least and the greatest value of each of the N rounded activations, in the order
    of the forward pass. With ``moving`` above 0, ranges follow the batches in training: r <- r + moving (batch - r).
    """

    ranges: Tensor

    def __init__(self, model: nn.Module, *, moving: float, reduce_range: bool) -> None:
        super().__init__()
        self.model = model
        self.moving, self.limit = moving, 64 if reduce_range else 127
        self.counting, self.observing, self.rounding, self.additions = False, False, True, True
        self.register_buffer("ranges", torch.zeros(0, 2))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The logits of the model, rounded. Raises ModelError when the pass took another path than at first."""
        with _Rounding(self) as mode:
            logits = logits_of(self.model(*args, **kwargs))
        logits = cast(Tensor, mode.settle(logits))
        if self.counting:
            self.ranges = torch.zeros(mode.site, 2, device=logits.device)
            self.additions = not mode.layer_norms
        elif mode.site != len(self.ranges):
            raise self._strayed(mode.site)
        return logits

    def _strayed(self, sites: int) -> ModelError:
        return ModelError(
            f"the forward pass of {type(self.model).__name__} should round {len(self.ranges)} activations, as it did "
            f"when it was prepared; it came to {sites}. Its path must not depend on its input or its mode"
        )

    def round(self, site: int, value: Tensor) -> Tensor:
        """Activation ``value``, the ``site``-th of the forward pass, in the steps of its range."""
        if self.counting:
            return value
        if site >= len(self.ranges):
            raise self._strayed(site + 1)
        if self.observing or (self.training and self.moving):
            self._follow(site, value.detach().float())
        if not self.rounding:
            return value
        scale, zero = activation_steps(self.ranges[site])
        return torch.fake_quantize_per_tensor_affine(value.float(), scale, zero, 0, 255).to(value.dtype)

    def _follow(self, site: int, value: Tensor) -> None:
        least, greatest = torch.aminmax(value)
        if self.observing:
            self.ranges[site, 0].clamp_(max=least)
            self.ranges[site, 1].clamp_(min=greatest)
        else:
            self.ranges[site].lerp_(torch.stack([least, greatest]), self.moving)

    def round_weight(self, weight: Tensor, axis: int) -> Tensor:
        """``weight`` in steps of its own for each index of ``axis``."""
        if not self.rounding:
            return weight
        scale = weight_steps(weight, axis, self.limit)
        zero = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
        made = torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, axis, -self.limit, self.limit)
        return made.to(weight.dtype)


def activation_steps(limits: Tensor) -> tuple[Tensor, Tensor]:
    """Scale, float32, and zero point, int32, of unsigned 8 bits for (least, greatest); zero is always a step."""
    least, greatest = limits[0].clamp(max=0), limits[1].clamp(min=0)
    scale = (greatest - least) / 255
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    return scale, torch.round(-least / scale).to(torch.int32)


def weight_steps(weight: Tensor, axis: int, limit: int) -> Tensor:
    """Scales (C,) float32 of symmetric signed integers up to ``limit`` in size, for each index of ``axis``."""
    others = [i for i in range(weight.dim()) if i != axis]
    largest = weight.detach().float().abs().amax(dim=others)
    return torch.where(largest > 0, largest / limit, torch.ones_like(largest))


class _Rounding(TorchFunctionMode):
    """One forward pass: which activations are still to be rounded, and which are.

    An operator's output waits: a ReLU or clip passes the waiting on, whatever else reads it gets it rounded. So
    each activation is rounded once, and everything that reads it sees the same numbers.
    """

    def __init__(self, owner: Rounded) -> None:
        super().__init__()
        self.owner = owner
        self.site = 0
        self.layer_norms = False
        self.waiting: set[int] = set()
        self.rounded: dict[int, Tensor] = {}
        self.sums: dict[int, Tensor] = {}  # what a tensor that was added to in place now is
        self.kept: list[Tensor] = []  # alive until the pass ends, so that a number stands for one tensor

    def settle(self, value: Any, *, read: bool = False) -> Any:
        """``value`` as others see it: rounded if it waits for that, or if an operator in integers reads it."""
        if isinstance(value, (tuple, list)):
            return type(value)(self.settle(one, read=read) for one in value) if type(value) in (tuple, list) else value
        if not isinstance(value, Tensor):
            return value
        value = self.sums.get(id(value), value)
        if id(value) in self.rounded:
            return self.rounded[id(value)]
        if id(value) not in self.waiting and not (read and value.is_floating_point()):
            return value
        made = self.owner.round(self.site, value)
        self.site += 1
        self._note(value, made)
        return made

    def _note(self, value: Tensor, made: Tensor) -> None:
        """Whoever asks for ``value`` gets ``made``."""
        self.waiting.discard(id(value))
        self.rounded[id(value)] = self.rounded[id(made)] = made
        self.kept += [value, made]

    def _wait(self, value: Tensor) -> Tensor:
        self.waiting.add(id(value))
        self.kept.append(value)
        return value

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given_as = args
        args = tuple(self.sums.get(id(value), value) for value in args)
        if func in _WHOLE:
            raise ModelError(
                "quantisation-aware training cannot see into torch.nn.MultiheadAttention. Write the attention out as "
                "linear layers and F.scaled_dot_product_attention, or quantise after training"
            )
        if getattr(func, "__name__", "") in ("__get__", "__set__"):  # shapes and the like
            return func(*args, **kwargs)
        if func in _CLIPS and id(args[0]) in self.waiting:
            return self._wait(func(*args, **kwargs))
        if func in _LAYERS:
            value, weight, *rest = args
            return self._wait(func(self.settle(value, read=True), self.owner.round_weight(weight, 0), *rest, **kwargs))
        if func in _PRODUCTS:
            return self._wait(func(*(self._operand(k, value) for k, value in enumerate(args)), **kwargs))
        self.layer_norms |= func is F.layer_norm
        if (
            func in _ADDITIONS
            and self.owner.additions
            and all(isinstance(v, Tensor) and v.is_floating_point() for v in args[:2])
        ):
            left, right = (self.settle(value, read=True) for value in args[:2])
            made = torch.add(left, right, **kwargs)
            if func in _ADDED_TO:
                self.sums[id(given_as[0])] = made
                self.kept.append(given_as[0])
            return self._wait(made)
        read = func in _READING
        given = [self.settle(value, read=read) for value in args]
        made = func(*given, **{key: self.settle(value, read=read) for key, value in kwargs.items()})
        if made is not None and given and made is given[0] is not args[0]:  # in place, on the rounded copy
            self._note(args[0], made)
        return made

    def _operand(self, place: int, value: Any) -> Any:
        """An operand of a matrix product: a stored matrix (in, out) is a weight."""
        if place == 1 and isinstance(value, nn.Parameter) and value.dim() == 2:
            return self.owner.round_weight(value, 1)
        return self.settle(value, read=True)


def prepare_qat(
    model: nn.Module, batches: Iterable[Tensor], *, moving: float = 0.01, reduce_range: bool = False
) -> Rounded:
    """A copy of ``model``, to be trained as it is: batch norms folded, weights and activations rounded.

    ``batches`` of inputs (B, ...) of the training split give the first ranges; ``moving`` is how fast they follow
    training, 0 keeps them. Weights get 7 bits with ``reduce_range``. Train with a low learning rate, for there are no
    batch norms any more; then ``observe_ranges`` and ``finish_qat``. Raises ModelError when there is nothing to round,
    or without batches.
    """
    kept = list(batches)
    if not kept:
        raise ModelError("quantisation-aware training should have calibration batches; found none")
    rounded = Rounded(fold_batch_norms(model, kept[0]), moving=moving, reduce_range=reduce_range).eval()
    rounded.counting = True
    with torch.no_grad():
        rounded(kept[0])  # finds out whether additions are rounded
        rounded(kept[0])
    rounded.counting = False
    if not len(rounded.ranges):
        raise ModelError(f"{type(model).__name__} has no convolution, matrix product or addition to round")
    observe_ranges(rounded, kept)
    return rounded


def observe_ranges(model: Rounded, batches: Iterable[Tensor]) -> None:
    """Set the ranges to the least and greatest values of the unrounded model over ``batches``, in place.

    So does ``quantise_static`` with the same batches: after this the model computes what the int8 file will.
    """
    was_training = model.training
    model.eval()
    model.ranges.zero_()
    model.observing, model.rounding = True, False
    try:
        with torch.no_grad():
            for inputs in batches:
                model(inputs)
    finally:
        model.observing, model.rounding = False, True
        model.train(was_training)


def finish_qat(model: Rounded) -> nn.Module:
    """The trained float model, without rounding and batch norms, in eval mode: export it and ``quantise_static``."""
    return copy.deepcopy(model.model).eval()
