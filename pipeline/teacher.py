"""Train a teacher on hard labels and augmented views, for people who have none of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipeline.configuration import REQUIRED, option, parse_arguments
from pipeline.datasets import Dataset, knowing, load_dataset
from pipeline.devices import autocast, resolve_device, use_threads
from pipeline.errors import ConfigError, DataError
from pipeline.identity import short
from pipeline.models import build_model, check_model, logits_of, save_weights, state_digest
from pipeline.outputs import json_bytes, read_finished, write_beside
from pipeline.progress import Progress, Silent
from pipeline.sampler import Order, blocks_of
from pipeline.training import Objective, Recipe, Task, fit, make_task
from pipeline.training.causal import CausalLearner, judge_sequences
from pipeline.training.config import DEFAULT_BLOCK
from pipeline.training.inputs import LoadedInputs
from pipeline.training.recipe import outcome_options
from pipeline.training.stage import STATE, clear_scratch, environment, model_metadata, run_identity, save_model
from pipeline.training.task import data_lineage, hard_labels, keep_labels
from pipeline.views import Views, check_views, make_views
from pipeline.workspace import Workspace, refuse_strangers, write_atomic

RECORD = "report.json"


@dataclass(frozen=True, kw_only=True)
class FitTeacherConfig(Recipe):
    """Options of ``softlabels fit-teacher``."""

    data: str = option(
        "digits",
        "dataset: digits, arrays:FILE.npz, images:FOLDER, tokens:FOLDER (of softlabels tokenize), module:factory, "
        "torchvision:NAME, hf:PATH",
    )
    data_args: tuple[str, ...] = option((), "key=value arguments for the dataset")
    teacher: str = option(
        "cnn-32", "model: a built-in (cnn-, resnet-, mlp-, gpt-WIDTH), module:factory, timm:NAME, hf:PATH"
    )
    teacher_args: tuple[str, ...] = option((), "key=value arguments for the teacher's factory")
    classes: tuple[str, ...] = option(
        (),
        "a specialist: it knows these classes alone, in this order, and learns from their examples; default all",
    )
    out: Path = option(REQUIRED, "directory of the teacher")
    epochs: int = option(30, "passes over the training set, each over another view")
    keep: str = option(
        "best",
        "weights that are saved: those of the last epoch, or those best on validation (accuracy, then likelihood)",
        choices=("last", "best"),
    )
    transform: str | None = option(
        "affine:degrees=15,translate=0.1,scale=0.1",
        "random view: built-ins joined by '+', or module:factory; 'none' for none; tokens have none",
    )
    views: int = option(8, "random views of each training example, one per epoch in turn; 0 trains on plain examples")
    checkpoints: int = option(
        0,
        "keep the weights of this many epochs as well, evenly spread and the last among them, as "
        "checkpoint-01.safetensors and so on: dumped one by one, they are a route (train --route)",
    )
    label_noise: float = option(0.0, "share of the training examples' hard labels that is wrong, chosen by id, below 1")

    @property
    def objective(self) -> Objective:
        """Cross-entropy with the hard labels."""
        return Objective(alpha=0.0, beta=1.0)

    @property
    def kept_epochs(self) -> dict[int, str]:
        """File name by the number of finished epochs of each checkpoint that is kept.

        >>> FitTeacherConfig(out=Path("t"), epochs=10, checkpoints=3).kept_epochs
        {3: 'checkpoint-01.safetensors', 6: 'checkpoint-02.safetensors', 10: 'checkpoint-03.safetensors'}
        """
        numbers = range(1, self.checkpoints + 1)
        return {n * self.epochs // self.checkpoints: f"checkpoint-{n:02d}.safetensors" for n in numbers}

    @property
    def augmented(self) -> bool:
        """Whether there is anything but plain views."""
        return self.views > 0 and self.transform not in (None, "", "none")

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.views < 0:
            yield f"--views should be 0 or more; found {self.views}"
        if not 0 <= self.label_noise < 1:
            yield f"--label-noise should be 0 or more and below 1; found {self.label_noise}"
        if not 0 <= self.checkpoints <= self.epochs:
            yield f"--checkpoints should be 0 to --epochs {self.epochs}; found {self.checkpoints}"
        if self.checkpoints and self.patience:
            yield "--checkpoints are spread over all --epochs, and --patience may stop before: leave out one of the two"


@dataclass(frozen=True)
class FitTeacherReport:
    """What a fit did, or found done.

    ``figures``: accuracy and nll (nats) on validation and test, epochs, parameters. Choices were made on validation.
    """

    out: str
    identity: str
    figures: dict[str, Any]
    seconds: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line for people."""
        judged = ", ".join(
            f"{s} accuracy {self.figures[f'{s}_accuracy']:.4f}"
            for s in ("validation", "test")
            if f"{s}_accuracy" in self.figures
        )
        did = f"{self.seconds:.1f} s" if self.seconds else "found finished"
        return f"{self.out}: {judged or 'no held-out labels'}, {did}; identity {short(self.identity)}"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dict(vars(self))


