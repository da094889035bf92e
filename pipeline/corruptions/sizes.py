"""How strong a corruption is at a side length, and how an image is blurred and sampled: plain NumPy, no threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float64]
"""(C, H, W) in [0, 1]."""
Floats = npt.NDArray[Any]
Draw = np.random.RandomState
"""What a corruption draws from; its streams stay as they are from release to release."""
TINY, SMALL, LARGE = 16, 32, 224
"""Sides in pixels: the last two are those that CIFAR-10-C and ImageNet-C were made for."""

DIRECT = 96
"""Weights of a kernel from which on a Fourier transform is faster than a sum."""


def side_of(x: Image) -> int:
    """The shorter side, in pixels."""
    return int(min(x.shape[-2:]))


def between(side: int, small: Sequence[float], large: Sequence[float], severity: int) -> float:
    """A constant at ``side``: ``small`` up to 32 pixels, ``large`` from 224 on, on a line between.

    >>> between(8, [1.0], [3.0], 1), between(128, [1.0], [3.0], 1), between(448, [1.0], [3.0], 1)
    (1.0, 2.0, 3.0)
    """
    share = min(max((side - SMALL) / (LARGE - SMALL), 0.0), 1.0)
    low, high = small[severity - 1], large[severity - 1]
    return low + share * (high - low)


def length(side: int, small: Sequence[float], large: Sequence[float], severity: int) -> float:
    """As ``between``, in pixels: beyond 224 pixels it grows with the side, and from 16 to 8 it shrinks with it.

    >>> length(448, [1.0], [3.0], 1), length(16, [1.0], [3.0], 1), length(8, [1.0], [3.0], 1)
    (6.0, 1.0, 0.5)
    """
    return between(side, small, large, severity) * max(1.0, side / LARGE) * min(1.0, max(side, TINY // 2) / TINY)


def kernel_of(places_PD: Floats, weights_P: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Whole-pixel displacements (K, D) and weights (K,) of the mean over displacements (P, D), D of 1 or 2.

    A displacement between pixels counts for those around it as in linear interpolation, so that a blur of less than
    a pixel is one too. Weights sum to 1.
    """
    places = np.atleast_2d(np.asarray(places_PD, dtype=np.float64))
    lowest = np.floor(places).astype(np.int64)
    share = places - lowest
    reach = int(np.abs(lowest).max()) + 1
    held = np.zeros((2 * reach + 1,) * places.shape[1])
    for corner in np.ndindex(*(2,) * places.shape[1]):
        part = np.prod(np.where(corner, share, 1 - share), axis=1)
        np.add.at(held, tuple((lowest + corner + reach).T), part * weights_P)
    held /= held.sum()
    found = np.argwhere(held > 1e-12)
    return found - reach, held[tuple(found.T)]


def blurred(x: Image, places_PD: Floats, weights_P: Floats) -> Image:
    """The weighted mean of ``x`` (C, H, W) moved by displacements (P, 2), down and right; the edge pixels go on."""
    offsets, weights = kernel_of(places_PD, weights_P)
    reach = int(np.abs(offsets).max())
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    height, width = x.shape[-2:]
    if len(weights) > DIRECT:
        sides = padded.shape[-2:]
        kernel = np.zeros(sides)
        kernel[tuple((offsets + reach).T)] = weights
        product = np.fft.rfft2(padded) * np.fft.rfft2(kernel).conj()
        return np.asarray(np.fft.irfft2(product, sides)[:, :height, :width])
    found = np.zeros_like(x)
    for (down, right), weight in zip((offsets + reach).tolist(), weights.tolist(), strict=True):
        found += weight * padded[:, down : down + height, right : right + width]
    return found


def smoothed(x: Image, sigma: float) -> Image:
    """``x`` (C, H, W) under a Gaussian of ``sigma`` pixels, one axis after the other."""
    places = sigma * np.linspace(-4, 4, 161)
    weights = np.exp(-0.5 * np.square(places / sigma))
    still = np.zeros_like(places)
    for axes in ((places, still), (still, places)):
        x = blurred(x, np.stack(axes, axis=1), weights)
    return x


def sampled(x: Image, down_HW: Floats, right_HW: Floats) -> Image:
    """``x`` (C, H, W) at places (H, W) in pixels, bilinear; beyond the edge it goes on as it ends."""
    height, width = x.shape[-2:]
    down, right = np.clip(down_HW, 0, height - 1), np.clip(right_HW, 0, width - 1)
    top, left = np.floor(down).astype(np.int64), np.floor(right).astype(np.int64)
    below, beside = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    low, along = down - top, right - left
    upper = x[:, top, left] * (1 - along) + x[:, top, beside] * along
    lower = x[:, below, left] * (1 - along) + x[:, below, beside] * along
    return np.asarray(upper * (1 - low) + lower * low)


def places_of(x: Image) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Where pixels are, down (H, W) and right (H, W), from the centre of the image."""
    height, width = x.shape[-2:]
    down, right = np.mgrid[:height, :width].astype(np.float64)
    return down - (height - 1) / 2, right - (width - 1) / 2


def centred(x: Image, down_HW: Floats, right_HW: Floats) -> Image:
    """``sampled`` at places from the centre of the image."""
    height, width = x.shape[-2:]
    return sampled(x, down_HW + (height - 1) / 2, right_HW + (width - 1) / 2)
