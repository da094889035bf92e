"""Corruptions of where things are: blurs, coarse pixels, warps and moves, a part hidden."""

from __future__ import annotations

import math

import numpy as np

from pipeline.corruptions.sizes import (
    LARGE,
    TINY,
    Draw,
    Floats,
    Image,
    between,
    blurred,
    centred,
    length,
    places_of,
    side_of,
    smoothed,
)

FIELD, SIGMA = 28, 4
"""Of elastic's field."""


def gaussian_blur(x: Image, severity: int, draw: Draw) -> Image:
    return smoothed(x, length(side_of(x), (0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6), severity))


def defocus_blur(x: Image, severity: int, draw: Draw) -> Image:
    radius = length(side_of(x), (0.3, 0.4, 0.5, 1.0, 1.5), (3, 4, 6, 8, 10), severity)
    unit = np.linspace(-1, 1, 4 * math.ceil(radius) + 31)
    down, right = (axis.ravel() for axis in np.meshgrid(unit, unit, indexing="ij"))
    inside = down**2 + right**2 <= 1
    return blurred(x, radius * np.stack([down[inside], right[inside]], axis=1), np.ones(int(inside.sum())))


def motion_blur(x: Image, severity: int, draw: Draw) -> Image:
    """Half a Gaussian along a line, within 45 degrees of level, as ImageMagick does it; its mean stays in place."""
    side = side_of(x)
    reach = 2 * length(side, (6, 6, 6, 8, 9), (10, 15, 15, 15, 20), severity)
    sigma = length(side, (1.0, 1.5, 2.0, 2.0, 2.5), (3, 5, 8, 12, 15), severity)
    along = np.linspace(0, reach, 4 * math.ceil(reach) + 1)
    weights = np.exp(-0.5 * np.square(along / sigma))
    along = along - np.average(along, weights=weights)
    angle = math.radians(draw.uniform(-45, 45))
    return blurred(x, np.stack([along * math.sin(angle), along * math.cos(angle)], axis=1), weights)


def zoom_blur(x: Image, severity: int, draw: Draw) -> Image:
    largest = between(side_of(x), (1.05, 1.1, 1.15, 1.2, 1.25), (1.1, 1.15, 1.2, 1.25, 1.3), severity)
    down, right = places_of(x)
    zoomed = [centred(x, down / zoom, right / zoom) for zoom in np.linspace(1, largest, 11)]
    return np.asarray((x + np.sum(zoomed, axis=0)) / (len(zoomed) + 1))


def pixelate(x: Image, severity: int, draw: Draw) -> Image:
    """Means over square cells, whose side need not be a whole number of pixels: 1.7 to 4 of them at 224 pixels.

    What a cell has beyond one pixel goes with the side. It comes near what CIFAR-10-C has, 1.05 to 1.54 pixels, whose
    whole numbers of cells would be alike at several severities of a smaller image. Where the cells begin is drawn: how
    they fall on the pixels matters more than their size when that is little more than one.
    """
    wide = 1 / (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    cell = 1 + (wide - 1) * max(side_of(x), TINY) / LARGE
    rows, columns = (_cells(n, cell, cell * draw.random_sample()) for n in x.shape[-2:])
    # Of few terms each, in a fixed order: einsum without optimisation uses no threads.
    return np.asarray(np.einsum("hi,ciw->chw", rows, np.einsum("wj,chj->chw", columns, x)))


def _cells(pixels: int, cell: float, before: float) -> Floats:
    """(pixels, pixels): the weights of pixels in the mean over cells that each pixel is given.

    The first cell starts ``before`` pixels outside of the image.
    """
    edges = cell * np.arange(math.ceil((pixels + before) / cell) + 1) - before
    at = np.arange(pixels)
    low, high = np.maximum(edges[:-1, None], at[None, :]), np.minimum(edges[1:, None], at[None, :] + 1)
    covered = np.maximum(high - low, 0.0)  # (cells, pixels): how much of a pixel is in a cell
    return np.asarray(np.einsum("cp,cq->pq", covered, covered / covered.sum(axis=1, keepdims=True)))


def elastic(x: Image, severity: int, draw: Draw) -> Image:
    """Pixels move by a smooth random field, by a root mean square of 1 to 5% of the side in each direction.

    The field is made for a side of 28 with a sigma of 4, as Simard et al. (2003) have it, and stretched: it is the same
    at any resolution. It is cut out of a larger one, so that the edges move no more than the rest.
    """
    side, margin = side_of(x), 4 * SIGMA
    grid = [round(FIELD * n / side) for n in x.shape[-2:]]
    field = smoothed(draw.uniform(-1, 1, (2, *(n + 2 * margin for n in grid))), SIGMA)[
        :, margin:-margin, margin:-margin
    ]
    down, right = places_of(x)
    field = centred(field, down * (FIELD / side), right * (FIELD / side))
    field *= (0.01, 0.02, 0.03, 0.04, 0.05)[severity - 1] * side / np.sqrt(np.mean(np.square(field)))
    return centred(x, down + field[0], right + field[1])


def occlusion(x: Image, severity: int, draw: Draw) -> Image:
    """A grey square somewhere inside of the image; a pixel that it covers in part is grey in part."""
    side = (0.15, 0.225, 0.3, 0.375, 0.45)[severity - 1] * side_of(x)
    covers = []
    for pixels in x.shape[-2:]:
        start, at = draw.random_sample() * (pixels - side), np.arange(pixels)
        covers.append(np.clip(np.minimum(start + side, at + 1) - np.maximum(start, at), 0, 1))
    hidden = covers[0][:, None] * covers[1][None, :]
    return np.asarray(x * (1 - hidden) + 0.5 * hidden)


def rotation(x: Image, severity: int, draw: Draw) -> Image:
    angle = math.radians((6, 12, 18, 24, 30)[severity - 1]) * (1 if draw.random_sample() < 0.5 else -1)
    down, right = places_of(x)
    cos, sin = math.cos(angle), math.sin(angle)
    return centred(x, cos * down + sin * right, cos * right - sin * down)


def translation(x: Image, severity: int, draw: Draw) -> Image:
    far = (0.03, 0.06, 0.09, 0.12, 0.15)[severity - 1] * side_of(x)
    angle = draw.uniform(0, 2 * math.pi)
    down, right = places_of(x)
    return centred(x, down - far * math.sin(angle), right - far * math.cos(angle))
