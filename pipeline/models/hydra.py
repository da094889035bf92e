"""``hydra:MODEL``: one model whose last layer is several, a head for each teacher of an ensemble."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models.checks import logits_of

PREFIX = "hydra"


class Hydra(nn.Module):
    """``body``, whose last ``nn.Linear`` gives way to one for ``heads`` heads of ``classes`` logits each.

    In training it gives the logits (M, B, C) of its heads for ``x`` (B, ...); in evaluation mode the logarithm of
    their mean probability (B, C), like any model. Tran et al. 2020 (Hydra), where a head may have several layers.

    ``body`` is changed. Raises ModelError where it has no linear layer, or the last one does not end in ``classes``.
    """

    def __init__(self, body: nn.Module, heads: int, classes: int) -> None:
        super().__init__()
        layers = [(name, module) for name, module in body.named_modules() if isinstance(module, nn.Linear)]
        if not layers:
            kinds = sorted({type(m).__name__ for m in body.modules() if not any(True for _ in m.children())})
            raise ModelError(
                f"heads take the place of the last nn.Linear of a model, and {type(body).__name__} has none: it is "
                f"made of {', '.join(kinds)}. Use a student that ends in a linear layer"
            )
        name, last = layers[-1]
        if last.out_features != classes:
            raise ModelError(
                f"heads take the place of the last nn.Linear of a model, which should give {classes} logits; "
                f"{name or 'the model'} gives {last.out_features}. Use a student that ends in a linear layer"
            )
        like = {"device": last.weight.device, "dtype": last.weight.dtype}
        # One layer: as M of them side by side would be, in one product.
        wide = nn.Linear(last.in_features, heads * classes, bias=last.bias is not None, **like)
        parent, _, own = name.rpartition(".")
        if name:
            setattr(body.get_submodule(parent), own, wide)
        self.body = body if name else wide
        self.count, self.classes = heads, classes

    def heads(self, x: Tensor) -> Tensor:
        """The logits of each head, (M, B, C), in any mode.

        Raises ModelError where the layer that was replaced does not end the model.
        """
        found = logits_of(self.body(x))
        if found.ndim != 2 or found.shape[1] != self.count * self.classes:
            raise ModelError(
                f"a model with heads should end in them, with {self.count} x {self.classes} logits for each example; "
                f"found shape {tuple(found.shape)}. Use a student that ends in a linear layer"
            )
        return found.reshape(-1, self.count, self.classes).movedim(1, 0)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.heads(x)
        if self.training:
            return logits
        log_p = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=2)
        return torch.logsumexp(log_p, dim=0) - math.log(self.count)
