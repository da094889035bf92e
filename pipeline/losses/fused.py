"""The output layer and its losses in one: from hidden states, without ever holding the logits of all positions.

The logits of some positions at a time are made, turned into their gradient in place (``block_terms``) and multiplied
into the gradients of hidden states, weight and bias, all in the forward pass; the backward pass scales these. Hsu et
al. 2024 (Liger Kernel) and Wijmans et al. 2025 (Cut Your Losses) do so for cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.errors import ConfigError, EncodingError, ModelError
from pipeline.losses.blocks import Values, Weighing, block_terms
from pipeline.losses.meeting import ONE, check_residual
from pipeline.softlabels import Sampled, SoftLabels

BLOCK_BYTES = 32 * 2**20
"""Logits of a chunk on a CPU: products of fewer rows are slower, and of more hardly faster."""
DEVICE_BLOCK_BYTES = 512 * 2**20
"""The same on a GPU."""
LEAST_SHARE = 24
"""A chunk is at most this part of the positions, however few: what is held stays below an eighth of their logits."""
LEAST_ROWS = 32
NARROW_CLASSES = 16384
"""Rows of the weight whose gradient is made at a time where products are of low precision."""


class FusedTerms(NamedTuple):
    """Sums over the positions, scalars: ``alpha * soft + beta * hard``, and both without gradients; None: not used."""

    total: Tensor
    hard: Tensor | None
    soft: Tensor | None


def fused_loss(
    hidden_PD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None = None,
    *,
    targets_P: Tensor | None = None,
    soft: SoftLabels | None = None,
    has_soft: Tensor | None = None,
    alpha: float = 0.0,
    beta: float = 1.0,
    temperature: float = 1.0,
    smoothing: float = 0.0,
    residual: str = ONE,
    chunk: int | None = None,
    compile_chunks: bool | None = None,
) -> FusedTerms:
    """``alpha`` times ``distillation_loss`` plus ``beta`` times ``hard_loss`` of logits hidden weight^T + bias, summed.

    - ``targets_P`` (P,) int64, -1 for none; ``soft``: labels of P rows, valid ones also where ``has_soft`` (P,) bool
      says that they do not count (None: all do);
    - ``temperature`` and ``residual`` of the soft term, ``smoothing`` of the hard one; one of weight 0, or without
      labels, is left out;
    - ``chunk``: positions at a time; None: by the size of the vocabulary and the device;
    - ``compile_chunks``: by ``torch.compile``; None: on CUDA.

    Products are taken in the dtype of autocast where it is on, else in that of the weight; softmax, sums and the
    weight's gradient in float32, or in float64 for a float64 weight. Beside the gradients themselves at most
    about P / 24 rows of logits are held. Second derivatives are not defined; a second backward pass computes anew.

    Raises ConfigError for a temperature or chunk that is not above 0 or an unknown ``residual``, ModelError for shapes
    that do not fit together, EncodingError when the soft labels or targets are of another number of positions or
    classes or labels other than top-k have no residual to spread, and TemperatureError when the soft labels were not
    kept at T.
    """
    _check(hidden_PD, weight_VD, bias_V, targets_P, soft, has_soft, temperature, chunk)
    check_residual(residual, soft)
    plan = _Plan(
        soft=soft if alpha else None,
        has=has_soft,
        targets=targets_P if beta else None,
        weighing=Weighing(alpha, beta, float(temperature), smoothing, residual),
        chunk=chunk,
        compiled=hidden_PD.device.type == "cuda" if compile_chunks is None else compile_chunks,
    )
    if not len(hidden_PD) or (plan.soft is None and plan.targets is None):
        nothing = (hidden_PD.sum() + weight_VD.sum() + (0 if bias_V is None else bias_V.sum())) * 0
        zero = nothing.detach()
        return FusedTerms(nothing, *(None if labels is None else zero for labels in (plan.targets, plan.soft)))
    total, hard, soft_sum = _Fused.apply(hidden_PD, weight_VD, bias_V, plan)  # type: ignore[no-untyped-call]
    return FusedTerms(total, None if plan.targets is None else hard, None if plan.soft is None else soft_sum)


@dataclass(frozen=True)
class _Plan:
    """What is asked of every chunk."""

    soft: SoftLabels | None
    has: Tensor | None
    targets: Tensor | None
    weighing: Weighing
    chunk: int | None
    compiled: bool

    @property
    def apart(self) -> bool:
        """Whether both losses are wanted, of two temperatures: a chunk then needs two blocks."""
        return self.soft is not None and self.targets is not None and self.weighing.temperature != 1.0

    def rows(self, positions: int, row_bytes: int, device: torch.device) -> int:
        """Positions of a chunk."""
        if self.chunk is not None:
            return self.chunk
        blocks = 2 if self.apart else 1
        fitting = (DEVICE_BLOCK_BYTES if device.type == "cuda" else BLOCK_BYTES) // (row_bytes * blocks)
        rows = min(fitting, positions // (LEAST_SHARE * blocks))
        return max(LEAST_ROWS, rows // LEAST_ROWS * LEAST_ROWS)

    def chunks(self, positions: int, rows: int) -> list[tuple[slice, SoftLabels | None]]:
        """Which positions, and their soft labels."""
        slices = [slice(start, min(start + rows, positions)) for start in range(0, positions, rows)]
        soft = self.soft
        if not isinstance(soft, Sampled):
            return [(where, None if soft is None else soft.select(where)) for where in slices]
        # Draws lie one after another: where each chunk begins is asked once, not chunk by chunk.
        starts = [*soft.offsets[::rows].tolist()[: len(slices)], len(soft.ids)]
        return [
            (where, _between(soft, where, begin, end))
            for where, begin, end in zip(slices, starts, starts[1:], strict=False)
        ]


def _between(soft: Sampled, where: slice, begin: int, end: int) -> Sampled:
    offsets = soft.offsets[where.start : where.stop + 1] - begin
    return Sampled(soft.ids[begin:end], soft.weights[begin:end], offsets, soft.temperature, soft.num_classes)


class _Gradients(NamedTuple):
    """Of hidden states, weight and bias; None where none is needed."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class _Fused(torch.autograd.Function):
    """Total, hard and soft sums; only the total has gradients."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan
    ) -> tuple[Tensor, Tensor, Tensor]:
        needed = ctx.needs_input_grad[:3]
        dtype = weight.dtype
        kind = hidden.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        sums, gradients = _computed(hidden, weight, bias, plan, dtype, needed)
        ctx.save_for_backward(hidden, weight, bias)
        # Not among the saved tensors: the first backward pass scales them in place, and gives them away.
        ctx.ready, ctx.again = [gradients], (plan, dtype, needed)
        ctx.mark_non_differentiable(*sums[1:])
        ctx.set_materialize_grads(False)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, None, None, None
        gradients = ctx.ready.pop() if ctx.ready else _computed(*ctx.saved_tensors, *ctx.again)[1]
        return *(None if each is None else each.mul_(gradient) for each in gradients), None


def _computed(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: _Plan,
    dtype: torch.dtype,
    needed: tuple[bool, bool, bool],
) -> tuple[tuple[Tensor, Tensor, Tensor], _Gradients]:
    """The sums, and the gradients of the total. Outside of autocast, and without a graph."""
    with torch.autocast(hidden.device.type, enabled=False):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        positions, classes = len(hidden), len(weight)
        rows = plan.rows(positions, classes * wide.itemsize, hidden.device)
        narrow = weight.to(dtype)
        block = hidden.new_empty((min(rows, positions), classes), dtype=wide)
        gradients = _Gradients(
            torch.empty_like(hidden) if needed[0] else None,
            torch.zeros_like(weight, dtype=wide) if needed[1] else None,
            torch.zeros_like(bias, dtype=wide) if bias is not None and needed[2] else None,
        )
        spare = torch.empty_like(block) if plan.apart and not plan.compiled else None
        body = _compiled() if plan.compiled else block_terms
        sums = [hidden.new_zeros((), dtype=wide) for _ in range(2)]
        for where, soft in plan.chunks(positions, rows):
            own = hidden[where].to(dtype)
            z = _logits(own, narrow, bias, block[: len(own)])
            has, targets = (None if each is None else each[where] for each in (plan.has, plan.targets))
            room = None if spare is None else spare[: len(own)]
            values = body(z, soft, has, targets, plan.weighing, spare_PV=room, differentiate=any(needed))
            for total, each in zip(sums, values, strict=True):
                if each is not None:
                    total += each.sum()
            if any(needed):
                _spread(z, own, narrow, gradients, where)
        hard, soft_sum = sums
        gradients = gradients._replace(
            weight=None if gradients.weight is None else gradients.weight.to(weight.dtype),
            bias=None if gradients.bias is None or bias is None else gradients.bias.to(bias.dtype),
        )
        return (plan.weighing.alpha * soft_sum + plan.weighing.beta * hard, hard, soft_sum), gradients


def _logits(own_PD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, block_PV: Tensor) -> Tensor:
    """The logits of a chunk, in ``block_PV``."""
    if own_PD.dtype == block_PV.dtype:
        torch.mm(own_PD, weight_VD.t(), out=block_PV)
    else:
        block_PV.copy_(own_PD @ weight_VD.t())
    return block_PV if bias_V is None else block_PV.add_(bias_V)


def _spread(z_PV: Tensor, own_PD: Tensor, weight_VD: Tensor, gradients: _Gradients, where: slice) -> None:
    """Take the gradient of a chunk's logits back to what they were made of."""
    narrow = z_PV.to(own_PD.dtype)
    if gradients.hidden is not None:
        gradients.hidden[where] = narrow @ weight_VD
    if gradients.weight is not None:
        if narrow.dtype == gradients.weight.dtype:
            gradients.weight.addmm_(narrow.t(), own_PD)
        else:  # products of low precision are added up in high, some classes at a time, which need not be held whole
            for classes in range(0, len(weight_VD), NARROW_CLASSES):
                part = slice(classes, classes + NARROW_CLASSES)
                gradients.weight[part].add_(narrow[:, part].t() @ own_PD)
    if gradients.bias is not None:
        gradients.bias.add_(z_PV.sum(dim=0))


@cache
def _compiled() -> Callable[..., Values]:
    compiled: Callable[..., Values] = torch.compile(block_terms, dynamic=True)
    return compiled


def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor | None,
    soft: SoftLabels | None,
    has: Tensor | None,
    temperature: float,
    chunk: int | None,
) -> None:
    if not temperature > 0:
        raise ConfigError(f"temperature should be above 0; found {temperature}")
    if chunk is not None and chunk < 1:
        raise ConfigError(f"chunk should be 1 or more positions; found {chunk}")
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ModelError(
            "hidden states should have shape (P, D) and the weight (V, D); found "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}: they are of another model, or still in sequences"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ModelError(f"the bias should have shape ({len(weight)},), found {tuple(bias.shape)}")
    for name, each in (("targets", targets), ("has_soft", has)):
        if each is not None and each.shape != hidden.shape[:1]:
            raise EncodingError(f"{name} should have shape ({len(hidden)},), found {tuple(each.shape)}")
    if soft is not None and (len(soft), soft.classes) != (len(hidden), len(weight)):
        raise EncodingError(
            f"soft labels should be of {len(hidden)} positions and {len(weight)} classes like the logits; found "
            f"{len(soft)} and {soft.classes}"
        )
