"""Attention transfer, against loops in float64 and against torchdistill."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.losses import attention_map, attention_transfer_loss
from tests.losses.features import check_degenerate, check_precision, check_teacher_is_constant, random


def energy64(features: torch.Tensor) -> list[list[float]]:
    """(H, W) of one map (C, H, W)."""
    channels, height, width = features.shape
    return [
        [sum(float(features[c, y, x]) ** 2 for c in range(channels)) / channels for x in range(width)]
        for y in range(height)
    ]


def pooled64(energy: list[list[float]], height: int, width: int) -> list[float]:
    """Window i of n cuts reaches from floor(i * size / n) to ceil((i + 1) * size / n)."""
    found = []
    for y in range(height):
        for x in range(width):
            rows = energy[y * len(energy) // height : math.ceil((y + 1) * len(energy) / height)]
            span = slice(x * len(energy[0]) // width, math.ceil((x + 1) * len(energy[0]) / width))
            values = [value for row in rows for value in row[span]]
            found.append(sum(values) / len(values))
    return found


def unit64(values: list[float]) -> list[float]:
    length = math.sqrt(sum(value**2 for value in values))
    return [value / length for value in values]


PAIRS = [
    ((3, 4, 5), (6, 4, 5)),
    ((3, 2, 2), (4, 6, 6)),
    ((3, 7, 7), (2, 4, 3)),
    ((3, 6, 2), (2, 3, 5)),
    ((1, 1, 1), (2, 3, 3)),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_maps_give_the_definition_pooled_to_the_smaller_sides(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    student, teacher = random(3, *one), random(3, *other, seed=1)
    height, width = min(one[1], other[1]), min(one[2], other[2])
    expected = []
    for row in range(3):
        a, b = (unit64(pooled64(energy64(side[row]), height, width)) for side in (student, teacher))
        expected.append(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / (height * width))
    np.testing.assert_allclose(attention_transfer_loss(student, teacher).numpy(), expected, rtol=1e-9, atol=1e-14)


def test_sequences_are_attended_position_by_position() -> None:
    student, teacher = random(3, 5, 4), random(3, 5, 7, seed=1)
    expected = []
    for row in range(3):
        a, b = (unit64([float(p.square().mean()) for p in side[row]]) for side in (student, teacher))
        expected.append(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 5)
    np.testing.assert_allclose(attention_transfer_loss(student, teacher).numpy(), expected, rtol=1e-9)
    # The same numbers as a map of one row of places.
    as_maps = [side.mT[:, :, None] for side in (student, teacher)]
    torch.testing.assert_close(attention_transfer_loss(*as_maps), attention_transfer_loss(student, teacher))


def test_attention_maps_have_length_one() -> None:
    for features, places in ((random(3, 4, 2, 5), 10), (random(3, 6, 4), 6)):
        found = attention_map(features)
        assert found.shape == (3, places) and (found >= 0).all()
        torch.testing.assert_close(found.square().sum(dim=1), torch.ones(3, dtype=torch.float64))


def test_the_order_and_scale_of_channels_and_their_signs_change_nothing() -> None:
    student, teacher = random(4, 6, 3, 3), random(4, 5, 3, 3, seed=1)
    reference = attention_transfer_loss(student, teacher)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    for s, t in ((student[:, order], teacher), (student * 7, teacher * 0.01), (-student, teacher.flip(1))):
        torch.testing.assert_close(attention_transfer_loss(s, t), reference, rtol=1e-9, atol=1e-14)
    # Twice the channels that say the same are no other map.
    torch.testing.assert_close(attention_map(torch.cat([student, student], dim=1)), attention_map(student))
    assert attention_transfer_loss(student, 3 * student).abs().max() < 1e-20
    assert (reference > 0).all() and (reference <= 2 / 9).all()


def test_places_do_count() -> None:
    student = random(2, 4, 3, 3)
    assert (attention_transfer_loss(student, student.flip(2)) > 1e-4).all()


@pytest.mark.parametrize("shapes", [((3, 4, 3), (2, 4, 3)), ((2, 3, 3), (2, 2, 2)), ((4, 2), (4, 3))])
def test_gradients_are_exact(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    student, teacher = random(3, *shapes[0]).requires_grad_(), random(3, *shapes[1], seed=1)
    assert torch.autograd.gradcheck(lambda s: attention_transfer_loss(s, teacher), student)


def test_degenerate_features_and_half_precision() -> None:
    check_degenerate(attention_transfer_loss, 3, 2, 2)
    check_degenerate(attention_transfer_loss, 4, 3)
    check_precision(attention_transfer_loss, 3, 4, 4)
    check_teacher_is_constant(attention_transfer_loss, 3, 2, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [((2, 3), (2, 3)), ((2, 3, 4), (2, 4, 4)), ((2, 3, 4), (2, 3, 4, 4)), ((2, 3, 4, 4), (3, 3, 4, 4))],
)
def test_other_shapes_are_refused_by_name(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        attention_transfer_loss(torch.zeros(one), torch.zeros(other))
    named = (one, other) if one[0] != other[0] else (one[1:], other[1:])
    assert all(str(shape) in str(caught.value) for shape in named)


def test_a_vector_has_no_places() -> None:
    with pytest.raises(ModelError, match=r"\(2, 3\)"):
        attention_map(torch.zeros(2, 3))


def test_torchdistill_gives_the_same() -> None:
    theirs = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = random(4, 3, 5, 5).float(), random(4, 8, 5, 5, seed=1).float()
    where = {"m": {"student": {"io": "output", "path": "m"}, "teacher": {"io": "output", "path": "m"}}}
    expected = theirs.ATLoss(where, mode="code")({"m": {"output": student}}, {"m": {"output": teacher}})
    torch.testing.assert_close(attention_transfer_loss(student, teacher).mean(), expected, rtol=1e-5, atol=1e-8)
