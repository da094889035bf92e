"""Made-up results of every setting, written as the stages write them, so that a page can be drawn without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ("0", "1", "2", "<3>")
EXAMPLES = 80

METHODS: dict[str, dict[str, Any]] = {
    "hard": {"alpha": 0.0},
    "soft": {},
    "fixed": {"train_views": "all", "label_view": "plain"},
    "replayed": {"train_views": "all"},
    "hard-aug": {"train_views": "random", "alpha": 0.0},
    "few-hard": {"labelled_fraction": 0.05, "alpha": 0.0},
    "few-soft": {"labelled_fraction": 0.05},
    "omit-hard": {"omit_class": "<3>", "alpha": 0.0},
    "omit-soft": {"omit_class": "<3>", "alpha": 1.0},
}
LOSSES: dict[str, dict[str, Any]] = {
    "reverse": {"loss": "reverse-kl"},
    "skewed": {"loss": "skewed-kl", "loss_args": ["skew=0.2"]},
    "standardised": {"standardise": True},
    "smooth": {"alpha": 0.0, "label_smoothing": 0.1},
    "top3": {"cache": "caches/top3"},
    "cooler": {"temperature": 2.0},
    "fixed-reverse": {"train_views": "all", "label_view": "plain", "loss": "reverse-kl"},
}
BASE = {
    "data": "digits",
    "cache": "caches/digits",
    "alpha": None,
    "train_views": "plain",
    "label_view": "own",
    "temperature": 4.0,
}
BASE |= {"labelled_fraction": 1.0, "omit_class": None}


@dataclass
class World:
    """Folders of results under ``root``; ``add`` makes one evaluation and its run."""

    root: Path
    evaluations: list[Path] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)

    def add(
        self,
        student: str,
        method: str,
        accuracies: Sequence[float],
        *,
        parameters: int = 1000,
        digest: str = "e" * 64,
        corrected: Sequence[str] = (),
    ) -> Path:
        name = f"{student}-{method}"
        run, evaluation = self.root / "runs" / name, self.root / "evaluations" / "-".join([name, *corrected])
        config = {**BASE, "student": student, **{**METHODS, **LOSSES}[method]}
        labels = np.arange(EXAMPLES) % len(CLASSES)
        hits, confusion, seeds = np.zeros(EXAMPLES, int), np.zeros((4, 4), int), {}
        for seed, accuracy in enumerate(accuracies):
            correct = np.arange(EXAMPLES) < round(accuracy * EXAMPLES)
            hits += correct
            np.add.at(confusion, (labels, np.where(correct, labels, (labels + 1) % 4)), 1)
            omitted = float(correct[labels == 3].mean()) if config["omit_class"] else None
            figures = {"accuracy": float(correct.mean()), "nll": 0.5, "ece": 0.05}
            figures |= {"teacher_agreement": 0.9, "kl_to_teacher": 0.1}
            seeds[str(seed)] = {**figures, "validation": figures, "omitted_class_accuracy": omitted}
        details = {
            "run": name,
            "student": student,
            "config": config,
            "split": "test",
            "examples": EXAMPLES,
            "examples_digest": digest,
            "data_digest": "d" * 64,
            "cache": "c" * 64,
            "class_names": list(CLASSES),
            "parameters": parameters,
            "temperature": 1.0,
            "omitted_class": config["omit_class"],
            "omitted_class_rows": np.flatnonzero(labels == 3).tolist() if config["omit_class"] else [],
            "seeds": seeds,
            "per_class_accuracy": [0.9] * 4,
            "confusion": confusion.tolist(),
            "reliability": {"counts": [0, 9, 71], "confidence": [None, 0.5, 0.9], "accuracy": [None, 0.4, 0.95]},
            "hits": hits.tolist(),
            "teacher": {"accuracy": 0.98, "per_class_accuracy": [1.0] * 4, "omitted_class_accuracy": 0.97},
        }
        if corrected:
            details["correction"] = {"classes": list(corrected), "bias": {seed: [1.0] for seed in seeds}}
        mean = float(np.mean([s["accuracy"] for s in seeds.values()]))
        flat = {"accuracy": mean, "nll": 0.5, "ece": 0.05, "teacher_agreement": 0.9, "kl_to_teacher": 0.1}
        write(evaluation / "details.json", details)
        write(evaluation / "metrics.json", flat)
        history = [{"epoch": e, "loss": 1.0, "accuracy": 0.9 - 0.5 / (e + 1)} for e in range(20)]
        for seed in seeds:
            write(run / f"seed-{seed}" / "history.json", history)
        lineage = {"visits_per_epoch": 100, "cache": f"digest of {config['cache']}"}
        record = {"config": config, "lineage": lineage, "seeds": [{"epochs": 20}] * len(seeds)}
        write(run / "run.json", record)
        write(run.with_name(f"{name}.report.json"), {"seconds": 3.0})
        self.evaluations.append(evaluation)
        if run not in self.runs:
            self.runs.append(run)
        return evaluation

    def add_cache(self, **changes: Any) -> Path:
        cache = self.root / "caches" / "digits"
        identity = {"digest": "c" * 64, "preprocessing": "none", "encoding": {"name": "dense", "dtype": "float32"}}
        identity |= {"teacher": {"reference": "cnn-32", "state": "f" * 64}, "views": {"count": 9, "transform": "t"}}
        write(cache / "manifest.json", {"identity": identity, "bound": 0.0})
        dump = {"entries": 500, "bytes": 60_000, "bytes_per_entry": 120.0, "seconds": 2.0, "teacher_seconds": 0.5}
        write(cache.with_name("digits.report.json"), {**dump, "resumed": 0, "device": "cpu", **changes})
        return cache

    def add_compressed(self, rows: Sequence[dict[str, Any]]) -> Path:
        folder = self.root / "compressed"
        table = {"run": "cnn-4-replayed", "seed": 0, "processor": "A <CPU>", "runtime_threads": 1, "versions": {}}
        table |= {"test_examples": EXAMPLES, "calibration_examples": 64, "rows": list(rows)}
        write(folder / "table.json", table)
        return folder

    def options(self) -> dict[str, Any]:
        return {"evaluations": tuple(self.evaluations), "runs": tuple(self.runs)}


def artefact(name: str, *, size: int, milliseconds: float, accuracy: float, **more: Any) -> dict[str, Any]:
    latency = {size: {"p50": milliseconds, "p95": 2 * milliseconds, "calls": 9} for size in ("1", "32")}
    gap = {"difference": accuracy - 0.95, "half_width": 0.02, "verdict": "within noise"}
    row: dict[str, Any] = {"name": name, "what": f"what {name} is", "bytes": size, "accuracy": accuracy}
    row |= {"latency": latency, "against_baseline": None if name == "baseline" else gap, "agreement": 0.99}
    return {**row, "check": {"max_difference": 1e-6}, "warnings": [], **more}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def full_world(root: Path) -> World:
    world = World(root)
    for student, size, gain in (("mlp-8", 600, 0.0), ("cnn-4", 1400, 0.05)):
        for number, method in enumerate(METHODS):
            base = 0.6 + gain + 0.02 * number
            world.add(student, method, [base, base + 0.0125, base + 0.025], parameters=size)
    return world
