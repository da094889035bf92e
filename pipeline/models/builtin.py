"""Small models that need nothing else: ``cnn-WIDTH``, teacher or student, and ``mlp-WIDTH``.

Their parts have names, so that a feature can be asked for: ``hint=stage2`` is the second stage of a cnn.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

from pipeline.errors import ModelError


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    # Batch norm has a bias of its own, which makes the convolution's redundant.
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class ConvNet(nn.Module):
    """Two stages of two 3 x 3 convolutions with batch norm, halving the sides after each, then a linear head.

    Width W gives W channels in ``stage1`` and 2W in ``stage2``. ``pool`` averages over what is left of the image in
    a 2 x 2 grid, so that any image of 4 x 4 pixels or more will do. Input (B, C, H, W), output logits (B, classes).
    """

    def __init__(self, width: int, channels: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(*_block(channels, width), *_block(width, width), nn.MaxPool2d(2))
        self.stage2 = nn.Sequential(*_block(width, 2 * width), *_block(2 * width, 2 * width), nn.MaxPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        x = self.pool(self.stage2(self.stage1(x))).flatten(1)
        logits: Tensor = self.head(self.dropout(x))
        return logits


class Mlp(nn.Sequential):
    """One hidden layer of ``width`` rectified units. Input (B, ...) of any shape, output logits (B, classes)."""

    def __init__(self, width: int, inputs: int, classes: int) -> None:
        parts: list[tuple[str, nn.Module]] = [
            ("flatten", nn.Flatten()),
            ("hidden", nn.Linear(inputs, width)),
            ("activation", nn.ReLU()),
            ("head", nn.Linear(width, classes)),
        ]
        super().__init__(OrderedDict(parts))


def cnn(width: int, *, classes: int, input_shape: tuple[int, ...], dropout: float = 0.0) -> nn.Module:
    """``cnn-WIDTH`` for images (C, H, W). Raises ModelError for other inputs, or smaller than 4 x 4."""
    if len(input_shape) != 3 or min(input_shape[1:]) < 4:
        raise ModelError(
            f"cnn-{width} takes images (C, H, W) of at least 4 x 4 pixels; this dataset's examples have shape "
            f"{tuple(input_shape)}. mlp-{width} takes any shape"
        )
    return ConvNet(width, input_shape[0], classes, dropout)


def mlp(width: int, *, classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """``mlp-WIDTH`` for inputs of any shape."""
    return Mlp(width, math.prod(input_shape), classes)


FAMILIES = {"cnn": cnn, "mlp": mlp}
