"""Does shuffling within windows of parts cost accuracy? ``python -m benchmarks.windows``; docs/decisions/0008.

The digits as they come and sorted by class, in parts of 32: sorted, a part holds one or two of the ten classes, as it
would in a folder per class. Students are distilled with all hard labels, seeds 0 to 4.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pipeline import dump, teacher, training
from pipeline.datasets import load_dataset
from pipeline.identity import SPLITS

PART = 32
STUDENTS = (("mlp-32", 30), ("cnn-8", 15))
WINDOWS = (1, 2, 4, 8, 64)


def main() -> None:
    """Train the grid and print validation accuracies: mean and s of five seeds."""
    digits = load_dataset("digits")
    x = torch.stack([digits.load(row) for row in range(len(digits))]).numpy()
    y, splits = np.asarray(digits.labels), np.array(SPLITS)[digits.splits]
    print("| order of the data | student | " + " | ".join(f"window {w}" for w in WINDOWS) + " |")
    print("|---|---|" + "---|" * len(WINDOWS))
    with tempfile.TemporaryDirectory(prefix="softlabels-windows-") as name:
        home = Path(name)
        teacher.run(teacher.FitTeacherConfig(teacher="cnn-16", epochs=15, out=home / "teacher", threads=1))
        # Without what the file says about its inputs: the same pixels come as arrays here.
        save_file(load_file(home / "teacher/model.safetensors"), home / "teacher.safetensors")
        for order, rows in (("as it comes", np.arange(len(y))), ("sorted by class", np.argsort(y, kind="stable"))):
            folder = home / order.split()[0]
            folder.mkdir()
            ids = np.array([digits.ids[row] for row in rows])
            np.savez(folder / "data.npz", x=x[rows], y=y[rows], ids=ids, split=splits[rows])
            data = f"arrays:{folder / 'data.npz'}"
            dump.run(
                dump.DumpConfig(
                    data=data,
                    teacher="cnn-16",
                    weights=home / "teacher.safetensors",
                    out=folder / "cache",
                    part_size=PART,
                    threads=1,
                )
            )
            for student, epochs in STUDENTS:
                cells = [accuracy(folder, data, student, epochs, window) for window in WINDOWS]
                print(f"| {order} | {student} | " + " | ".join(cells) + " |", flush=True)


def accuracy(folder: Path, data: str, student: str, epochs: int, window: int) -> str:
    """Validation accuracy in per cent, mean and s."""
    report = training.run(
        training.TrainConfig(
            data=data,
            cache=str(folder / "cache"),
            student=student,
            epochs=epochs,
            lr=0.01,
            seeds=5,
            window=window,
            out=folder / f"{student}-{window}",
            threads=1,
        )
    )
    found = [100 * seed["accuracy"] for seed in report.seeds]
    return f"{statistics.mean(found):.1f} ({statistics.stdev(found):.1f})"


if __name__ == "__main__":
    main()
