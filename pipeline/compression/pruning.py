"""Structured pruning: whole channels leave, so that every runtime gets the gain without sparse kernels.

torch-pruning follows the dependencies between layers. What it does silently wrong is checked here: nothing pruned
(frozen parameters), a classifier that lost classes, outputs that are no longer finite.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models import logits_of
from pipeline.references import optional
from pipeline.runs import parameter_count


def classifier_of(model: nn.Module, example: Tensor, classes: int) -> nn.Module:
    """The layer that emits the logits: the last linear or convolution that ran with ``classes`` outputs.

    Raises ModelError when there is none, for then its outputs could not be protected from pruning.
    """
    ran: list[nn.Module] = []
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    hooks = [m.register_forward_hook(lambda module, _in, _out: ran.append(module)) for m in layers]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    for layer in reversed(ran):
        if classes in (getattr(layer, "out_features", None), getattr(layer, "out_channels", None)):
            return layer
    raise ModelError(
        f"pruning should leave the classifier alone, but no linear or convolution of {type(model).__name__} ends in "
        f"{classes} outputs. Leave pruning out (--prune 0) for this model"
    )


def prune(model: nn.Module, example: Tensor, *, ratio: float, classes: int, norm: int = 2) -> nn.Module:
    """A copy of ``model`` without the share ``ratio`` of the channels of every group, the least important first.

    Importance of a group of coupled channels is the mean L1 or L2 ``norm`` of its weights (Fang et al. 2023,
    DepGraph, section 3.3). ``example`` is (2, ...) float32. Statistics of batch norms are stale afterwards: see
    ``recalibrate``. Raises ModelError when nothing was pruned or the model broke.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = optional("torch_pruning", "compress", "pruning")
    pruned = copy.deepcopy(model).cpu().eval()
    for parameter in pruned.parameters():
        parameter.requires_grad_(True)  # torch-pruning leaves frozen parameters out without a word
    before = parameter_count(pruned)
    ignored = [classifier_of(pruned, example, classes)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = library.pruner.BasePruner(
                pruned,
                example,
                importance=library.importance.GroupMagnitudeImportance(p=norm),
                pruning_ratio=ratio,
                ignored_layers=ignored,
                output_transform=logits_of,
            )
            pruner.step()
    except Exception as error:
        raise ModelError(f"torch-pruning cannot follow {type(model).__name__}: {error}") from error
    check_pruned(pruned, example, before=before, classes=classes)
    return pruned


def check_pruned(pruned: nn.Module, example: Tensor, *, before: int, classes: int) -> None:
    """Raise ModelError unless the model got smaller and still maps ``example`` (B, ...) to finite (B, C) logits."""
    after = parameter_count(pruned)
    if after >= before:
        raise ModelError(
            f"pruning removed nothing: {before:,} parameters before, {after:,} after. Try a higher --prune"
        )
    try:
        with torch.no_grad():
            logits = logits_of(pruned(example))
    except RuntimeError as error:
        raise ModelError(
            f"the pruned model does not run: {error}. A size written out in its forward pass (a .view or .reshape) "
            f"breaks when channels leave; use flatten(1) there"
        ) from error
    if tuple(logits.shape) != (len(example), classes):
        raise ModelError(f"the pruned model should give {(len(example), classes)} logits; found {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise ModelError("the pruned model gives logits that are not finite. Try a lower --prune")


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Measure the statistics of every batch norm again, in place, over ``batches`` of inputs; returns how many norms.

    Pruning and quantisation shift activations; the mean over the batches takes the place of the moving average.
    Nothing else of the model changes, dropout stays off.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    momenta = [m.momentum for m in norms]
    was_training = model.training
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        with torch.no_grad():
            for inputs in batches:
                model(inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(was_training)
    return len(norms)


def reinitialise(model: nn.Module, seed: int) -> nn.Module:
    """A copy of ``model`` with the same shape and fresh random weights: the control for pruning.

    Raises ModelError when some layer with parameters of its own does not know how to reset itself.
    """
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in fresh.named_modules():
            if not any(True for _ in module.parameters(recurse=False)):
                continue
            reset = getattr(module, "reset_parameters", None)
            if not callable(reset):
                raise ModelError(f"{name or type(module).__name__} has parameters and no reset_parameters method")
            reset()
    return fresh
