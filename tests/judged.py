"""Two students that are right more often than not, and too sure; and what they say, worked out in float64."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from pipeline import training
from pipeline.models import build_model, load_weights, save_weights
from pipeline.store import open_cache
from pipeline.training import TrainConfig
from tests.small_pipeline import COUNTS, SmallPipeline

SEEDS = (0, 1)
BINS = 5


def make_sure(small: SmallPipeline) -> Path:
    """A run of two seeds, right more often than not, and too sure: what they learnt was blurred and made louder."""
    out = small.root / "runs" / "sure"
    training.run(
        TrainConfig(
            data=small.data, cache=str(small.cache), alpha=0.0, student="mlp-8", out=out, epochs=20, lr=0.02,
            seeds=len(SEEDS), device="cpu",
        )
    )  # fmt: skip
    for seed in SEEDS:
        model = build_model("mlp-8", {}, classes=3, input_shape=(1, 8, 8))
        load_weights(model, out / f"seed-{seed}" / "model.safetensors")
        first, *_, last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        with torch.no_grad():
            first.weight += 0.25 * torch.randn(first.weight.shape, generator=torch.Generator().manual_seed(seed))
            last.weight *= 2
        save_weights(out / f"seed-{seed}" / "model.safetensors", model, {})
    return out


def arrays(small: SmallPipeline, split: str) -> tuple[np.ndarray, np.ndarray]:
    archive = np.load(small.data.removeprefix("arrays:"))
    chosen = archive["split"] == split
    return archive["x"][chosen], archive["y"][chosen]


def logits_of(small: SmallPipeline, run: Path, seed: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = arrays(small, split)
    model = build_model("mlp-8", {}, classes=3, input_shape=(1, 8, 8)).eval()
    load_weights(model, run / f"seed-{seed}" / "model.safetensors")
    with torch.no_grad():
        return model(torch.from_numpy(x)).double().numpy(), y


def said(small: SmallPipeline, split: str) -> np.ndarray:
    cache = open_cache(small.cache)
    return np.asarray(cache.decode(cache.read_rows(split, 0, np.arange(COUNTS[split]))).logits, dtype=np.float64)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(softmax(logits)[np.arange(len(labels)), labels]).mean())


def gaps(logits: np.ndarray, labels: np.ndarray, groups: list[np.ndarray]) -> float:
    """The mean over examples of how far confidence is from accuracy in the group of each."""
    p = softmax(logits)
    sure, right = p.max(axis=1), p.argmax(axis=1) == labels
    return sum(len(g) * abs(sure[g].mean() - right[g].mean()) for g in groups if len(g)) / len(labels)


def calibration(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of distinct confidences, 8 to each of the bins of equal mass."""
    p = softmax(logits)
    assert len(np.unique(p.max(axis=1))) == len(p) == 8 * BINS
    edges = np.linspace(0, 1, BINS + 1)
    wide = [np.flatnonzero((p.max(axis=1) >= a) & (p.max(axis=1) < b)) for a, b in pairwise(edges)]
    return {
        "nll": nll(logits, labels),
        "brier": float(np.square(p - np.eye(3)[labels]).sum(axis=1).mean()),
        "ece": gaps(logits, labels, wide),
        "adaptive_ece": gaps(logits, labels, list(np.argsort(p.max(axis=1)).reshape(BINS, 8))),
    }
