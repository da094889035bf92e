"""The built-in view transforms, in plain torch: affine, crop, flip, noise; mixup and cutmix, which take two examples.

Each is a frozen dataclass of its parameters. Those of one example take a float32 tensor and draw from torch's default
generator and from nothing else; those of two are told what was drawn (``mixing.Draw``). All arithmetic is element by
element, so that a replay gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Step:
    """Base of what a view is made by: a name and parameters."""

    name: ClassVar[str]

    def problems(self) -> list[str]:
        """What is wrong with the parameters."""
        return []

    def describe(self) -> str:
        """Every parameter, defaults included: what a cache's identity keeps."""
        given = ",".join(f"{f.name}={_text(getattr(self, f.name))}" for f in fields(self))
        return f"{self.name}:{given}" if given else self.name


@dataclass(frozen=True)
class Transform(Step):
    """Base of the built-in transforms of one example: images (C, H, W) in, images out."""

    torch_only: ClassVar[bool] = True  # draws from torch alone: the other generators need no seeding

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def _text(value: Any) -> str:
    # Exact: a cache's views are made again from this text. Whole numbers have one spelling, 1 for 1.0.
    return str(value).lower() if isinstance(value, bool) else repr(value).removesuffix(".0")


@dataclass(frozen=True)
class Affine(Transform):
    """Rotation up to ``degrees`` either way, shift up to ``translate`` of each side, size times 1 +- ``scale``,
    shear up to ``shear`` degrees; bilinear, ``fill`` outside."""

    name: ClassVar[str] = "affine"
    degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    fill: float = 0.0

    def problems(self) -> list[str]:
        wrong = []
        if not 0 <= self.degrees <= 180:
            wrong.append(f"affine: degrees should be 0 to 180, found {self.degrees:g}")
        if not 0 <= self.translate <= 1:
            wrong.append(f"affine: translate should be a fraction of the side, 0 to 1, found {self.translate:g}")
        if not 0 <= self.scale < 1:
            wrong.append(f"affine: scale should be 0 to less than 1 (0.1 means 90% to 110%), found {self.scale:g}")
        if not 0 <= self.shear < 90:
            wrong.append(f"affine: shear should be 0 to less than 90 degrees, found {self.shear:g}")
        return wrong

    def __call__(self, x: Tensor) -> Tensor:
        height, width = _sides(x, self.name)
        turn, right, down, grow, slant = (2 * u - 1 for u in torch.rand(5, dtype=torch.float64).tolist())
        angle, shear = math.radians(self.degrees * turn), math.tan(math.radians(self.shear * slant))
        size = 1 + self.scale * grow
        cos, sin = math.cos(angle) / size, math.sin(angle) / size
        # From output to input pixels, about the centre: undo the shift, then the rotation and size, then the shear.
        # Coordinates run from -1 to 1 along each side, hence the ratios of the sides.
        a, b = cos + shear * sin, (sin - shear * cos) * height / width
        c, d = -sin * width / height, cos
        dx, dy = 2 * self.translate * right, 2 * self.translate * down
        xs, ys = _axes(height, width)
        grid = torch.empty(1, height, width, 2)
        torch.add((xs - dx) * a, (ys - dy) * b, out=grid[0, :, :, 0])
        torch.add((xs - dx) * c, (ys - dy) * d, out=grid[0, :, :, 1])
        if self.fill == 0:
            return F.grid_sample(x[None], grid, align_corners=False)[0]
        return F.grid_sample(x[None] - self.fill, grid, align_corners=False)[0] + self.fill


