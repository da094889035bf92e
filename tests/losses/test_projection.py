"""The modules between features and losses, and the catalogue that joins the two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.losses import FEATURE_LOSSES, Bridge, EmbeddingHeads, make_projection
from tests.losses.features import random

Shape = tuple[int, ...]

# Each: the student's shape, the teacher's, and what both become.
MAPPED: list[tuple[Shape, Shape, Shape]] = [
    ((4,), (7,), (7,)),
    ((4,), (4,), (4,)),
    ((5, 4), (5, 7), (5, 7)),
    ((4, 3, 3), (7, 3, 3), (7, 3, 3)),
    ((4, 8, 8), (7, 2, 2), (7, 2, 2)),
    ((4, 2, 2), (7, 5, 5), (7, 2, 2)),
    ((4, 6, 2), (7, 3, 4), (7, 3, 2)),
    ((4, 3, 3), (7,), (7,)),
    ((4,), (7, 3, 3), (7,)),
    ((5, 4), (7,), (7,)),
    ((4,), (5, 7), (7,)),
]
UNMAPPED: list[tuple[Shape, Shape]] = [
    ((5, 4), (6, 4)),
    ((4, 3, 3), (9, 4)),
    ((9, 4), (4, 3, 3)),
    ((2, 3, 4, 5), (2, 3, 4, 5)),
    ((4,), (2, 3, 4, 5)),
    ((), (4,)),
    ((4,), (0,)),
    ((4, 0, 2), (4, 2, 2)),
]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("student_shape", "teacher_shape", "shape"), MAPPED)
def test_a_projection_gives_both_sides_one_shape(student_shape: Shape, teacher_shape: Shape, shape: Shape) -> None:
    module = make_projection(student_shape, teacher_shape)
    student = random(3, *student_shape).float().requires_grad_()
    mapped, kept = module(student, random(3, *teacher_shape, seed=1).half())
    assert mapped.shape == kept.shape == (3, *shape)
    assert mapped.dtype == kept.dtype == torch.float32 and not kept.requires_grad
    assert parameters(module) == (4 + 1) * teacher_shape[0 if len(teacher_shape) == 3 else -1]
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    (mapped - kept).square().mean().backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize(("student_shape", "teacher_shape"), UNMAPPED)
def test_shapes_that_cannot_be_mapped_are_both_named(student_shape: Shape, teacher_shape: Shape) -> None:
    with pytest.raises(ModelError) as caught:
        make_projection(student_shape, teacher_shape)
    assert str(student_shape) in str(caught.value) and str(teacher_shape) in str(caught.value)


def test_maps_are_averaged_and_then_mapped_place_by_place() -> None:
    module = make_projection((2, 4, 4), (3, 2, 2)).double()
    student, teacher = random(2, 2, 4, 4), random(2, 3, 2, 2, seed=1)
    found, kept = module(student, teacher)
    weight, bias = (p.detach().numpy() for p in module.linear.parameters())
    for row in range(2):
        for y in range(2):
            for x in range(2):
                window = student[row, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].numpy().mean(axis=(1, 2))
                expected = weight[:, :, 0, 0] @ window + bias
                np.testing.assert_allclose(found[row, :, y, x].detach().numpy(), expected, rtol=1e-9)
    assert torch.equal(kept, teacher)


def test_a_larger_teacher_is_averaged_and_left_alone_otherwise() -> None:
    teacher = random(2, 3, 4, 6, seed=1)
    kept = make_projection((2, 2, 2), (3, 4, 6))(random(2, 2, 2, 2), teacher)[1]
    torch.testing.assert_close(kept, teacher.view(2, 3, 2, 2, 2, 3).mean(dim=(3, 5)))
    assert torch.equal(make_projection((2,), (3,))(random(2, 2), teacher[:, :, 0, 0])[1], teacher[:, :, 0, 0])


def test_sequences_and_vectors_are_mapped_by_the_same_linear_map() -> None:
    module = make_projection((5, 4), (5, 7)).double()
    student = random(2, 5, 4)
    found = module(student, random(2, 5, 7))[0]
    weight, bias = (p.detach() for p in module.linear.parameters())
    for position in range(5):
        torch.testing.assert_close(found[:, position], student[:, position] @ weight.T + bias)


@pytest.mark.parametrize("shapes", [((4,), (7,)), ((4, 3, 3), (7, 5, 5)), ((5, 4), (3, 2, 2)), ((2, 3, 2, 2), (6, 2))])
def test_embeddings_have_length_one_and_both_heads_learn(shapes: tuple[Shape, Shape]) -> None:
    heads = EmbeddingHeads(*shapes)
    student, teacher = random(3, *shapes[0]).requires_grad_(), random(3, *shapes[1], seed=1).requires_grad_()
    found = heads(student, teacher)
    for side in found:
        assert side.shape == (3, 128) and side.dtype == torch.float32
        torch.testing.assert_close(side.square().sum(dim=1), torch.ones(3))
    FEATURE_LOSSES["contrastive"](*found).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in heads.parameters())
    assert student.grad is not None and teacher.grad is None
    assert EmbeddingHeads(*shapes, size=6)(student, teacher)[0].shape == (3, 6)


def test_embeddings_average_over_places() -> None:
    heads = EmbeddingHeads((4, 3, 3), (5, 4)).double()
    maps, sequences = random(2, 4, 3, 3), random(2, 5, 4)
    same = EmbeddingHeads((4,), (4,)).double()
    same.load_state_dict(heads.state_dict())
    torch.testing.assert_close(heads(maps, sequences), same(maps.mean(dim=(2, 3)), sequences.mean(dim=1)))


@pytest.mark.parametrize("bridge", [Bridge, make_projection, EmbeddingHeads])
def test_features_of_other_shapes_than_declared_are_refused(bridge: type[Bridge]) -> None:
    module = bridge((4, 3, 3), (7, 3, 3))
    with pytest.raises(ModelError, match=r"\(4, 3, 3\).*\(7, 3, 3\).*\(4, 3, 3\).*\(7, 6, 6\)"):
        module(torch.zeros(2, 4, 3, 3), torch.zeros(2, 7, 6, 6))


FIT: dict[str, tuple[Shape, Shape]] = {
    "hint": ((4, 3, 3), (7, 5, 5)),
    "attention": ((4, 3, 3), (7, 5, 5)),
    "distance": ((4, 3, 3), (7,)),
    "angle": ((5, 4), (3, 2, 2)),
    "similarity": ((4, 3, 3), (9, 4)),
    "contrastive": ((4, 3, 3), (9, 4)),
}


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_every_loss_trains_a_student_through_its_bridge(name: str) -> None:
    loss = FEATURE_LOSSES[name]
    shapes = FIT[name]
    torch.manual_seed(0)
    bridge = loss.bridge(*shapes)
    assert (parameters(bridge) > 0) == (loss.projected != "none")
    student, teacher = random(8, *shapes[0]).float().requires_grad_(), random(8, *shapes[1], seed=1).half()
    optimizer = torch.optim.Adam([student, *bridge.parameters()], lr=0.03)
    values = []
    for _ in range(30):
        rows = loss(*bridge(student, teacher))
        assert rows.shape == (8,)
        optimizer.zero_grad()
        (loss.weight * rows.mean()).backward()
        optimizer.step()
        values.append(rows.mean().item())
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_the_catalogue_says_whether_rows_depend_on_each_other(name: str) -> None:
    loss = FEATURE_LOSSES[name]
    torch.manual_seed(0)
    bridge = loss.bridge(*FIT[name])
    sides = [random(6, *shape, seed=seed).float() for seed, shape in enumerate(FIT[name])]
    whole, part = loss(*bridge(*sides))[:4], loss(*bridge(*[side[:4] for side in sides]))
    assert torch.allclose(whole, part, rtol=1e-4) != loss.batch


@pytest.mark.parametrize("name", [name for name, loss in FEATURE_LOSSES.items() if loss.projected == "none"])
def test_a_bridge_without_parameters_passes_both_on(name: str) -> None:
    student, teacher = random(2, 4, 3, 3).requires_grad_(), random(2, 7, 5, 5).requires_grad_()
    found = FEATURE_LOSSES[name].bridge((4, 3, 3), (7, 5, 5))(student, teacher)
    assert found[0] is student and torch.equal(found[1], teacher) and not found[1].requires_grad


def test_attention_is_refused_where_there_are_no_places_to_compare() -> None:
    for shapes in (((4,), (4,)), ((5, 4), (6, 4)), ((4, 3, 3), (9, 4))):
        with pytest.raises(ModelError) as caught:
            FEATURE_LOSSES["attention"].bridge(*shapes)
        assert all(str(shape) in str(caught.value) for shape in shapes) and "similarity" in str(caught.value)
