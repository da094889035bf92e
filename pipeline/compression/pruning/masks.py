"""Unstructured and n:m sparsity: single weights become zero and stay so while the model learns again.

Masks are in force through a hook on the model: whenever it is called, what is masked is zero first, whatever the
optimiser did since. Modules, parameters and the state keep their names; a copy of the model has masks of its own.
``remove_masks`` leaves plain weights with exact zeros. Zeros take no less space or time by themselves: files get
smaller when compressed, and runtimes faster where they know sparse kernels.

Not a parametrisation of torch's: copies of a module share its class, and removing one from a copy breaks the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.compression.pruning.checks import classifier_of
from pipeline.errors import ModelError

WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class Masks:
    """The hook that holds masks: by parameter name, a bool tensor that is true for what stays."""

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        self.kept = dict(kept)

    def __call__(self, model: nn.Module, _inputs: Any) -> None:
        """Zero what is masked, in place; past autograd, for a graph that was made before holds the same values."""
        for name, kept in self.kept.items():
            weight = model.get_parameter(name).data
            if kept.device != weight.device:
                kept = self.kept[name] = kept.to(weight.device)
            weight.masked_fill_(~kept, 0)


def maskable(model: nn.Module, example: Tensor, *, classes: int, classifier: bool = False) -> dict[str, Tensor]:
    """The weights that masks are for, by name: those of linear layers, convolutions and ``nn.MultiheadAttention``.

    Biases, norms, embeddings and bare parameters are left alone, and so are weights that two modules share, and the
    classifier, unless ``classifier``. Raises ModelError when nothing is left.
    """
    kept_out = None if classifier else classifier_of(model, example, classes)
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name)
    found = {}
    for name, module in model.named_modules():
        if module is kept_out or not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)):
            continue
        for attribute in WEIGHTS:
            weight = getattr(module, attribute, None)
            if isinstance(weight, Tensor) and len(owners.get(id(weight), ())) <= 1:
                found[f"{name}.{attribute}" if name else attribute] = weight.detach()
    if not found:
        raise ModelError(f"{type(model).__name__} has no weights to mask beside its classifier")
    return found


def magnitude_masks(
    model: nn.Module,
    example: Tensor,
    *,
    classes: int,
    share: float,
    scope: Literal["local", "global"] = "global",
    classifier: bool = False,
) -> dict[str, Tensor]:
    """Masks (bool, shaped like the weights) that are false for the ``share`` of weights smallest in magnitude.

    Of all weights together (global), or of each weight tensor (local). See ``maskable`` for what is left alone, which
    the share does not count. Raises ModelError for a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ModelError(f"share should be between 0 and 1: of the weights that become zero; found {share:g}")
    if scope not in ("local", "global"):
        raise ModelError(f"scope should be local or global; found {scope!r}")
    weights = maskable(model, example, classes=classes, classifier=classifier)
    if scope == "local":
        return {name: _largest(weight.flatten(), share).view_as(weight) for name, weight in weights.items()}
    kept = _largest(torch.cat([weight.flatten() for weight in weights.values()]), share)
    parts = torch.split(kept, [weight.numel() for weight in weights.values()])
    return {name: part.view_as(weight).clone() for (name, weight), part in zip(weights.items(), parts, strict=True)}


def _largest(weights: Tensor, share: float) -> Tensor:
    """A bool mask (N,) without round(share N) entries, the smallest in magnitude, the first of equals."""
    kept = torch.ones(len(weights), dtype=torch.bool, device=weights.device)
    kept[torch.argsort(weights.abs(), stable=True)[: int(share * len(weights) + 0.5)]] = False
    return kept


def nm_masks(
    model: nn.Module, example: Tensor, *, classes: int, n: int = 2, m: int = 4, classifier: bool = False
) -> dict[str, Tensor]:
    """Masks that keep the ``n`` largest of every ``m`` weights that follow each other along the inputs.

    2:4 is what sparse tensor cores compute twice as fast (Mishra et al. 2021). Inputs are the second dimension, for
    convolutions their input channels. Weights whose inputs are no multiple of ``m`` have no mask (first layers of
    images, depthwise convolutions). Raises ModelError unless 0 < n < m, or when no weight divides.
    """
    if not 0 < n < m:
        raise ModelError(f"n:m sparsity keeps n of m weights, 0 < n < m; found {n}:{m}")
    weights = maskable(model, example, classes=classes, classifier=classifier)
    found = {name: _of_blocks(weight, n, m) for name, weight in weights.items() if weight.shape[1] % m == 0}
    if not found:
        raise ModelError(f"{n}:{m} sparsity needs layers whose inputs are a multiple of {m}; found none")
    return found


def masks_of_zeros(model: nn.Module, example: Tensor, *, classes: int) -> dict[str, Tensor]:
    """Masks that keep what is not zero, of the weights that have zeros: those of a model that was made sparse."""
    weights = maskable(model, example, classes=classes)
    return {name: weight != 0 for name, weight in weights.items() if bool((weight == 0).any())}


def _of_blocks(weight: Tensor, n: int, m: int) -> Tensor:
    last = weight.movedim(1, -1)
    blocks = last.abs().reshape(-1, m)
    order = torch.argsort(blocks, dim=1, descending=True, stable=True)
    kept = torch.zeros_like(blocks, dtype=torch.bool).scatter_(1, order[:, :n], True)
    return kept.view(last.shape).movedim(-1, 1).contiguous()


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Put ``masks`` in force, in place, by the names of the weights; masks that are there already are replaced.

    What is masked is zero at once, and again whenever ``model`` is called (not a part of it alone). A model that is
    built anew, to go on from a state, needs its masks again: they are no part of the state. Raises ModelError for
    names or shapes that the model does not have.
    """
    parameters = dict(model.named_parameters())
    for name, kept in masks.items():
        if name not in parameters or name.rpartition(".")[2] not in WEIGHTS:
            raise ModelError(f"masks should name weights of the model; found {name!r}")
        if parameters[name].shape != kept.shape or kept.dtype != torch.bool:
            raise ModelError(
                f"the mask of {name} should be bool {tuple(parameters[name].shape)}; found {kept.dtype} "
                f"{tuple(kept.shape)}"
            )
    _forget(model)
    hook = Masks({name: kept.clone() for name, kept in masks.items()})
    hook(model, ())
    model.register_forward_pre_hook(hook, prepend=True)


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks that are in force on ``model``; none: {}."""
    return {name: kept for hook in model._forward_pre_hooks.values() if isinstance(hook, Masks)
            for name, kept in hook.kept.items()}  # fmt: skip


def remove_masks(model: nn.Module) -> list[str]:
    """Leave plain weights with exact zeros where masks were, in place; the names of those weights."""
    found = Masks(masks_of(model))
    found(model, ())
    _forget(model)
    return list(found.kept)


def _forget(model: nn.Module) -> None:
    for key in [key for key, hook in model._forward_pre_hooks.items() if isinstance(hook, Masks)]:
        del model._forward_pre_hooks[key]
