"""Models alike, their weights stacked: one batched forward pass and one optimiser for all of them.

A small model's step is mostly the cost of starting its operations, which n stacked models pay once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from pipeline.errors import first_line
from pipeline.models import evaluating, logits_of
from pipeline.training.members import Members, Team

CPU_OPERATIONS = 500_000
"""Floating-point operations of one example's forward pass up to which stacking pays on a CPU.

Measured with 16 students, batches of 64, on 2 cores: 2 to 7 times as fast with mlp-16 (2,400 operations), twice with
cnn-4 at 8 x 8 pixels (50,000), as fast with cnn-4 at 28 x 28 (600,000), 0.7 times with cnn-16 at 32 x 32 (13 million).
"""
PROBES = (1.0, 0.5, -1.0, 0.0)
"""What the example is multiplied by, to have a batch whose rows differ."""
CLOSE = 1e-4
"""Largest difference that counts as rounding, of the largest value."""


class Cohort(Members):
    """n models of one architecture. A parameter or buffer of theirs is one tensor (n, ...) here.

    Each draws dropout masks of its own. Running statistics of batch norm are stacked too, and each member's are its
    own. Raises what ``torch.func.stack_module_state`` raises for models that are not alike.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        weights, buffers = stack_module_state(list(models))
        self._names, self._buffer_names = tuple(weights), tuple(buffers)
        self._count = len(models)
        # In a list, so that what gives it its shape is not among the modules, nor its weights among the trained ones.
        self._shape = [copy.deepcopy(models[0])]
        self.weights = nn.ParameterList(
            [nn.Parameter(value.detach(), requires_grad=value.requires_grad) for value in weights.values()]
        )
        for number, value in enumerate(buffers.values()):
            self.register_buffer(f"buffer{number}", value.detach().clone())

    @property
    def count(self) -> int:
        return self._count

    @property
    def stacked(self) -> int:
        return 1

    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Stacked parameters and buffers by the names that they have in a member."""
        buffers = (getattr(self, f"buffer{number}") for number in range(len(self._buffer_names)))
        return dict(zip(self._names, self.weights, strict=True)), dict(zip(self._buffer_names, buffers, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        if self._shape[0].training != self.training:  # it is not among the modules, and is in no mode by itself
            self._shape[0].train(self.training)
        return vmap(self._one, in_dims=(0, 0, None), randomness="different")(*self._tensors(), x)

    def _one(self, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return logits_of(functional_call(self._shape[0], (dict(weights), dict(buffers)), (x,)))

    def members(self) -> Sequence[nn.Module]:
        """Copies, on the device of the cohort: what is done to them does not reach it."""
        weights, buffers = self._tensors()
        found = []
        for number in range(self._count):
            model = copy.deepcopy(self._shape[0]).train(self.training)
            if weights:
                model.to(next(iter(weights.values())).device)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(weights[name][number])
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name][number])
            found.append(model)
        return found


def together(models: Sequence[nn.Module], example: Tensor) -> tuple[Members, str]:
    """``models`` (of one architecture, on one device) as members, and why they are not stacked ("" where they are).

    A ``Cohort``, or a ``Team`` where stacking would not pay, cannot be done, or would be another model. On a CPU it
    pays for small models (``CPU_OPERATIONS``); on an accelerator always. ``example`` (1, ...): an input.
    """
    if len(models) == 1:
        return Team(models), "there is one alone"
    if example.device.type == "cpu" and (operations := _operations(models[0], example)) > CPU_OPERATIONS:
        return Team(models), f"with {operations:,} operations for an example, one by one is no slower on a CPU"
    try:
        cohort = Cohort(models).to(example.device)
        wrong = _difference(cohort, models, example)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        wrong = first_line(error)
    return (Team(models), wrong) if wrong else (cohort, "")


def _operations(model: nn.Module, example: Tensor) -> int:
    """Floating-point operations of a forward pass in linear layers and convolutions, where nearly all of them are."""
    counts: list[int] = []

    def count(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        # The first axis of a weight has the channels that come out, of a transposed convolution those that go in.
        side = given[0] if getattr(layer, "transposed", False) else output
        counts.append(2 * weight.numel() * (side.numel() // weight.shape[0]))

    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return sum(counts)


def _difference(cohort: Cohort, models: Sequence[nn.Module], example: Tensor) -> str:
    """In what the cohort is not the models one by one, "" where it is the same up to rounding. Neither is changed."""
    scale = torch.tensor(PROBES, device=example.device).reshape(-1, *[1] * (example.ndim - 1))
    x = example * scale if example.is_floating_point() else example.expand(len(PROBES), *example.shape[1:])
    with evaluating(cohort), torch.no_grad():
        found = cohort(x)
        for number, model in enumerate(models):
            with evaluating(model):
                if not _close(found[number], logits_of(model(x))):
                    return "stacked, they give other logits"
    # In training mode on copies: running statistics change, and what cannot be stacked may show there alone.
    trial, alone = copy.deepcopy(cohort).train(), [copy.deepcopy(model).train() for model in models]
    found = trial(x)
    found.sum().backward()
    expected = torch.stack([logits_of(model(x)) for model in alone])
    again = torch.stack([logits_of(copy.deepcopy(model).train()(x)) for model in models])
    if not torch.equal(expected, again):  # dropout: there is nothing to compare
        return ""
    if not _close(found, expected):
        return "stacked, they give other logits in training"
    for model, member in zip(alone, trial.members(), strict=True):
        for one, other in zip(model.buffers(), member.buffers(), strict=True):
            if not _close(one, other):
                return "stacked, their running statistics differ"
    return ""


def _close(found: Tensor, expected: Tensor) -> bool:
    found, expected = found.detach().double(), expected.detach().double()
    return (
        bool((found - expected).abs().max() <= CLOSE * expected.abs().max().clamp_min(1.0)) if found.numel() else True
    )