def run(config: FitTeacherConfig, progress: Progress | None = None) -> FitTeacherReport:
    """Train, resume, or find the same teacher finished.

    Writes model.safetensors, history.json and report.json into ``out``, and checkpoint-*.safetensors where they are
    asked for; none of them depends on the clock. Times go to ``out``.report.json beside it.

    Raises ConfigError, DataError or ModelError before the first step.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    use_threads(config.threads)
    device = resolve_device(config.device)
    dataset = knowing(load_dataset(config.data, parse_arguments(config.data_args, "--data-args")), config.classes)
    augmented = config.augmented and not dataset.discrete  # of tokens there are no random views
    views = make_views(config.transform, config.views + 1, config.seed) if augmented else Views()
    if augmented:
        check_views(views, dataset)
    if dataset.discrete and config.label_noise:
        raise ConfigError(f"--label-noise is of one class for each example, and {dataset.name} has token sequences")
    task = make_teacher_task(config, dataset, views, device)
    out = Path(config.out)
    lineage = {
        **data_lineage(dataset),
        "views": {"transform": views.description, "seed": views.seed, "count": views.count},
    }
    identity = run_identity(config, lineage)
    if config.overwrite:
        refuse_strangers(out, (RECORD, "model.safetensors", "history.json", "checkpoint-*.safetensors"))
    options = {**outcome_options(config), **lineage}
    found = read_finished(out, RECORD, identity, overwrite=config.overwrite, options=options)
    if found is not None:
        report = FitTeacherReport(str(config.out), identity, _figures(found))
        write_beside(out, report.as_dict(), again=True)
        return report
    with Workspace(out, identity) as space:
        document = read_finished(space.path, RECORD, identity, overwrite=True)
        if document is None:
            figures = _fit_into(space.path, config, dataset, task, progress)
            document = {"identity": identity, "config": config.as_dict(), "lineage": lineage, **figures}
            write_atomic(space.path / RECORD, json_bytes(document))
        # Only now: a kill before the record is there must not send the teacher back to its first step.
        clear_scratch(space.path)
        space.commit()
    report = FitTeacherReport(
        out=str(config.out),
        identity=identity,
        figures=_figures(document),
        seconds=round(time.perf_counter() - started, 3),
        environment=environment(device),
    )
    write_beside(out, report.as_dict())
    return report


def make_teacher_task(config: FitTeacherConfig, dataset: Dataset, views: Views, device: torch.device) -> Task:
    """Hard labels of every labelled training example, on one view per epoch."""
    rows = dataset.rows("train")
    labels = keep_labels(dataset, rows, 1.0, config.label_noise)
    rows = rows[labels[rows] >= 0]
    if not len(rows):
        raise DataError(f"{dataset.name} should have labelled examples in its train split; found none")
    blocks = blocks_of(rows, np.arange(len(rows)) // DEFAULT_BLOCK)
    return make_task(dataset, views, blocks, labels, config, device, train_views=tuple(range(views.count)), source=None)


def measure(
    model: nn.Module, dataset: Dataset, split: str, config: FitTeacherConfig, device: torch.device
) -> dict[str, float]:
    """Accuracy and mean negative log-likelihood (nats) on the labelled rows of a split; nothing when there are none."""
    rows = dataset.rows(split)
    rows = rows[hard_labels(dataset)[rows] >= 0]
    if not len(rows):
        return {}
    if dataset.discrete:
        return _measure_sequences(model, dataset, split, config, device)
    order = Order((rows,), config.batch_size, shuffle=False)
    hits, total = 0, 0.0
    model.eval()
    with torch.no_grad(), autocast(device, config.precision):
        for batch, x in zip(
            order.epoch(0), LoadedInputs(dataset, Views(), device, config.workers).stream(order, 0, 0, 0), strict=True
        ):
            logits = logits_of(model(x)).float()
            expected = torch.from_numpy(np.asarray(dataset.labels)[batch]).to(device)
            hits += int((logits.argmax(dim=1) == expected).sum())
            total += float(functional.cross_entropy(logits, expected, reduction="sum"))
    return {f"{split}_accuracy": hits / len(rows), f"{split}_nll": total / len(rows)}


def _measure_sequences(
    model: nn.Module, dataset: Dataset, split: str, config: FitTeacherConfig, device: torch.device
) -> dict[str, float]:
    """The same of token sequences: over their scored positions."""
    rows = dataset.rows(split)
    order = Order((rows,), config.batch_size, shuffle=False)
    learner = CausalLearner(model, fused=True).eval()
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        inputs = LoadedInputs(dataset, Views(), device, config.workers).stream(order, 0, 0, 0)
        for batch, x in zip(order.epoch(0), inputs, strict=True):
            sums += judge_sequences(learner, dataset, batch, x, device, config.precision).cpu().double()
    hits, nll = (sums / int(dataset.lengths[rows].sum())).tolist()
    return {f"{split}_accuracy": hits, f"{split}_nll": nll}


def _fit_into(
    folder: Path, config: FitTeacherConfig, dataset: Dataset, task: Task, progress: Progress
) -> dict[str, Any]:
    """Train into ``folder``; the figures of the weights that were kept."""
    torch.manual_seed(config.seed)
    arguments = parse_arguments(config.teacher_args, "--teacher-args")
    classes = len(dataset.classes)
    model = build_model(
        config.teacher,
        arguments,
        classes=classes,
        input_shape=dataset.input_shape,
        discrete=dataset.discrete,
    )
    check_model(model, classes=classes, example_input=dataset.prepare(dataset.load(0))[None])
    metadata, kept = model_metadata(config.teacher, arguments, dataset), config.kept_epochs

    def keep(epochs: int, trained: nn.Module) -> None:
        if epochs in kept:
            save_weights(folder / kept[epochs], trained, {**metadata, "epochs": epochs})

    fitted = fit(
        model,
        task,
        config,
        seed=config.seed,
        state=folder / STATE,
        progress=progress,
        description=Path(config.out).name,
        on_epoch=keep,
    )
    figures = {
        **measure(model, dataset, "validation", config, task.device),
        **measure(model, dataset, "test", config, task.device),
        "epochs": len(fitted.history),
        "kept_epoch": fitted.kept_epoch,
        "steps": fitted.steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "state": state_digest(model),
        **({"checkpoints": {name: epochs for epochs, name in kept.items()}} if kept else {}),
    }
    save_model(folder, model, metadata, fitted)
    return figures


def _figures(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("identity", "config", "lineage")}
