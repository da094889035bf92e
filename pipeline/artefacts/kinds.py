"""The kinds of files that compute logits, and what opening one gives, whichever runtime answers."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.artefacts.checking import Floats, Inputs, Predictor
from pipeline.errors import ModelError
from pipeline.models import logits_of

ONNX, PT2, PTE = ".onnx", ".pt2", ".pte"
KINDS = (ONNX, PT2, PTE)

_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".joblib")


@dataclass(frozen=True)
class Opened:
    """A runtime's view of a file: ``predict`` takes (B, *input_shape) float32 and gives (B, classes) float32 logits.

    Of a language model, ``dtype`` int64, it takes tokens (B, T) and gives (B, T, classes). ``input_shape`` and
    ``classes`` are None where the file leaves them open. ``batch``: the one batch size that the
    file was fixed to, ``largest``: the largest it takes; None where there is no such limit. ``predict`` splits and
    fills up, so that any B may be given. ``dtype`` is what the file itself takes: ``predict`` converts to it.
    """

    predict: Predictor = field(repr=False, compare=False)
    runtime: str
    input_shape: tuple[int, ...] | None
    classes: int | None
    batch: int | None = None
    largest: int | None = None
    dtype: str = "float32"


class Float32Logits(nn.Module):
    """A model with its output reduced to float32 logits, which takes float32 whatever precision its weights have.

    Tokens are taken as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
        self.precision = kinds.pop() if len(kinds) == 1 else torch.float32

    def forward(self, input: Tensor) -> Tensor:
        if self.precision == torch.float32:
            return logits_of(self.model(input))
        values = input.to(self.precision) if input.is_floating_point() else input
        return logits_of(self.model(values)).float()


def example_of(input_shape: tuple[int, ...], discrete: bool, batch: int = 2) -> Tensor:
    """Zeros (batch, *input_shape) to trace a model with: float32, or int64 where inputs are token sequences."""
    if discrete:  # a length of 1 would be frozen into the program
        return torch.zeros((batch, max(2, *input_shape)), dtype=torch.int64)
    return torch.zeros((batch, *input_shape))


def free_sizes(discrete: bool, largest: int | None = None) -> tuple[dict[int, Any]]:
    """What a file leaves open, as torch.export takes it: the batch, and the length of token sequences."""
    open_ = {0: torch.export.Dim("batch", min=1, max=largest)}
    return ({**open_, 1: torch.export.Dim("length", min=1)} if discrete else open_,)


def kind_of(path: Path) -> str:
    """``.onnx``, ``.pt2`` or ``.pte``. Raises ModelError, which names what was found, for anything else."""
    expected = f"an artefact should be a file of kind {', '.join(KINDS)}"
    if path.is_dir():
        raise ModelError(f"{expected}; {path} is a folder")
    if not path.is_file():
        raise ModelError(f"{expected}; there is none at {path}")
    found = path.suffix.lower()
    if found in KINDS:
        return found
    if _is_torchscript(path):
        what = "a TorchScript archive, which is a program: export the model with torch.export or to ONNX"
    elif found in _PICKLES:
        what = "a checkpoint or pickle, which computes nothing: name its model, with these as its weights"
    elif found == ".safetensors":
        what = "weights alone: name their model, with these as its weights"
    else:
        what = f"a file that ends in {found!r}" if found else "a file without an ending"
    raise ModelError(f"{expected}; {path} is {what}")


def _is_torchscript(path: Path) -> bool:
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def in_batches(call: Predictor, size: int, *, fill: bool) -> Predictor:
    """``call`` for any number of examples, where it takes ``size`` at most, or exactly that many with ``fill``.

    The last examples of a short batch are repeated to fill it, and their extra answers dropped.
    """

    def predict(inputs: Inputs) -> Floats:
        found = []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            short = size - len(part) if fill else 0
            filled = np.concatenate([part, np.repeat(part[-1:], short, axis=0)]) if short else part
            found.append(call(filled)[: len(part)])
        return np.concatenate(found)

    return predict
