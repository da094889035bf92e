"""Contrastive distillation: of all teacher rows of a batch, the student's row should be most like its own."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import ConfigError, ModelError
from pipeline.losses.partition import wide
from pipeline.losses.sides import same_rows, unit


def contrastive_loss(student_embedding: Tensor, teacher_embedding: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE on embeddings (B, E) of both sides, (B,), in nats: the mean of both directions, log B for no knowledge.

    ``-log softmax_j(<s_i, t_j> / temperature)`` at j = i, over all teacher rows j, and likewise over all student rows
    for the teacher's row; embeddings are scaled to length 1. Unlike in the other losses gradients reach both sides:
    the teacher's embedding is learnt as well (``EmbeddingHeads``).

    After Tian et al. 2020 (CRD), with their heads. CRD tells each pair from thousands that it draws from a memory of
    the whole training set, by a binary decision each, and draws them from other classes where it knows those. Here the
    B - 1 other rows of the batch are all there is, whatever their class, in one softmax (van den Oord et al. 2018): no
    memory to keep and to resume, but little to learn from small batches, and nothing (loss 0) from a single row. An
    example that a batch holds twice is told from itself.

    Raises ConfigError for a temperature that is not above 0, ModelError when the shapes differ.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature should be above 0; found {temperature}")
    same_rows(student_embedding, teacher_embedding)
    if student_embedding.ndim != 2 or student_embedding.shape != teacher_embedding.shape:
        raise ModelError(
            f"contrastive distillation needs embeddings (B, E) of equal shape; the student's have shape "
            f"{tuple(student_embedding.shape)}, the teacher's {tuple(teacher_embedding.shape)}. Use EmbeddingHeads"
        )
    student = wide(student_embedding)
    similarity = unit(student) @ unit(teacher_embedding.to(student.dtype)).mT / temperature
    others = (torch.logsumexp(similarity, dim=1) + torch.logsumexp(similarity, dim=0)) / 2
    return others - similarity.diagonal()
