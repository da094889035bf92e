"""What is measured again, or drawn again, once channels have left: statistics of batch norms, whole weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Measure the statistics of every batch norm again, in place, over ``batches`` of inputs; returns how many norms.

    Pruning and quantisation shift activations; the mean over the batches takes the place of the moving average.
    Nothing else of the model changes, dropout stays off. A model without such norms is left as it is: 0. Raises
    ModelError when there is a norm to measure and no batch.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    momenta = [m.momentum for m in norms]
    was_training = model.training
    before = [{name: value.clone() for name, value in m.named_buffers()} for m in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    seen = 0
    try:
        with torch.no_grad():
            for inputs in batches:
                model(inputs)
                seen += 1
    finally:
        for norm, momentum, old in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not seen:  # otherwise mean 0 and variance 1 would stand where a measurement was
                norm.load_state_dict(old, strict=False)
        model.train(was_training)
    if not seen:
        raise ModelError(f"the statistics of {len(norms)} batch norms should be measured over batches; there were none")
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
