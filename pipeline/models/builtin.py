"""Small models that need nothing else: ``cnn-WIDTH`` and ``resnet-WIDTH``, teachers or students, and ``mlp-WIDTH``.

``gpt-WIDTH``, for token sequences, has a file of its own.

Their parts have names, so that a feature can be asked for: ``hint=stage2`` is the second stage of a cnn.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models.gpt import gpt


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


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norm beside a shortcut (He et al. 2016); ``stride`` halves the sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        changes = stride > 1 or inputs != outputs
        shortcut = [nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*shortcut) if changes else nn.Identity()
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        found: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return found


class ResNet(nn.Module):
    """A 3 x 3 convolution, then three stages of ``blocks`` residual blocks, of W, 2W and 4W channels, and a head.

    The sides are halved by the second stage and again by the third; what is left is averaged. About 298 W^2 parameters
    with one block a stage. Input (B, C, H, W), output logits (B, classes).
    """

    def __init__(self, width: int, channels: int, classes: int, blocks: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_block(channels, width))
        self.stage1 = self._stage(width, width, 1, blocks)
        self.stage2 = self._stage(width, 2 * width, 2, blocks)
        self.stage3 = self._stage(2 * width, 4 * width, 2, blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Module:
        first = Residual(inputs, outputs, stride)
        return nn.Sequential(first, *(Residual(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        x = self.pool(self.stage3(self.stage2(self.stage1(self.stem(x))))).flatten(1)
        logits: Tensor = self.head(x)
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
    _check_images(f"cnn-{width}", width, input_shape)
    return ConvNet(width, input_shape[0], classes, dropout)


def resnet(width: int, *, classes: int, input_shape: tuple[int, ...], blocks: int = 1) -> nn.Module:
    """``resnet-WIDTH`` for images (C, H, W). Raises ModelError for other inputs, or smaller than 4 x 4."""
    _check_images(f"resnet-{width}", width, input_shape)
    if blocks < 1:
        raise ModelError(f"resnet-{width} needs blocks=1 or more in each stage; found {blocks}")
    return ResNet(width, input_shape[0], classes, blocks)


def _check_images(name: str, width: int, input_shape: tuple[int, ...]) -> None:
    if len(input_shape) != 3 or min(input_shape[1:]) < 4:
        raise ModelError(
            f"{name} takes images (C, H, W) of at least 4 x 4 pixels; this dataset's examples have shape "
            f"{tuple(input_shape)}. mlp-{width} takes any shape"
        )


def mlp(width: int, *, classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """``mlp-WIDTH`` for inputs of any shape."""
    return Mlp(width, math.prod(input_shape), classes)


FAMILIES = {"cnn": cnn, "resnet": resnet, "mlp": mlp, "gpt": gpt}
CAUSAL = ("gpt",)
"""The families that take token numbers; the others take float32 inputs."""
