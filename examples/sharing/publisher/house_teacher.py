"""The teacher of the house: its code and its weights stay with the publisher."""

from __future__ import annotations

from torch import nn


def build(classes: int, input_shape: tuple[int, ...], width: int = 16) -> nn.Module:
    """Logits of pictures of any size."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )
