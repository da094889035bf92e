"""Relational losses, against loops in float64 and against torchdistill."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.losses import angle_relation_loss, distance_relation_loss, relational, similarity_loss
from tests.losses.features import Loss, check_degenerate, check_precision, check_teacher_is_constant, random, rotation

Rows = list[list[float]]
LOSSES: dict[str, Loss] = {
    "distance": distance_relation_loss,
    "angle": angle_relation_loss,
    "similarity": similarity_loss,
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def huber(a: float, b: float) -> float:
    gap = abs(a - b)
    return 0.5 * gap**2 if gap <= 1 else gap - 0.5


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def minus(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def distances64(rows: Rows) -> Rows:
    found = [[math.sqrt(dot(minus(a, b), minus(a, b))) for b in rows] for a in rows]
    apart = [d for row in found for d in row if d > 0]
    return [[d / (sum(apart) / len(apart)) for d in row] for row in found]


def distance64(student: Rows, teacher: Rows) -> list[float]:
    pairs = zip(distances64(student), distances64(teacher), strict=True)
    return [sum(huber(a, b) for a, b in zip(s, t, strict=True)) / len(student) for s, t in pairs]


def cosine64(seen_from: list[float], a: list[float], b: list[float]) -> float:
    one, other = minus(a, seen_from), minus(b, seen_from)
    lengths = math.sqrt(dot(one, one)) * math.sqrt(dot(other, other))
    return dot(one, other) / lengths if lengths else 0.0


def angle64(student: Rows, teacher: Rows) -> list[float]:
    number = range(len(student))
    return [
        sum(
            huber(cosine64(student[i], student[j], student[k]), cosine64(teacher[i], teacher[j], teacher[k]))
            for j in number
            for k in number
        )
        / len(student) ** 2
        for i in number
    ]


def similarity64(student: Rows, teacher: Rows) -> list[float]:
    found = []
    for i in range(len(student)):
        sides = []
        for rows in (student, teacher):
            row = [dot(rows[i], other) for other in rows]
            sides.append([value / math.sqrt(dot(row, row)) for value in row])
        found.append(dot(minus(*sides), minus(*sides)) / len(student))
    return found


@pytest.mark.parametrize("shapes", [((4,), (9,)), ((2, 2, 3), (5, 2, 2)), ((3, 2), (6,)), ((1,), (1,))])
@pytest.mark.parametrize("name", LOSSES)
def test_values_are_those_of_the_definition(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    student, teacher = random(6, *shapes[0]), 5 * random(6, *shapes[1], seed=1) ** 3
    definition = {"distance": distance64, "angle": angle64, "similarity": similarity64}[name]
    expected = definition(student.flatten(1).tolist(), teacher.flatten(1).tolist())
    np.testing.assert_allclose(LOSSES[name](student, teacher).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_rows_that_coincide_are_no_pairs_apart() -> None:
    student, teacher = random(5, 3)[[0, 0, 1, 2, 3]], random(5, 4, seed=1)[[0, 1, 1, 1, 2]]
    rows = student.tolist(), teacher.tolist()
    np.testing.assert_allclose(distance_relation_loss(student, teacher).numpy(), distance64(*rows), rtol=1e-9)
    np.testing.assert_allclose(angle_relation_loss(student, teacher).numpy(), angle64(*rows), rtol=1e-9)


@every_loss
def test_gradients_are_exact(loss: Loss) -> None:
    student, teacher = random(4, 2, 3).requires_grad_(), random(4, 5, seed=1)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)


@every_loss
def test_degenerate_features_and_half_precision(loss: Loss) -> None:
    check_degenerate(loss, 4)
    check_precision(loss, 3, 2)
    check_teacher_is_constant(loss, 3)


@every_loss
def test_a_side_is_free_to_turn_and_scale(loss: Loss) -> None:
    student, teacher = random(6, 5), random(6, 7, seed=1)
    reference = loss(student, teacher)
    assert (reference > 1e-4).all()
    for s, t in ((3 * student @ rotation(5), teacher), (student, 0.2 * teacher @ rotation(7, seed=3))):
        torch.testing.assert_close(loss(s, t), reference, rtol=1e-9, atol=1e-12)
    # Into more dimensions, isometrically: nothing has been lost, and nothing is to be learnt.
    assert loss(teacher @ rotation(9)[:7], teacher).abs().max() < 1e-12


@every_loss
def test_shifts_change_similarities_alone(loss: Loss) -> None:
    student, teacher = random(6, 5), random(6, 7, seed=1)
    moved = loss(student + 4, teacher - 9)
    same = torch.allclose(moved, loss(student, teacher), rtol=1e-8)
    assert same == (loss is not similarity_loss)


@every_loss
def test_rows_go_along_with_the_order_of_the_batch(loss: Loss) -> None:
    student, teacher = random(6, 5), random(6, 7, seed=1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher)[order])
    torch.testing.assert_close(loss(student, teacher), loss(student.view(6, 5, 1, 1), teacher.view(6, 1, 7)))


@every_loss
def test_weight_zero_does_not_leave_a_row_out(loss: Loss) -> None:
    student, teacher = random(6, 5), random(6, 7, seed=1)
    assert (loss(student, teacher)[:5] - loss(student[:5], teacher[:5])).abs().max() > 1e-4


@pytest.mark.parametrize("loss", [distance_relation_loss, angle_relation_loss])
def test_a_far_away_batch_keeps_its_relations_in_float32(loss: Loss) -> None:
    # Inner products of these would lose the differences to rounding.
    student, teacher = random(6, 5), random(6, 7, seed=1)
    torch.testing.assert_close(
        loss((student + 1000).float(), teacher), loss((student + 1000).float().double(), teacher).float()
    )


def test_angles_of_rows_that_nearly_coincide_stay_exact_in_float32() -> None:
    # Two views of an example, a thousandth of the usual distance apart.
    student, teacher = (
        torch.cat([x, x + 1e-3 * random(*x.shape, seed=5)]).float() for x in (random(4, 6), random(4, 9))
    )
    exact = student.double().requires_grad_()
    leaf = student.clone().requires_grad_()
    found, expected = angle_relation_loss(leaf, teacher), angle_relation_loss(exact, teacher.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)
    gradients = torch.autograd.grad(found.sum(), leaf)[0].double(), torch.autograd.grad(expected.sum(), exact)[0]
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()


@pytest.mark.parametrize("most", [1, 100, 250])
def test_angles_of_large_batches_are_computed_a_few_rows_at_a_time(monkeypatch: Any, most: int) -> None:
    student, teacher = random(7, 3).requires_grad_(), random(7, 4, seed=1)
    weights = torch.arange(7.0, dtype=torch.float64)
    found = []
    for limit in (relational.MOST_VALUES, most):
        monkeypatch.setattr(relational, "MOST_VALUES", limit)
        loss = angle_relation_loss(student, teacher)
        found.append((loss.detach(), *torch.autograd.grad((weights * loss).sum(), student)))
        with torch.no_grad():
            torch.testing.assert_close(angle_relation_loss(student, teacher), loss)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


@every_loss
def test_other_numbers_of_rows_are_refused(loss: Loss) -> None:
    for one, other in (((2, 3), (3, 3)), ((2,), (2,))):
        with pytest.raises(ModelError) as caught:
            loss(torch.zeros(one), torch.zeros(other))
        assert str(one) in str(caught.value) and str(other) in str(caught.value)


def both(student: torch.Tensor, teacher: torch.Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"m": {"output": student}}, {"m": {"output": teacher}}


@pytest.mark.parametrize(("distance", "angle"), [(1.0, 0.0), (0.0, 1.0), (25.0, 50.0)])
def test_torchdistill_gives_the_same(distance: float, angle: float) -> None:
    theirs = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = random(8, 3, 2, 2).float(), random(8, 10, seed=1).float()
    expected = theirs.RKDLoss("m", "m", distance, angle, "mean")(*both(student, teacher))
    rows = distance * distance_relation_loss(student, teacher) + angle * angle_relation_loss(student, teacher)
    torch.testing.assert_close(rows.mean(), expected, rtol=1e-4, atol=1e-5)


def test_torchdistill_divides_similarities_by_the_sum_of_their_sizes_and_not_by_their_length() -> None:
    # Its normalize(matrix, 1) is the L1 norm; the paper's norm is L2. Undo the one and the values agree.
    theirs = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = random(8, 5).float(), random(8, 10, seed=1).float()
    loss = theirs.SPKDLoss("m", "m", "batchmean")
    ours = similarity_loss(student, teacher).mean()
    assert loss(*both(student, teacher)) < 0.5 * ours
    loss.matmul_and_normalize = lambda z: torch.nn.functional.normalize(z @ z.t(), p=2)
    torch.testing.assert_close(loss(*both(student, teacher)), ours, rtol=1e-5, atol=1e-7)
