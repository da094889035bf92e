"""Pictures and networks of the sizes that people use, with random weights: what the GPU benchmarks run on.

Plain torch, so that nothing has to be installed or downloaded. Reached as anybody's own parts are:
``--data benchmarks.vision:Pictures``, ``--teacher benchmarks.vision:vit``.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.synthetic import Names
from pipeline.datasets import Dataset

CLASSES = 1000
POOL = 64
"""Different pictures; the others are these again. A network's time does not depend on what it sees."""


class Pictures(Dataset):
    """``rows`` training pictures (3, side, side), held as bytes and made float32 as a decoder would leave them."""

    def __init__(self, rows: int, side: int = 224) -> None:
        random = torch.Generator().manual_seed(0)
        self._pool = torch.randint(0, 256, (POOL, 3, side, side), dtype=torch.uint8, generator=random)
        super().__init__(
            name=f"{rows} synthetic pictures of {side} pixels",
            classes=[f"class {c}" for c in range(CLASSES)],
            ids=Names(rows),
            labels=np.arange(rows) * 7919 % CLASSES,
            splits=np.zeros(rows, dtype=np.int8),
            input_shape=(3, side, side),
        )

    def load(self, row: int) -> Tensor:
        """(3, side, side) float32 in [0, 1]."""
        return self._pool[row % POOL].float().div_(255)

    def content_digest(self, row: int) -> str:
        """A digest of how the row is made: hashing rows that nobody stores would be measured as the pipeline's work."""
        return hashlib.sha256(f"{self.name}\0{row}".encode()).hexdigest()


def _conv(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class _Residual(nn.Module):
    """Two 3 x 3 convolutions, or a bottleneck of three, beside a shortcut."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        if outputs == width:
            parts = [_conv(inputs, width, 3, stride), nn.ReLU(), _conv(width, width, 3)]
        else:
            parts = [_conv(inputs, width, 1), nn.ReLU(), _conv(width, width, 3, stride), nn.ReLU()]
            parts.append(_conv(width, outputs, 1))
        nn.init.constant_(parts[-1][1].weight, 0.2)  # with random weights, sums of residuals would leave float16
        self.body = nn.Sequential(*parts)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


BLOCKS = {10: (1, (1, 1, 1, 1)), 18: (1, (2, 2, 2, 2)), 50: (4, (3, 4, 6, 3))}
"""Depth -> how much wider a bottleneck's output is (1: no bottleneck), and residuals per stage."""


def resnet(depth: int = 50, width: int = 64, enlarge: int = 1, classes: int = CLASSES) -> nn.Module:
    """A residual network as of He et al. 2016; ``enlarge`` makes small pictures large on the device."""
    expansion, counts = BLOCKS[depth]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts: list[nn.Module] = [_conv(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        channels = width
        for stage, count in enumerate(counts):
            for number in range(count):
                inner = width << stage
                parts.append(_Residual(channels, inner, inner * expansion, 2 if stage and not number else 1))
                channels = inner * expansion
        parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return _enlarged(nn.Sequential(*parts), enlarge)


class _Attention(nn.Module):
    """A block of a transformer, norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.taken, self.given = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        taken = self.taken(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*taken)
        x = x + self.given(seen.transpose(1, 2).flatten(2))
        return x + self.dense(self.norm2(x))


class _Vit(nn.Module):
    def __init__(self, side: int, patch: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(_Attention(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(dim=1))
        return logits


def vit(
    side: int = 224,
    patch: int = 16,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    enlarge: int = 1,
    classes: int = CLASSES,
) -> nn.Module:
    """A vision transformer as of Dosovitskiy et al. 2021, of size B unless told otherwise, with a mean for its token.

    ``enlarge`` makes small pictures large on the device, so that reading them costs nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _enlarged(_Vit(side, patch, width, depth, heads, classes), enlarge)


def instant(side: int = 14, classes: int = CLASSES) -> nn.Module:
    """A teacher that costs nothing: what a dump then takes is all the rest of its work."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, classes))


def _enlarged(model: nn.Module, enlarge: int) -> nn.Module:
    return model if enlarge == 1 else nn.Sequential(nn.Upsample(scale_factor=enlarge), model)
