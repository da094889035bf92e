"""The definitions in float64 and numpy, written from the papers and from nothing in ``pipeline``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from pipeline.softlabels import Sampled, TopK

Array = npt.NDArray[np.float64]


def softmax64(logits: npt.ArrayLike, temperature: float = 1.0) -> Array:
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def kl64(p: Array, q: Array) -> Array:
    """Sum of p log(p/q) with 0 log 0 = 0."""
    terms = np.where(p > 0, p * (np.log(np.where(p > 0, p, 1.0)) - np.log(q)), 0.0)
    return np.asarray(terms.sum(axis=1))


def partition64(probabilities: Array, ids: npt.NDArray[np.int64]) -> Array:
    """The kept probabilities of each row and, last, the sum of the others."""
    kept = np.take_along_axis(probabilities, ids, axis=1)
    others = np.array([np.delete(row, i).sum() for row, i in zip(probabilities, ids, strict=True)])
    return np.concatenate([kept, others[:, None]], axis=1)


def topk_of(logits: npt.NDArray[np.floating], k: int, temperatures: tuple[float, ...], dtype: torch.dtype) -> TopK:
    """Top-k labels of ``logits`` by the definition in ``TopK``, computed in float64."""
    wide = logits.astype(np.float64)
    ids = np.sort(np.argsort(-wide, axis=1, kind="stable")[:, :k], axis=1)
    relative = wide - wide.max(axis=1, keepdims=True)
    normaliser = np.stack([np.log(np.exp(relative / t).sum(axis=1)) for t in temperatures], axis=1)
    dropped = np.stack([partition64(softmax64(wide, t), ids)[:, -1] for t in temperatures], axis=1)
    with np.errstate(divide="ignore"):
        residual = np.log(dropped)
    return TopK(
        ids=torch.from_numpy(ids),
        logits=torch.from_numpy(np.take_along_axis(relative, ids, axis=1)).to(dtype),
        log_normaliser=torch.from_numpy(normaliser).to(dtype),
        log_residual=torch.from_numpy(residual).to(dtype),
        temperatures=temperatures,
        num_classes=logits.shape[1],
    )


def pair(rows: int, classes: int, seed: int = 0, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, classes, generator=generator) * scale,
        torch.randn(rows, classes, generator=generator) * scale,
    )


def draws64(
    p: Array, proposal: Array, draws: int, temperature: float, generator: np.random.Generator
) -> tuple[Sampled, Array]:
    """``draws`` with replacement from each row of ``proposal``, weighed by p / proposal; also as weights (B, C)."""
    dense = np.zeros_like(p)
    for row, (own, chances) in enumerate(zip(p, proposal, strict=True)):
        hits = generator.multinomial(draws, chances / chances.sum())
        dense[row] = hits * own / chances / draws
    return sampled_of(dense, temperature), dense


def sampled_of(weights: Array, temperature: float) -> Sampled:
    """The weights (B, C) that are not 0, as sampled labels."""
    rows, ids = np.nonzero(weights)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(weights)))])
    return Sampled(
        ids=torch.from_numpy(ids.astype(np.int32)),
        weights=torch.from_numpy(weights[rows, ids]),
        offsets=torch.from_numpy(offsets),
        temperature=temperature,
        num_classes=weights.shape[1],
    )
