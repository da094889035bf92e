"""Attention transfer: the student is active at the places where the teacher is."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from pipeline.errors import ModelError
from pipeline.losses.partition import wide
from pipeline.losses.sides import MAP, SEQUENCE, no_shared_places, shared_places, sides


def attention_map(features: Tensor) -> Tensor:
    """(B, places), of Euclidean length 1: the mean over channels of the squares, flattened, divided by its length.

    Of maps (B, C, H, W) or sequences (B, L, D). float32, or float64 where that was given. Zeros stay zeros.
    Raises ModelError for other shapes.
    """
    return _normalised(_energy(wide(features)))


def attention_transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of the two attention maps of each row, (B,).

    Zagoruyko and Komodakis 2017, equation 2 with p = 2, in the form of the code that they released: the mean over
    places of the squared differences. (The equation has the length of the difference, not squared.) It is at most
    2 / places, which is why it wants a weight of the order of 1000. Numbers of channels may differ, and so may the
    sides of two maps: the squares of the larger are averaged down to the smaller before the normalisation.

    Raises ModelError for features that are not both maps, or both sequences of one length.
    """
    student, teacher = sides(student, teacher)
    shapes = tuple(student.shape[1:]), tuple(teacher.shape[1:])
    places = shared_places(*shapes)
    if places is None:
        raise no_shared_places("attention transfer needs", *shapes)
    maps = [_energy(side) for side in (student, teacher)]
    if len(places) == 2:
        maps = [functional.adaptive_avg_pool2d(side[:, None], places)[:, 0] for side in maps]
    return (_normalised(maps[0]) - _normalised(maps[1])).square().mean(dim=1)


def _energy(features: Tensor) -> Tensor:
    """The mean square over channels: (B, H, W) of maps, (B, L) of sequences."""
    if features.ndim not in (1 + MAP, 1 + SEQUENCE):
        raise ModelError(
            f"attention is over places: features should be (B, C, H, W) or (B, L, D); found {tuple(features.shape)}"
        )
    return features.square().mean(dim=1 if features.ndim == 1 + MAP else 2)


def _normalised(maps: Tensor) -> Tensor:
    # Zeros are divided by 1e-12 here; their gradient is 0 all the same, being that of a square at 0.
    return functional.normalize(maps.flatten(1), dim=1)
