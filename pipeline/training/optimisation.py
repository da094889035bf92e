"""The optimiser and its learning rate, a function of the step: a resumed run needs no scheduler state."""

from __future__ import annotations

import math

import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.training.members import Members
from pipeline.training.recipe import Recipe

ONECYCLE_WARMUP = 0.3
ONECYCLE_START = 1 / 25
ONECYCLE_END = 1e-5


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that take gradients; matrices decay, biases and norms (one axis) do not.

    The fused kernels take one call per step instead of several per parameter: a third of a tiny model's step.
    Raises ModelError when no parameter takes gradients.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ModelError(f"{type(model).__name__} has no parameter that takes gradients: there is nothing to train")
    # Stacked weights have an axis of the members first, and what is beside them (a gate) has none.
    leading = {id(p): each.stacked for each in model.modules() if isinstance(each, Members) for p in each.parameters()}
    axes = [p.ndim - leading.get(id(p), 0) for p in trained]
    groups = [
        {"params": [p for p, n in zip(trained, axes, strict=True) if n > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p, n in zip(trained, axes, strict=True) if n <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained)
    if recipe.optimizer == "sgd":
        # torch has no fused SGD for weights of which each rank holds a share.
        fused = fused and not any(hasattr(p, "full_tensor") for p in trained)
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of optimiser step ``step`` of ``steps``.

    ``cosine``: linear warm-up, then half a cosine to 0 (Loshchilov and Hutter 2017, without restarts). ``onecycle``:
    half a cosine up from 1/25, half a cosine down to 1e-5 of the highest rate (Smith and Topin 2018). ``constant``:
    warm-up, then flat.
    """
    default = ONECYCLE_WARMUP if recipe.schedule == "onecycle" else 0.0
    rising = round((default if recipe.warmup is None else recipe.warmup) * steps)
    if step < rising:
        done = (step + 1) / rising
        if recipe.schedule == "onecycle":
            return recipe.lr * (ONECYCLE_START + (1 - ONECYCLE_START) * _half_cosine(done))
        return recipe.lr * done
    if recipe.schedule == "constant":
        return recipe.lr
    low = ONECYCLE_END if recipe.schedule == "onecycle" else 0.0
    return recipe.lr * (1 - (1 - low) * _half_cosine((step - rising) / max(1, steps - rising)))


def _half_cosine(share: float) -> float:
    """0 at 0, 1 at 1, flat at both ends."""
    return 0.5 - 0.5 * math.cos(math.pi * share)
