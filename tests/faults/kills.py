"""Real dumps and training runs, killed with SIGKILL (see killing.py).

python -m tests.faults.kills dump --folder /tmp/kills --times 200 --seed 0
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import dump, training
from pipeline.dump import DumpConfig, asking, parts, prepare
from pipeline.models import build_model, save_weights
from pipeline.store import CacheWriter, parquet_backend, writer, zarr_backend
from pipeline.training import TrainConfig, loop, stage
from pipeline.views import input_loader
from tests.faults.counts import Counts
from tests.faults.dying import Watch, complete, scratch
from tests.faults.killing import Asked, Kinds, Trial, Work, apart, main


def dump_kills(folder: Path, times: int = 200, seed: int = 0) -> Counts:
    """Kill dumps ``times`` times: the same bytes in the end, and no journalled entry asked about again."""
    return apart("kills", "dump", folder, times, seed)


def training_kills(folder: Path, times: int = 50, seed: int = 0) -> Counts:
    """Kill training runs ``times`` times: the same bytes in the end, no step of a finished student done again."""
    return apart("kills", "training", folder, times, seed)


class DumpWork(Work):
    """A dump of a few dozen examples. Pieces are entries, and what is done are the journalled parts."""

    phases = ("teacher", "encode", "pack", "write", "rename", "journal", "finalise", "commit", "report")
    early = phases[:6]

    def __init__(self, folder: Path, options: dict[str, Any], counts: Counts) -> None:
        replacing = options.pop("replacing", None)
        job = prepare(DumpConfig(**options, out=folder))
        self.digest, self.sizes = job.digest, np.array([part.entries for part in job.layout.parts])
        self.part_of = np.repeat(np.arange(len(self.sizes)), self.sizes)
        entries = [
            [(int(row), part.view)]
            for part in job.layout.parts
            for row in job.dataset.rows(part.split)[part.first : part.first + part.entries]
        ]
        # What the teacher is shown says which entry it is, however the dump orders and batches them.
        inputs = input_loader(job.dataset, job.views, entries)
        self.known = {batch[0].numpy().tobytes(): entry for entry, batch in enumerate(inputs)}
        assert len(self.known) == len(entries), "every entry should look different to the teacher"
        before = folder / "before"
        if replacing is None:
            super().__init__(folder, options, counts, len(entries))
        else:
            complete(lambda: dump.run(DumpConfig(**{**options, **replacing}, out=before)))
            super().__init__(folder, {**options, "overwrite": True}, counts, len(entries), before)

    def start(self, out: Path, watch: Watch) -> None:
        ask, write = parts.ask, writer.write_atomic

        def counted(job: Any, inputs: torch.Tensor, *more: Any, **named: Any) -> Any:
            watch.asked[[self.known[row.numpy().tobytes()] for row in inputs]] += 1
            return ask(job, inputs, *more, **named)

        write_file, write_journal = watch.around("write", write), watch.around("journal", write, cover=True)
        writer.write_atomic = lambda path, data: (write_journal if path.parent.name == writer.JOURNAL else write_file)(
            path, data
        )
        parts.ask, asking.begin = watch.around("teacher", counted), watch.around("encode", asking.begin)
        for backend in (zarr_backend.ZarrBackend, parquet_backend.ParquetBackend):
            backend.encode = watch.around("pack", backend.encode)
        CacheWriter.finalise = watch.around("finalise", CacheWriter.finalise, cover=True)
        watch.files()
        watch.resumed[0] = dump.run(DumpConfig(**self.options, out=out)).resumed

    def done(self, out: Path) -> set[int]:
        everything = set(range(len(self.sizes)))
        for manifest in [out / "manifest.json", *(path / "manifest.json" for path in scratch(out))]:
            if manifest.is_file() and json.loads(manifest.read_bytes())["identity"]["digest"] == self.digest:
                return everything
        journals = (entry for path in scratch(out) for entry in path.glob(f"**/{writer.JOURNAL}/part-*.json"))
        return {int(entry.stem.removeprefix("part-")) for entry in journals}

    def judge(self, trial: Trial, asked: Asked, done: set[int], killed: bool) -> None:
        touched = set(self.part_of[asked > 0].tolist())
        again, lost = touched & trial.done, touched - done
        trial.expect(not again, f"the teacher was asked again about parts {sorted(again)}, which were journalled")
        trial.expect(asked.max() <= 1, "the teacher was asked twice about one entry in one run")
        trial.expect(
            len(lost) <= 2, f"a kill should lose at most one part that is written and one in hand; lost {lost}"
        )
        if not killed:
            kept, found = len(trial.done), int(trial.watch.resumed[0])
            trial.expect(found == kept, f"{kept} parts were journalled, the dump found {found} of them")
        if len(trial.history) > 1:
            self.counts["parts found finished when taken up again"] += len(trial.done)
            self.counts["teacher passes saved by that (entries)"] += int(self.sizes[sorted(trial.done)].sum())
        self.counts["teacher passes lost to kills (entries)"] += int(asked[np.isin(self.part_of, [*lost])].sum())

    def left(self, trial: Trial) -> float:
        return 1 - float(self.sizes[sorted(trial.done)].sum() / self.sizes.sum())


class TrainingWork(Work):
    """Students of a few epochs. Pieces are the optimiser steps of each seed, and what is done are whole students."""

    phases = ("state", "commit", "update", "record", "backward", "weights", "clear", "report")
    early = ("state", "update", "backward")
    late = (*Work.late, "torch._dynamo")

    def __init__(self, folder: Path, options: dict[str, Any], counts: Counts) -> None:
        self.killed_runs = 0
        super().__init__(folder, options, counts, options["seeds"])

    def start(self, out: Path, watch: Watch) -> None:
        fit, seed = stage.fit, [0]

        def fit_seed(*args: Any, **named: Any) -> Any:
            seed[0] = named["seed"]
            return fit(*args, **named)

        def counted(step: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*args: Any, **named: Any) -> Any:
                watch.asked[seed[0]] += 1
                return step(*args, **named)

            return watch.around("update", counting)

        stage.fit = fit_seed
        torch.Tensor.backward = watch.around("backward", torch.Tensor.backward)
        for optimizer in (torch.optim.AdamW, torch.optim.SGD):
            optimizer.step = counted(optimizer.step)
        loop.save_state = watch.around("state", loop.save_state, cover=True)
        stage.save_model = watch.around("weights", stage.save_model, cover=True)
        stage.write_atomic = watch.around("record", stage.write_atomic, cover=True)
        stage.clear_scratch = watch.around("clear", stage.clear_scratch, cover=True)
        watch.files()
        os.chdir(out.parent)  # run.json names --out as it was given
        training.run(TrainConfig(**self.options, out=Path(out.name)))

    def done(self, out: Path) -> set[int]:
        everything = set(range(self.options["seeds"]))
        if any((path / stage.RECORD).is_file() for path in [out, *scratch(out)]):
            return everything
        records = (record for path in scratch(out) for record in path.glob(f"seed-*/{stage.SEED_RECORD}"))
        return {int(record.parent.name.removeprefix("seed-")) for record in records}

    def judge(self, trial: Trial, asked: Asked, done: set[int], killed: bool) -> None:
        again = {seed for seed in trial.done if asked[seed]}
        trial.expect(not again, f"students {sorted(again)} were whole and were trained again")
        if len(trial.history) > 1:
            self.counts["students found finished when taken up again"] += len(trial.done)
        if not killed and trial.name != "undisturbed":
            again = int((trial.watch.asked - self.asked).sum())
            most = len(trial.history) - 1
            saved_each_step = self.options["checkpoint_every"] < 1e-6
            trial.expect(again >= 0, f"{-again} optimiser steps were left out")
            trial.expect(again <= most or not saved_each_step, f"{most} kills should lose a step each; lost {again}")
            self.counts["optimiser steps done"] += int(trial.watch.asked.sum())
            self.counts["optimiser steps done again"] += again

    def left(self, trial: Trial) -> float:
        return max(0.0, 1 - float(trial.watch.asked.sum() / self.asked.sum()))


def slow_teacher(classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """A teacher whose forward pass takes long enough to be killed in."""
    model = build_model("mlp-8", {}, classes=classes, input_shape=input_shape)
    model.register_forward_pre_hook(lambda *_: time.sleep(0.002))
    return model


def _dumps(folder: Path) -> list[dict[str, Any]]:
    chance = np.random.default_rng(0)
    np.savez(
        folder / "data.npz",
        x=chance.normal(size=(61, 1, 8, 8)).astype(np.float32),
        y=chance.integers(0, 5, 61),
        split=np.array(["train"] * 40 + ["validation"] * 10 + ["test"] * 11),
        classes=np.array([f"class {n}" for n in range(5)]),
    )
    torch.manual_seed(0)
    save_weights(folder / "teacher.safetensors", build_model("mlp-8", {}, classes=5, input_shape=(1, 8, 8)), {})
    base = {
        "data": f"arrays:{folder / 'data.npz'}",
        "teacher": "tests.faults.kills:slow_teacher",
        "weights": folder / "teacher.safetensors",
        "batch_size": 7,
        "device": "cpu",
    }
    views = {"views": 2, "transform": "affine:degrees=20"}
    half, topk, hint = {"dtype": "float16"}, {"encoding": "topk", "k": 2}, {"features": ("hint=hidden",)}
    return [
        base | views | half | {"part_size": 16},
        base | views | topk | hint | {"store": "parquet", "part_size": 24},
        base | half | {"part_size": 9, "replacing": {"part_size": 40, "dtype": "float32"}},
        base | views | topk | hint | {"part_size": 64},
        base | views | half | {"store": "parquet", "part_size": 8},
    ]


def _trainings(folder: Path) -> list[dict[str, Any]]:
    dumping = _dumps(folder)[0]
    complete(lambda: dump.run(DumpConfig(**dumping, out=folder / "cache")))
    base = {"data": dumping["data"], "student": "mlp-4", "epochs": 2, "batch_size": 8, "lr": 0.02, "device": "cpu"}
    soft = {"cache": str(folder / "cache"), "window": 2, "train_views": "all"}
    every_step, now_and_then = {"checkpoint_every": 1e-9}, {"checkpoint_every": 0.02}
    return [
        base | soft | every_step | {"seeds": 2, "student": "cnn-2", "student_args": ("dropout=0.2",)},
        base | soft | now_and_then | {"seeds": 3, "keep": "best", "resident": "none"},
        base | every_step | {"seeds": 2, "optimizer": "sgd", "accumulate": 2, "alpha": 0.0},
        base | soft | every_step | {"seeds": 3, "keep": "best", "patience": 1, "epochs": 3},
    ]


KINDS: Kinds = {"dump": (DumpWork, _dumps), "training": (TrainingWork, _trainings)}


if __name__ == "__main__":
    # Under its own name, not as __main__: the teacher above is part of a cache's identity.
    from tests.faults import kills

    main(kills.KINDS)
