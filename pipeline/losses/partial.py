"""Several teachers with a loss each, on the classes that each knows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.losses.partition import wide
from pipeline.softlabels import Opinions, SoftLabels

Response = Callable[[Tensor, Tensor, SoftLabels], Tensor]
"""Values (B,) from the student's logits (B, n) on some classes, hard labels (B,) and the labels of a teacher."""


def opinions_loss(
    student_logits_BC: Tensor, labels_B: Tensor, opinions: Opinions, response: Response, *, batch: bool = False
) -> Tensor:
    """``sum_t w_t L(p_t, q | S_t)``, (B,): a response loss L for each teacher, on the student given its classes S_t.

    Given S_t, the student's distribution is the softmax of its logits at S_t alone, for any temperature. With L = KL
    it is what Vongkulbhisal et al. 2019 minimise (their cross-entropy criterion), there over a distribution for each
    example that a student then learns, here over the student itself; no class stands for all that a teacher does not
    know, as in the specialists of Hinton, Vinyals and Dean 2015 (section 5). Nothing in it says how likely the classes
    of one teacher are against those of another: hard labels do, and classes that both know.

    ``batch``: L looks at all rows of its batch, so that rows for which a teacher does not count are kept from it.
    ``labels_B`` go to ``response`` as they are. float32, or float64 for float64 logits.

    Raises what L raises, EncodingError for student logits of another shape than an opinion's among them.
    """
    student = wide(student_logits_BC)
    total = torch.zeros_like(student[:, 0])
    for opinion in opinions.opinions:
        given = student if opinion.classes is None else student.index_select(1, opinion.classes)
        weights = opinion.weights.to(student.dtype)
        if not batch:
            total = total + weights * response(given, labels_B, opinion.soft)
            continue
        rows = weights.nonzero()[:, 0]
        soft = opinion.soft.select(rows)
        values = response(given[rows], labels_B[rows], soft) if len(rows) else given[rows].sum(dim=1)
        total = total.index_add(0, rows, weights[rows] * values)
    return total
