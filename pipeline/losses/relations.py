"""Losses that look at how the classes of a distribution relate: decoupled KD, DIST, and standardised logits.

They need the logits of all classes: dense labels. Student logits are (B, C), every loss (B,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import EncodingError
from pipeline.losses.partition import checked, dense_logits, wide
from pipeline.softlabels import Dense, SoftLabels

STANDARD_EPSILON = 1e-7
PEARSON_EPSILON = 1e-8


def decoupled_loss(
    student_logits_BC: Tensor,
    soft: SoftLabels,
    labels_B: Tensor,
    *,
    temperature: float,
    target: float = 1.0,
    others: float = 8.0,
) -> Tensor:
    """Decoupled KD: ``T^2 * (target * TCKD + others * NCKD)``, (B,); 0 where the hard label is -1 (none).

    TCKD is the KL of the two-way split {hard label, all other classes}, NCKD that of the distributions over the other
    classes alone. Zhao et al. 2022, equation 7; with ``target`` 1 and ``others`` 1 - p_t (the teacher's mass outside
    the hard label) it is Hinton's loss, which mutes NCKD where the teacher is sure. ``labels_B`` is int64.

    Raises EncodingError for top-k and sampled labels, and for hard labels of another shape.
    """
    student = checked(student_logits_BC, soft, temperature)
    teacher = dense_logits(soft, "decoupled KD needs").to(student.dtype)
    if labels_B.shape != student.shape[:1]:
        raise EncodingError(f"labels should have shape ({len(student)},), found {tuple(labels_B.shape)}")
    known = labels_B >= 0
    place = labels_B.clamp_min(0)[:, None]
    log_p, log_q = (torch.log_softmax(side / temperature, dim=1) for side in (teacher, student))
    if student.shape[1] == 1:
        return student.sum(dim=1) * 0
    two_way = [_split(side, place) for side in (log_p, log_q)]
    between = (two_way[0].exp() * (two_way[0] - two_way[1])).sum(dim=1)
    # Without the target the rest is a distribution of its own; its logs are taken anew, which keeps them exact.
    rest = [torch.log_softmax(_without(side, place), dim=1) for side in (log_p, log_q)]
    within = torch.linalg.vecdot(rest[0].exp(), rest[0] - rest[1])
    loss: Tensor = temperature**2 * (target * between + others * within) * known
    return loss


def correlation_loss(
    student_logits_BC: Tensor, soft: SoftLabels, *, temperature: float, inter: float = 1.0, intra: float = 1.0
) -> Tensor:
    """DIST: ``T^2 * (inter * (1 - r_rows) + intra * mean_j(1 - r_j))``, (B,), with Pearson's correlation r.

    ``r_rows`` correlates student and teacher probabilities of one row over the classes; ``r_j`` those of class j over
    the rows of the batch, so that a row's value depends on its batch; the mean over rows is the loss of the paper.
    Huang et al. 2022, equations 7 to 9, and the factor of the code that they released. A single row, or a class on
    which all rows agree, has no correlation: it counts 1, without gradient.

    Raises EncodingError for top-k and sampled labels.
    """
    student = checked(student_logits_BC, soft, temperature)
    teacher = dense_logits(soft, "DIST needs").to(student.dtype)
    p, q = (torch.softmax(side / temperature, dim=1) for side in (teacher, student))
    rows = 1 - _pearson(q, p, dim=1)
    columns = (1 - _pearson(q, p, dim=0)).mean()
    return temperature**2 * (inter * rows + intra * columns)


def standardised(logits_BC: Tensor) -> Tensor:
    """Each row minus its mean, divided by its standard deviation (of C - 1): the z-score, (B, C).

    Sun et al. 2024, algorithm 1. float32, or float64 where that was given. A row whose logits are all alike becomes
    zeros.
    """
    logits_BC = wide(logits_BC)
    if logits_BC.shape[1] == 1:
        return logits_BC * 0
    centred = logits_BC - logits_BC.mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1, keepdim=True) / (logits_BC.shape[1] - 1)
    return centred / (_root(variance) + STANDARD_EPSILON)


def standardised_labels(soft: SoftLabels) -> Dense:
    """Dense labels, standardised. Raises EncodingError for others: the mean and deviation are of all classes."""
    return Dense(standardised(dense_logits(soft, "standardised logits need", "Leave out --standardise")))


def _split(log_p: Tensor, place: Tensor) -> Tensor:
    """log of the mass of one class and of all others, (B, 2)."""
    return torch.cat([log_p.gather(1, place), torch.logsumexp(_without(log_p, place), dim=1, keepdim=True)], dim=1)


def _without(values: Tensor, place: Tensor) -> Tensor:
    """(B, C - 1): each row without its entry at ``place``."""
    rows, classes = values.shape
    kept = torch.arange(classes - 1, device=values.device).expand(rows, -1)
    return values.gather(1, kept + (kept >= place))


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    a, b = (side - side.mean(dim=dim, keepdim=True) for side in (a, b))
    product = (a * b).sum(dim=dim)
    lengths = [_root(side.square().sum(dim=dim)).clamp_min(PEARSON_EPSILON) for side in (a, b)]
    return product / (lengths[0] * lengths[1])


def _root(squares: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0 in place of an infinite one."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
