"""What pruning does silently wrong is found here: nothing pruned, a classifier that lost classes, broken outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError, first_line
from pipeline.models import logits_of
from pipeline.runs import parameter_count


class NothingPrunedError(ModelError):
    """A ratio too small to take anything from any group, or a model in which nothing can be pruned."""


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


def check_pruned(pruned: nn.Module, example: Tensor, *, before: int, classes: int) -> None:
    """Raise ModelError unless the model got smaller and still maps ``example`` (B, ...) to finite (B, C) logits.

    ``before`` is how many parameters it had. One example alone must give what it gives among others, roughly: a size
    written out in the forward pass can fold what is left of the channels into the batch without an error.
    """
    after = parameter_count(pruned)
    if after >= before:
        raise NothingPrunedError(
            f"pruning removed nothing: {before:,} parameters before, {after:,} after. Try a higher --prune"
        )
    try:
        with torch.no_grad():
            logits, alone = logits_of(pruned(example)), logits_of(pruned(example[-1:]))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(
            f"the pruned model does not run: {first_line(error)}. A size written out in its forward pass (a .view or "
            f".reshape) breaks when channels leave; use flatten(1) there"
        ) from error
    for found, expected in ((logits, (len(example), classes)), (alone, (1, classes))):
        if tuple(found.shape) != expected:
            raise ModelError(
                f"the pruned model should give {expected} logits; found {tuple(found.shape)}. A size written out in "
                f"its forward pass (a .view or .reshape) does that when channels leave; use flatten(1) there"
            )
    if not torch.isfinite(logits).all():
        raise ModelError("the pruned model gives logits that are not finite. Try a lower --prune")
    if not torch.allclose(logits[-1:], alone, rtol=1e-2, atol=1e-2 * float(logits.abs().max())):
        raise ModelError(
            "the pruned model mixes the examples of a batch: a size written out in its forward pass (a .view or "
            ".reshape) folds channels into the batch; use flatten(1) there"
        )
