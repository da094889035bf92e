"""Both sides of a response loss as distributions over the same cells, whatever the encoding of the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import ConfigError, EncodingError
from pipeline.softlabels import Dense, Sampled, SoftLabels, TopK

SMALLEST_LOG_RESIDUAL = -87.0
"""A dropped mass below the smallest normal float32 counts as that: its logarithm has to be finite."""


def wide(logits: Tensor) -> Tensor:
    """float32, or float64 where that was given: half precision is for forward passes, not for sums of exponentials."""
    return logits if logits.dtype == torch.float64 else logits.float()


def checked(student_logits_BC: Tensor, soft: SoftLabels, temperature: float) -> Tensor:
    """The student's logits, widened. Raises ConfigError for a temperature that is not above 0, EncodingError for logits
    of another shape than the labels."""
    if not temperature > 0:
        raise ConfigError(f"temperature should be above 0; found {temperature}")
    same_shape(student_logits_BC, soft)
    return wide(student_logits_BC)


def same_shape(student: Tensor, soft: SoftLabels) -> None:
    """Raises EncodingError when the numbers of rows or classes differ."""
    if tuple(student.shape) != (len(soft), soft.classes):
        raise EncodingError(
            f"student logits should have shape ({len(soft)}, {soft.classes}) like the soft labels, found "
            f"{tuple(student.shape)}: the student has another number of classes, or the batch another number of rows"
        )


def dense_logits(
    soft: SoftLabels, needs: str, instead: str = "Use a loss that is defined on them, such as --loss kl"
) -> Tensor:
    """The teacher's logits (B, C), float32 or wider. Raises EncodingError for labels that do not hold all of them.

    ``needs`` begins the message ("DIST needs"), ``instead`` is the way out besides other labels.
    """
    if not isinstance(soft, Dense):
        raise EncodingError(
            f"{needs} the logits of all {soft.classes} classes, and these {_kind(soft)} labels hold some. "
            f"{instead}, or use a cache dumped with --encoding dense"
        )
    logits: Tensor = soft.logits
    return logits


def _kind(soft: TopK | Sampled) -> str:
    return "sampled" if isinstance(soft, Sampled) else f"top-{soft.ids.shape[1]}"


def partitioned(student_logits_BC: Tensor, soft: SoftLabels, temperature: float, needs: str) -> tuple[Tensor, Tensor]:
    """log p and log q, teacher and student softened by T, each (B, M), on the cells that the labels tell apart.

    Dense labels: M = C, a cell per class. Top-k labels: M = K + 1, the kept classes and one cell that holds all the
    others, the teacher's residual against the student's mass there; M = K when K = C. A divergence of the two is exact
    for the distributions over those cells: no class is renormalised or left out. For any f-divergence it is at most
    that of the full distributions (data processing inequality).

    Raises what ``checked`` raises, TemperatureError when top-k labels were not kept at T, and EncodingError for sampled
    labels: their weights are the teacher's probabilities in the mean alone, so that only a loss that is linear in those
    can be estimated. ``needs`` begins that message ("reverse KL needs").
    """
    if isinstance(soft, Sampled):
        raise EncodingError(
            f"{needs} the teacher's probabilities, and sampled labels hold estimates that are right in the mean. Use "
            "a loss that is linear in them, --loss kl, or a cache dumped with --encoding topk or dense"
        )
    student = checked(student_logits_BC, soft, temperature)
    log_q = torch.log_softmax(student / temperature, dim=1)
    if isinstance(soft, Dense):
        return torch.log_softmax(soft.logits.to(student.dtype) / temperature, dim=1), log_q
    ids = soft.ids.long()
    log_p, log_residual = soft.at(temperature)
    log_p, kept = log_p.to(student.dtype), log_q.gather(1, ids)
    if ids.shape[1] == soft.classes:
        return log_p, kept
    others = torch.logsumexp(log_q.scatter(1, ids, -torch.inf), dim=1, keepdim=True)
    residual = log_residual.to(student.dtype).clamp_min(SMALLEST_LOG_RESIDUAL)[:, None]
    return torch.cat([log_p, residual], dim=1), torch.cat([kept, others], dim=1)
