"""What a forward pass costs in arithmetic, counted on the float model: multiply-accumulates of one example."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ModelError


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates (MACs) of a forward pass of one example, on the float model.

    One MAC is one multiplication and one addition; what is called FLOPs elsewhere is often twice as much, and
    sometimes the same. Matrix products, convolutions and both products of attention count; norms, activations and
    sums do not, nor do lookups of embeddings. Causal attention counts in full, as if each token saw all: kernels that
    skip what is masked do about half of its products. ``example`` is (B, ...), for token sequences (B, T), and the
    count of all T tokens is divided by B. The model is run as it is, in eval mode, on its own
    device, and left in the mode it was in.

    Raises ModelError for a model with quantised modules, or programs compiled or scripted, whose operations would
    count as nothing: count the float model that they were made from.
    """
    for name, module in model.named_modules():
        if _is_opaque(module):
            raise ModelError(
                f"MACs are counted on the float model; {name or 'the model'} is a {type(module).__module__}."
                f"{type(module).__name__}, whose operations would count as 0. Count the model it was made from"
            )
    if not len(example):
        raise ModelError("MACs are counted by running an example (B, ...); found none in it")
    was_training = model.training
    model.eval()
    # The counter does not know the fused attention of the CPU, and the fast path of torch's own encoder layers.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        model.train(was_training)
    return int(counter.get_total_flops()) // 2 // len(example)


def known_macs(model: nn.Module, example: Tensor) -> int | None:
    """``count_macs``; None of a module that hides its arithmetic: no figure is better than a wrong one."""
    try:
        return count_macs(model, example)
    except ModelError:
        return None


def _is_opaque(module: nn.Module) -> bool:
    """Whether a module's arithmetic is hidden from the counter."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule) or ".quantized" in kind.__module__ or "torchao" in kind.__module__:
        return True
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return False
    return (
        weight.is_quantized
        or not (weight.dtype.is_floating_point or weight.dtype.is_complex)
        or (type(weight).__module__.startswith("torchao"))
    )


def count_nonzeros(model: nn.Module) -> int:
    """Parameters of a model that are not zero; shared ones count once, buffers do not."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
