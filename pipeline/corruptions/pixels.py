"""Corruptions of pixel values: noise, light and colour, fog, JPEG. Each takes an image, a severity and a draw."""

from __future__ import annotations

import io

import numpy as np

from pipeline.corruptions.sizes import Draw, Floats, Image, between, side_of
from pipeline.references import optional


def gaussian_noise(x: Image, severity: int, draw: Draw) -> Image:
    std = between(side_of(x), (0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38), severity)
    return x + std * draw.standard_normal(x.shape)


def shot_noise(x: Image, severity: int, draw: Draw) -> Image:
    photons = between(side_of(x), (500, 250, 100, 75, 50), (60, 25, 12, 5, 3), severity)
    return np.asarray(draw.poisson(x * photons) / photons)


def impulse_noise(x: Image, severity: int, draw: Draw) -> Image:
    share = between(side_of(x), (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27), severity)
    return np.asarray(np.where(draw.random_sample(x.shape) < share, draw.random_sample(x.shape) < 0.5, x))


def speckle_noise(x: Image, severity: int, draw: Draw) -> Image:
    std = between(side_of(x), (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6), severity)
    return x * (1 + std * draw.standard_normal(x.shape))


def contrast(x: Image, severity: int, draw: Draw) -> Image:
    kept = between(side_of(x), (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05), severity)
    mean = x.mean(axis=(1, 2), keepdims=True)
    return np.asarray(mean + kept * (x - mean))


def brightness(x: Image, severity: int, draw: Draw) -> Image:
    """The value of hue, saturation and value is raised: with the other two kept, channels go in proportion."""
    value = x.max(axis=0, keepdims=True)
    more = between(side_of(x), (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5), severity)
    raised = np.minimum(value + more, 1.0)
    return np.asarray(np.where(value > 0, x * raised / np.where(value > 0, value, 1.0), raised))


def saturate(x: Image, severity: int, draw: Draw) -> Image:
    """Saturation times a constant plus another: less colour at severities 1 and 2, more from 3 on. Grey stays grey."""
    times = between(side_of(x), (0.3, 0.1, 1.5, 2.0, 2.5), (0.3, 0.1, 2.0, 5.0, 20.0), severity)
    plus = (0.0, 0.0, 0.0, 0.1, 0.2)[severity - 1]
    value = x.max(axis=0, keepdims=True)
    spread = value - x.min(axis=0, keepdims=True)
    own = np.divide(spread, value, out=np.zeros_like(value), where=value > 0)
    meant = np.clip(own * times + plus, 0, 1)
    return np.asarray(value - (value - x) * np.divide(meant, own, out=np.zeros_like(own), where=own > 0))


def fog(x: Image, severity: int, draw: Draw) -> Image:
    side = side_of(x)
    thick = between(side, (0.2, 0.5, 0.75, 1.0, 1.5), (1.5, 2.0, 2.5, 2.5, 3.0), severity)
    decay = between(side, (3.0, 3.0, 2.5, 2.0, 1.75), (2.0, 2.0, 1.7, 1.5, 1.4), severity)
    height, width = x.shape[-2:]
    brightest = x.max()
    foggy = x + thick * plasma(max(height, width), decay, draw)[:height, :width]
    return np.asarray(foggy * brightest / (brightest + thick))


def plasma(side: int, decay: float, draw: Draw) -> Floats:
    """A cloud (n, n) in [0, 1], n the power of two from ``side`` on: the diamond-square algorithm, on a torus.

    Each halving of the grid adds half as wide a detail whose range is ``decay`` squared times smaller.
    """
    n = 1 << max(1, (side - 1).bit_length())
    cloud, step, reach = np.zeros((n, n)), n, 1.0

    def about(total: Floats) -> Floats:
        return np.asarray(total / 4 + draw.uniform(-reach, reach, total.shape))

    while step > 1:
        half = step // 2
        corners = cloud[::step, ::step]
        across, along = corners + np.roll(corners, -1, axis=1), corners + np.roll(corners, -1, axis=0)
        centres = about(along + np.roll(along, -1, axis=1))
        cloud[half::step, half::step] = centres
        cloud[::step, half::step] = about(across + centres + np.roll(centres, 1, axis=0))
        cloud[half::step, ::step] = about(along + centres + np.roll(centres, 1, axis=1))
        step, reach = half, reach / decay**2
    cloud -= cloud.min()
    return np.asarray(cloud / cloud.max())


def jpeg(x: Image, severity: int, draw: Draw) -> Image:
    image = optional("PIL.Image", "vision", "the corruption jpeg")
    quality = round(between(side_of(x), (80, 65, 58, 50, 40), (25, 18, 15, 10, 7), severity))
    stored = np.rint(x * 255).astype(np.uint8)
    buffer = io.BytesIO()
    image.fromarray(stored[0] if len(stored) == 1 else stored.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality)
    with image.open(buffer) as opened:
        found = np.asarray(opened, dtype=np.float64) / 255
    return found[None] if found.ndim == 2 else np.ascontiguousarray(found.transpose(2, 0, 1))
