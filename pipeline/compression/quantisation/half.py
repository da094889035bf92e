"""Sixteen bits: half the file; on a CPU no faster.

ONNX Runtime has few float16 kernels for CPUs (none on x86 for convolutions and matrix products): it computes in
float32 between casts. A graph that was float16 throughout was no faster, and one crashed the process that opened it.
So weights are stored as float16 and made float32 when the file is opened, at no cost per call. Bfloat16 is for torch.
"""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compression.quantisation.files import finish, load_proto, load_quantiser, quantising
from pipeline.compression.quantisation.weight_only import restore_on_load
from pipeline.errors import ConfigError, ModelError
from pipeline.models import logits_of

LARGEST = 65504.0
"""The largest float16."""


def halve(source: Path, target: Path, *, kind: str = "float16") -> int:
    """Write ``source`` with the weights of convolutions and matrix products as float16 to ``target``.

    Everything is computed in float32 as before. Returns how many operators read such a weight. Raises ConfigError on a
    ``kind`` other than float16, ModelError where a weight does not fit in float16 or there is none to narrow.
    """
    if kind == "bfloat16":
        raise ConfigError(
            "ONNX Runtime has no bfloat16 convolutions or matrix products on a CPU; use float16, or bfloat16 of the "
            "torch model"
        )
    if kind != "float16":
        raise ConfigError(f"half precision of an ONNX file should be float16; found {kind}")
    load_quantiser()
    onnx = importlib.import_module("onnx")

    def narrow(name: str, value: Any, axis: int) -> tuple[list[Any], list[Any]]:
        if value.size and np.abs(value).max() > LARGEST:
            largest = float(np.abs(value).max())
            raise ModelError(f"{source.name} holds weights up to {largest:.3g}: float16 ends at {LARGEST:g}")
        stored = onnx.numpy_helper.from_array(value.astype(np.float16), f"{name}_half")
        return [stored], [onnx.helper.make_node("Cast", [stored.name], [f"{name}_wide"], to=onnx.TensorProto.FLOAT)]

    with quantising(source, "float16"):
        proto = load_proto(source)
        operators, _ = restore_on_load(proto, narrow, "_wide")
        if not operators:
            raise ModelError(f"{source.name} has no convolutions or matrix products with float weights to narrow")
        finish(proto, source, target, {"how": "half", "types": kind, "operators": operators})
    return operators


class Bfloat16(nn.Module):
    """A torch model in bfloat16 with a float32 input and float32 logits (B, C)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(torch.bfloat16)

    def forward(self, input: Tensor) -> Tensor:
        """Logits (B, C) float32 of ``input`` (B, ...), cast to bfloat16 where it is floating."""
        logits = logits_of(self.model(input.to(torch.bfloat16) if input.is_floating_point() else input))
        return logits.float()


def to_bfloat16(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in bfloat16, in eval mode; half the bytes of its weights, inputs and logits float32."""
    return Bfloat16(model).eval()
