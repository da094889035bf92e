"""A whole small pipeline on made-up images: teacher, cache and two runs, made once and shared by several tests.

Three classes of 8 x 8 images that differ by where they are bright, with enough noise that no model is perfect.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline import dump, training
from pipeline.dump import DumpConfig
from pipeline.models import build_model, save_weights
from pipeline.training import TrainConfig

CLASSES = ("left", "middle", "right")
COUNTS = {"train": 60, "validation": 30, "test": 40}


@dataclass(frozen=True)
class SmallPipeline:
    """Where everything is. ``soft`` and ``hard`` are training runs of two seeds each."""

    root: Path
    data: str
    teacher: Path
    cache: Path
    soft: Path
    hard: Path


def write_images(path: Path, *, labelled: bool = True) -> str:
    random = np.random.default_rng(0)
    splits = np.concatenate([[name] * count for name, count in COUNTS.items()])
    labels = np.arange(len(splits)) % 3
    images = random.normal(scale=0.8, size=(len(splits), 1, 8, 8)).astype(np.float32)
    for row, label in enumerate(labels):
        images[row, 0, :, 3 * label : 3 * label + 2] += 1
    np.savez(path, x=images, y=labels if labelled else labels * 0 - 1, split=splits, classes=np.array(CLASSES))
    return f"arrays:{path}"


def make(root: Path) -> SmallPipeline:
    data = write_images(root / "images.npz")
    torch.manual_seed(0)
    teacher = root / "teacher.safetensors"
    model = build_model("cnn-4", {}, classes=3, input_shape=(1, 8, 8))
    save_weights(teacher, model, {"class_names": list(CLASSES)})
    cache = root / "caches" / "small"
    dump.run(
        DumpConfig(
            data=data,
            teacher="cnn-4",
            weights=teacher,
            out=cache,
            views=1,
            transform="affine:degrees=10",
            device="cpu",
        )
    )
    runs = {}
    for name, alpha in (("soft", None), ("hard", 0.0)):
        runs[name] = root / "runs" / f"cnn-2-{name}"
        training.run(
            TrainConfig(
                data=data,
                cache=str(cache),
                student="cnn-2",
                out=runs[name],
                seeds=2,
                epochs=2,
                alpha=alpha,
                device="cpu",
            )
        )
    return SmallPipeline(root, data, teacher, cache, runs["soft"], runs["hard"])
