"""Features to try losses on, and the calls that every loss on features has to survive."""

from __future__ import annotations

from collections.abc import Callable

import torch

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """float64, normal."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size: int, seed: int = 0) -> torch.Tensor:
    """An orthogonal matrix."""
    orthogonal: torch.Tensor = torch.linalg.qr(random(size, size, seed=seed))[0]
    return orthogonal


def check_degenerate(loss: Loss, *shape: int, largest: float = 1e3) -> None:
    """No rows, one row, rows alike, in pairs, zeros on either side: finite values, and gradients of a sane size."""
    some = random(6, *shape).float()
    alike, zeros = some[:1].expand_as(some), torch.zeros_like(some)
    pairs = some[[0, 0, 1, 1, 2, 2]]
    half_dead = torch.cat([some[:3], zeros[:3]])
    cases = [(some[:n], some[-n:]) for n in (1, 2)] + [(some[:0], some[:0])]
    sides = (some, alike, pairs, half_dead, zeros)
    cases += [(student, teacher) for student in sides for teacher in sides]
    for student, teacher in cases:
        leaf = student.clone().requires_grad_()
        found = loss(leaf, teacher)
        found.sum().backward()
        assert leaf.grad is not None
        assert found.shape == (len(student),) and torch.isfinite(found).all()
        assert torch.isfinite(leaf.grad).all() and (leaf.grad.abs() < largest).all()


def check_precision(loss: Loss, *shape: int) -> None:
    """A float16 teacher, as caches keep it, and a bfloat16 student are widened; the teacher gets no gradient."""
    student, teacher = random(5, *shape).bfloat16(), random(5, *shape, seed=1).half()
    found = loss(student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(student.float(), teacher.float()))
    exact = loss(student.double(), teacher)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, loss(student.double(), teacher.double()), rtol=0, atol=0)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-6)


def check_teacher_is_constant(loss: Loss, *shape: int) -> None:
    student, teacher = random(3, *shape).requires_grad_(), random(3, *shape, seed=1).requires_grad_()
    loss(student, teacher).sum().backward()
    assert student.grad is not None and student.grad.abs().sum() > 0 and teacher.grad is None
