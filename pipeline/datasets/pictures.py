"""How a stored picture becomes a model input: decode, resize, centre crop, normalise. Pillow and plain torch."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError, DataError
from pipeline.references import optional

NAMED = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Normalisations by name: (mean, standard deviation) per channel."""


@dataclass(frozen=True)
class Pictures:
    """The declared preprocessing of pictures.

    ``decode`` gives float32 (channels, H, W) in [0, 1] whose shorter side is ``resize`` pixels, which is what views
    act on; ``prepare`` crops the centre to (size, size) and normalises. ``resize`` larger than ``size`` leaves random
    crops something to choose from.
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int

    @classmethod
    def make(
        cls,
        size: int = 224,
        resize: int | None = None,
        mean: Any = None,
        std: Any = None,
        normalise: str = "none",
        channels: int = 3,
    ) -> Pictures:
        """From options. ``mean`` and ``std`` are a number, or several as "0.5/0.4/0.3"; ``normalise`` names a pair.

        Raises ConfigError with everything that is wrong.
        """
        problems = []
        if normalise not in NAMED:
            problems.append(f"normalise should be one of {', '.join(NAMED)}; found {normalise!r}")
        if channels not in (1, 3):
            problems.append(f"channels should be 1 or 3; found {channels!r}")
        resize = size if resize is None else resize
        if not isinstance(size, int) or not isinstance(resize, int) or not 1 <= size <= resize:
            problems.append(f"size and resize should be pixels, with 1 <= size <= resize; found {size} and {resize}")
        named = NAMED.get(normalise, NAMED["none"])
        pair = [_numbers(given, default) for given, default in ((mean, named[0]), (std, named[1]))]
        for name, values in zip(("mean", "std"), pair, strict=True):
            if values is None or len(values) not in (1, channels) or (name == "std" and min(values) <= 0):
                problems.append(f"{name} should be one number per channel ({channels}), or one for all; found {values}")
        if problems:
            raise ConfigError(problems)
        return cls(size, resize, pair[0] or (), pair[1] or (), channels)

    @property
    def text(self) -> str:
        """The declaration that goes into a cache's identity."""
        mean, std = ("/".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        mode = "RGB" if self.channels == 3 else "grey"
        return (
            f"{mode}, shorter side resized to {self.resize} (Pillow, bilinear), divided by 255, "
            f"centre crop {self.size}, mean {mean}, std {std}"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, size, size)."""
        return (self.channels, self.size, self.size)

    def decode(self, data: bytes, where: str) -> Tensor:
        """Picture bytes to float32 (channels, H, W) in [0, 1]. Raises DataError naming ``where`` on a corrupt one."""
        image = optional("PIL.Image", "vision", "reading pictures")
        try:
            with image.open(io.BytesIO(data)) as opened:
                opened.load()
                return self.tensor(opened)
        except (OSError, EOFError, SyntaxError, ValueError, struct.error, image.DecompressionBombError) as error:
            raise DataError(f"{where} should be a picture and cannot be decoded: {error}") from error

    def tensor(self, picture: Any) -> Tensor:
        """A Pillow image to float32 (channels, H, W) in [0, 1], shorter side ``resize``."""
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")
        picture = picture.convert("RGB" if self.channels == 3 else "L")
        width, height = picture.size
        shorter = min(width, height)
        if shorter != self.resize:
            scaled = (round(width * self.resize / shorter), round(height * self.resize / shorter))
            picture = picture.resize(scaled, resample=2)  # 2 is bilinear, with antialiasing when it shrinks
        array = np.asarray(picture, dtype=np.uint8).reshape(picture.size[1], picture.size[0], self.channels)
        return torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32)).div_(255)

    def prepare(self, x: Tensor) -> Tensor:
        """Centre crop to (channels, size, size) and normalise. Raises DataError when the picture is smaller."""
        height, width = x.shape[-2:]
        if min(height, width) < self.size:
            raise DataError(
                f"a picture should be at least {self.size} pixels on each side before the centre crop; found "
                f"{height} x {width}. A view that crops should give {self.size} or more"
            )
        top, left = (height - self.size) // 2, (width - self.size) // 2
        x = x[..., top : top + self.size, left : left + self.size].to(torch.float32)
        if self.mean == (0.0,) and self.std == (1.0,):
            return x.contiguous()
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std


def _numbers(given: Any, default: Sequence[float]) -> tuple[float, ...] | None:
    if given is None:
        return tuple(default)
    try:
        items = given.split("/") if isinstance(given, str) else [given] if isinstance(given, (int, float)) else given
        values = tuple(float(item) for item in items)
    except (TypeError, ValueError):
        return None
    return values if values and all(map(math.isfinite, values)) else None