@lru_cache(maxsize=64)
def _axes(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Coordinates of pixel centres: (1, width) and (height, 1), in -1 to 1."""
    xs, ys = ((2 * torch.arange(n, dtype=torch.float32) + 1) / n - 1 for n in (width, height))
    return xs[None, :], ys[:, None]


@dataclass(frozen=True)
class Crop(Transform):
    """A random crop. ``padding`` pads every side with zeros and cuts the old size out at random. Otherwise a random
    rectangle of ``scale`` to 1 of the area, its sides in a ratio of up to ``ratio``, is resized to ``size`` pixels
    (0: the old size); bilinear, antialiased."""

    name: ClassVar[str] = "crop"
    size: int = 0
    scale: float = 0.35
    ratio: float = 4 / 3
    padding: int = 0

    def problems(self) -> list[str]:
        wrong = []
        if self.size < 0 or self.padding < 0:
            wrong.append(f"crop: size and padding should be pixels, found {self.size:g} and {self.padding:g}")
        if not 0 < self.scale <= 1:
            wrong.append(f"crop: scale should be the smallest share of the area, 0 to 1, found {self.scale:g}")
        if self.ratio < 1:
            wrong.append(f"crop: ratio should be the longest side by the shortest, 1 or more, found {self.ratio:g}")
        return wrong

    def describe(self) -> str:
        return f"crop:padding={self.padding}" if self.padding else super().describe()

    def __call__(self, x: Tensor) -> Tensor:
        height, width = _sides(x, self.name)
        area, shape, down, right = torch.rand(4, dtype=torch.float64).tolist()
        if self.padding:
            pad = self.padding
            top, left = math.floor(down * (2 * pad + 1)), math.floor(right * (2 * pad + 1))
            return F.pad(x, (pad, pad, pad, pad))[..., top : top + height, left : left + width].contiguous()
        pixels = height * width * (self.scale + (1 - self.scale) * area)
        stretch = math.exp((2 * shape - 1) * math.log(self.ratio) / 2)
        tall = min(height, max(1, round(math.sqrt(pixels) / stretch)))
        wide = min(width, max(1, round(math.sqrt(pixels) * stretch)))
        top, left = math.floor(down * (height - tall + 1)), math.floor(right * (width - wide + 1))
        cut = x[None, ..., top : top + tall, left : left + wide]
        target = (self.size, self.size) if self.size else (height, width)
        return F.interpolate(cut, size=target, mode="bilinear", antialias=True)[0]


@dataclass(frozen=True)
class Flip(Transform):
    """Mirrored left to right with probability ``p``; with ``vertical``, top to bottom instead."""

    name: ClassVar[str] = "flip"
    p: float = 0.5
    vertical: bool = False

    def problems(self) -> list[str]:
        return [] if 0 <= self.p <= 1 else [f"flip: p should be a probability, found {self.p:g}"]

    def __call__(self, x: Tensor) -> Tensor:
        _sides(x, self.name)
        return x.flip(-2 if self.vertical else -1) if torch.rand(()).item() < self.p else x


@dataclass(frozen=True)
class Noise(Transform):
    """Gaussian noise of standard deviation ``std`` added to every value, of an array of any shape."""

    name: ClassVar[str] = "noise"
    std: float = 0.1

    def problems(self) -> list[str]:
        return [] if self.std >= 0 else [f"noise: std should be 0 or more, found {self.std:g}"]

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn(x.shape)


@dataclass(frozen=True)
class Chain:
    """Transforms one after another."""

    steps: tuple[Callable[[Tensor], Tensor], ...]

    @property
    def torch_only(self) -> bool:
        """Whether every step draws from torch alone."""
        return all(getattr(step, "torch_only", False) for step in self.steps)

    def __call__(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


@dataclass(frozen=True)
class Mixing(Step):
    """Base of the steps that mix an example with another, its partner, at a share drawn from ``Beta(alpha, alpha)``.

    ``drawn`` is that share, 0 to 1; ``place`` two numbers in [0, 1), for steps that mix at a place.
    """

    alpha: float = 1.0

    def problems(self) -> list[str]:
        return [] if self.alpha > 0 else [f"{self.name}: alpha should be above 0, found {self.alpha:g}"]

    def share(self, drawn: float, place: tuple[float, float], shape: tuple[int, ...]) -> float:
        """How much of the mixture, 0 to 1, is the example itself, for examples of ``shape``."""
        raise NotImplementedError

    def mix(self, x: Tensor, partner: Tensor, drawn: float, place: tuple[float, float]) -> Tensor:
        """The mixture of two examples of one shape."""
        raise NotImplementedError


@dataclass(frozen=True)
class Mixup(Mixing):
    """``share * x + (1 - share) * partner``, of arrays of any shape (Zhang et al. 2018, section 2)."""

    name: ClassVar[str] = "mixup"

    def share(self, drawn: float, place: tuple[float, float], shape: tuple[int, ...]) -> float:
        return drawn

    def mix(self, x: Tensor, partner: Tensor, drawn: float, place: tuple[float, float]) -> Tensor:
        return x * drawn + partner * (1 - drawn)


@dataclass(frozen=True)
class CutMix(Mixing):
    """A rectangle of the partner in the place of the example's own (Yun et al. 2019, section 3.1 and algorithm A1).

    Its sides are those of the image times ``sqrt(1 - drawn)``, in whole pixels, its centre lies anywhere, and what
    lies outside of the image is cut off: the share is that of the pixels that are left.
    """

    name: ClassVar[str] = "cutmix"

    def share(self, drawn: float, place: tuple[float, float], shape: tuple[int, ...]) -> float:
        (top, bottom), (left, right) = self._box(drawn, place, shape)
        return 1 - (bottom - top) * (right - left) / (shape[-2] * shape[-1])

    def mix(self, x: Tensor, partner: Tensor, drawn: float, place: tuple[float, float]) -> Tensor:
        (top, bottom), (left, right) = self._box(drawn, place, tuple(x.shape))
        mixed = x.clone()
        mixed[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
        return mixed

    def _box(self, drawn: float, place: tuple[float, float], shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """(first, end) along height and width."""
        _check_image(shape, self.name)
        found = []
        for side, at in zip(shape[-2:], place, strict=True):
            length = math.floor(side * math.sqrt(1 - drawn))
            first = math.floor(side * at) - length // 2
            found.append((max(0, first), min(side, max(0, first + length))))
        return found


BUILT_IN: dict[str, type[Step]] = {kind.name: kind for kind in (Affine, Crop, Flip, Noise, Mixup, CutMix)}


def _sides(x: Tensor, name: str) -> tuple[int, int]:
    _check_image(tuple(x.shape), name)
    return x.shape[-2], x.shape[-1]


def _check_image(shape: tuple[int, ...], name: str) -> None:
    if len(shape) != 3:
        raise ConfigError(f"{name} acts on images (C, H, W); these examples have shape {shape}")


def make_step(name: str, arguments: dict[str, Any]) -> tuple[Step | None, list[str]]:
    """A built-in step and what is wrong with its name and parameters (None when anything is)."""
    kind = BUILT_IN.get(name)
    if kind is None:
        return None, [f"there is no view transform {name!r}: choose {', '.join(BUILT_IN)}, or module:factory"]
    known = {f.name: f.default for f in fields(kind)}
    wrong = [f"{name} has no parameter {key!r}: it has {', '.join(known)}" for key in arguments if key not in known]
    for key, value in arguments.items():
        default = known.get(key)
        kinds = (bool,) if isinstance(default, bool) else (int,) if isinstance(default, int) else (int, float)
        is_number = isinstance(value, kinds) and isinstance(value, bool) == (kinds == (bool,))
        if key in known and not (is_number and math.isfinite(value)):
            wanted = "true or false" if kinds == (bool,) else "a whole number" if kinds == (int,) else "a number"
            wrong.append(f"{name}: {key} should be {wanted}, found {value!r}")
    if wrong:
        return None, wrong
    made = kind(**arguments)
    wrong = made.problems()
    return (None if wrong else made), wrong
