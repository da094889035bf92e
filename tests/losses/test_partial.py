"""Teachers that each know some of the classes: the sum of their losses on the student given those, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import EncodingError
from pipeline.losses import LOSSES, distillation_loss, opinions_loss
from pipeline.softlabels import Dense, Opinion, Opinions, SoftLabels
from pipeline.training import Objective
from pipeline.training.objective import Batch, Output
from tests.losses.references import kl64, softmax64, topk_of

C, B = 6, 8
CLASSES = ((0, 1, 2, 3), (3, 5, 2), (4, 5))
"""The first two share 2 and 3, which they have in another order; the second and the third share 5."""

Response = Callable[[Tensor, Tensor, SoftLabels], Tensor]


def kl(temperature: float) -> Response:
    return lambda logits, labels, soft: distillation_loss(logits, soft, temperature=temperature)


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


def opinions(classes: tuple[tuple[int, ...], ...] = CLASSES) -> Opinions:
    weights = torch.rand(len(classes), B, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    weights[0, 2] = weights[:, 4] = 0
    return Opinions(
        tuple(
            Opinion(Dense(logits(B, len(own), seed=n + 1)), torch.tensor(own), weights[n])
            for n, own in enumerate(classes)
        )
    )


NONE = torch.full((B,), -1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_the_sum_over_teachers_of_kl_given_their_classes(temperature: float) -> None:
    student, given = logits(B, C), opinions()
    q = softmax64(student.numpy(), temperature)
    expected = np.zeros(B)
    for own, opinion in zip(CLASSES, given.opinions, strict=True):
        conditional = q[:, list(own)] / q[:, list(own)].sum(axis=1, keepdims=True)
        p = softmax64(opinion.soft.logits.numpy(), temperature)
        expected += opinion.weights.numpy() * temperature**2 * kl64(p, conditional)
    found = opinions_loss(student, NONE, given, kl(temperature))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11)
    assert found[4] == 0, "nobody counts for that row"


def test_one_teacher_who_knows_all_is_plain_kl() -> None:
    student, teacher = logits(B, C), Dense(logits(B, C, seed=1))
    expected = distillation_loss(student, teacher, temperature=2.0)
    for classes in (None, torch.arange(C)):
        found = opinions_loss(student, NONE, Opinions((Opinion(teacher, classes, torch.ones(B)),)), kl(2.0))
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    shuffled = Opinions((Opinion(Dense(teacher.logits[:, order]), order, torch.ones(B)),))
    torch.testing.assert_close(opinions_loss(student, NONE, shuffled, kl(2.0)), expected)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if not loss.labelled])
def test_gradients_are_those_of_the_values(name: str) -> None:
    objective = Objective(alpha=1.0, beta=0.0, temperature=2.0, loss=name)
    given, weight = opinions(), logits(B, seed=9)

    def value(student: Tensor) -> Tensor:
        return (opinions_loss(student, NONE, given, objective._rows, batch=LOSSES[name].batch) * weight).sum()

    assert torch.autograd.gradcheck(value, logits(B, C).requires_grad_(), atol=1e-6)


def test_a_group_keeps_its_mass() -> None:
    """A constant added to the logits of one group changes nothing where groups share no class."""
    apart = opinions(((0, 1, 2), (3, 4, 5)))
    student = logits(B, C)
    moved = student + torch.tensor([4.0, 4.0, 4.0, 0.0, 0.0, 0.0])
    one, other = (opinions_loss(z, NONE, apart, kl(2.0)) for z in (student, moved))
    torch.testing.assert_close(one, other)
    assert not torch.allclose(*(opinions_loss(z, NONE, opinions(), kl(2.0)) for z in (student, moved)))


def test_a_loss_over_the_batch_sees_the_rows_that_count() -> None:
    student, given = logits(B, C), opinions()
    response = Objective(alpha=1.0, loss="dist", temperature=2.0)._rows
    expected = torch.zeros(B, dtype=torch.float64)
    for own, opinion in zip(CLASSES, given.opinions, strict=True):
        for_it = [row for row in range(B) if opinion.weights[row] > 0]
        values = response(student[for_it][:, list(own)], NONE[for_it], Dense(opinion.soft.logits[for_it]))
        expected[for_it] += opinion.weights[for_it] * values
    found = opinions_loss(student, NONE, given, response, batch=True)
    torch.testing.assert_close(found, expected)
    silent = Opinions(tuple(Opinion(o.soft, o.classes, o.weights * 0) for o in given.opinions))
    assert not opinions_loss(student, NONE, silent, response, batch=True).any()


def test_top_k_labels_of_several_teachers() -> None:
    """Of the whole, and of a specialist: exact on the cells that each kept."""
    student = logits(B, C)
    whole = topk_of(logits(B, C, seed=1).numpy(), 3, (2.0,), torch.float64)
    own = torch.tensor([5, 0, 3, 1])
    part = topk_of(logits(B, 4, seed=2).numpy(), 2, (2.0,), torch.float64)
    half = torch.full((B,), 0.5)
    found = opinions_loss(student, NONE, Opinions((Opinion(whole, None, half), Opinion(part, own, half))), kl(2.0))
    expected = distillation_loss(student, whole, temperature=2.0) + distillation_loss(
        student[:, own], part, temperature=2.0
    )
    torch.testing.assert_close(found, expected / 2)


def test_the_objective_weighs_opinions_like_other_soft_labels() -> None:
    student, given = logits(B, C), opinions()
    labels = torch.arange(B) % C
    terms = Objective(alpha=0.7, beta=0.3, temperature=2.0)(Output(student), Batch(labels, given))
    soft = opinions_loss(student, labels, given, kl(2.0)).sum()
    hard = torch.nn.functional.cross_entropy(student, labels, reduction="sum")
    assert terms.soft is not None
    torch.testing.assert_close(terms.soft, soft)
    torch.testing.assert_close(terms.total, 0.7 * soft + 0.3 * hard)
    standard: Any = Objective(alpha=1.0, beta=0.0, temperature=2.0, standardise=True)
    torch.testing.assert_close(
        standard(Output(student * 3 + 1), Batch(labels, given)).total,
        standard(Output(student), Batch(labels, given)).total,
        rtol=1e-5,
        atol=0,
    )


def test_opinions_of_other_shapes_are_refused() -> None:
    with pytest.raises(EncodingError, match=r"classes should have shape \(4\)"):
        Opinion(Dense(logits(B, 4)), torch.arange(3), torch.ones(B))
    with pytest.raises(EncodingError, match="weights should have shape"):
        Opinion(Dense(logits(B, 4)), None, torch.ones(B - 1))
    with pytest.raises(EncodingError, match=r"should have shape \(8, 4\)"):
        opinions_loss(logits(B, C), NONE, Opinions((Opinion(Dense(logits(B, 4)), None, torch.ones(B)),)), kl(1.0))
