"""Training after surgery: the pruned student learns again from the cache that taught it, by ``training``'s loop."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from pipeline.compression.config import CompressConfig
from pipeline.errors import ConfigError
from pipeline.models import logits_of
from pipeline.progress import Progress
from pipeline.runs import Run
from pipeline.sampler import Order
from pipeline.sources.panel import HEADS
from pipeline.training import TrainConfig, fit, prepare
from pipeline.training.objective import Output
from pipeline.training.options import OF_HINTS, OF_PEERS, OF_SOFT_LABELS
from pipeline.training.supply import Supply

RECALIBRATION_BATCHES = 64
LOSS_BATCHES = 16
"""Whose gradients rank channels."""


def training_config(config: CompressConfig, run: Run) -> TrainConfig:
    """The options of the run that is compressed, with what fine-tuning does otherwise.

    Soft labels are used wherever a cache is at hand, even for a student of hard labels. Raises ConfigError when the
    run was made with options that this release does not know.
    """
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(run.config) - set(fields))
    if unknown:
        raise ConfigError(
            f"{run.path / 'run.json'} holds options that are not known here: {', '.join(unknown)}. Train again"
        )
    for name in ("teacher", "transform"):
        run.reference(name)
    # Hints go: what is left of a pruned layer no longer stands for what the layer was taught to give. So do peers: the
    # student alone is compressed; and a weight that rose for a new student is whole for one that has learnt.
    gone = {"hints", *OF_HINTS, "peers", "peer", *OF_PEERS, "alpha_epochs"}
    kept = {name: value for name, value in run.config.items() if name not in gone}
    options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()}
    options |= {
        "out": config.out,
        "seeds": 1,
        "seed": config.seed,
        "patience": 0,
        "keep": "best",
        "workers": config.workers,
    }
    options |= {"threads": config.threads, "device": config.device, "compile": False}
    if config.data is not None:
        options |= {"data": config.data, "data_args": config.data_args}
    if config.cache is not None and options.get("mix") == HEADS:
        raise ConfigError(f"{run.path} has a head for each of its caches, and learns from those: leave out --cache")
    if config.cache is not None:
        options |= {"cache": None if config.cache == "none" else config.cache, "labels": (), "route": ()}
        options |= {"mix": TrainConfig.mix}
        options |= {"foreign": TrainConfig.foreign}
    if options.get("route"):  # its end: what a pruned student lost is fitted again, not led to
        options |= {"cache": options["route"][-1], "route": ()}
    cached = bool(options.get("cache") or options.get("labels"))
    if cached and not options.get("alpha"):
        options["alpha"] = options["beta"] = None
    if not cached and options.get("teacher") is None:
        options = {name: value for name, value in options.items() if name not in OF_SOFT_LABELS} | {"alpha": 0.0}
    for name in ("temperature", "alpha"):
        if getattr(config, name) is not None:
            options[name] = getattr(config, name)
    if options.get("weights"):
        options["weights"] = Path(options["weights"])
    return TrainConfig(**options)


Model = TypeVar("Model", bound=nn.Module)


def epochs_of(count: int, which: str = "") -> str:
    """In words.

    >>> epochs_of(1), epochs_of(12, "more ")
    ('1 epoch', '12 more epochs')
    """
    return f"{count} {which}epoch{'' if count == 1 else 's'}"


class Tuning:
    """Fine-tuning and the controls that train: all on one task, so that only the model differs."""

    def __init__(self, config: CompressConfig, run: Run, progress: Progress) -> None:
        self.recipe = training_config(config, run)
        self.config, self.progress = config, progress
        self.task = prepare(self.recipe).task

    @property
    def soft(self) -> bool:
        """Whether there are soft labels to learn from."""
        return self.task.source is not None

    @property
    def labels(self) -> str:
        """What is learnt from, in words."""
        if not self.soft:
            return "hard labels"
        return f"soft labels (weight {self.recipe.objective.alpha:g}, T = {self.recipe.temperature:g})"

    @property
    def description(self) -> Mapping[str, Any]:
        """The options that decide the outcome, as JSON values."""
        objective = self.recipe.objective
        return {
            "labels": "soft" if self.soft else "hard",
            "alpha": objective.alpha,
            "beta": objective.beta,
            "temperature": objective.temperature,
            "views": len(self.task.train_views),
            "epochs": self.config.epochs,
            "lr": self.lr,
        }

    @property
    def lr(self) -> float:
        """The highest learning rate of fine-tuning."""
        return self.recipe.lr if self.config.lr is None else self.config.lr

    def batches(self) -> Iterator[Tensor]:
        """Training inputs (B, ...) as the student saw them, shuffled, for the statistics of batch norms; on the CPU."""
        order = Order(self.task.blocks, self.recipe.batch_size, seed=self.config.seed)
        stream = self.task.inputs.stream(order, 0, 0, self.task.train_views[0])
        return (inputs.cpu() for inputs in itertools.islice(stream, RECALIBRATION_BATCHES))

    def losses(self, model: nn.Module) -> Iterator[Tensor]:
        """The mean loss of ``model`` on training batches, one by one, with its gradients to come; on the CPU."""
        task, recipe = self.task, self.recipe
        if task.device.type != "cpu":
            task = prepare(dataclasses.replace(recipe, device="cpu")).task
        order = Order(task.blocks, recipe.batch_size, seed=self.config.seed)
        with closing(Supply(task, order).epoch(task.objective, 0, 0, task.train_views[0])) as supply:
            for inputs, known in itertools.islice(supply, LOSS_BATCHES):
                yield task.objective(Output(logits_of(model(inputs))), known).total.mean()

    def train(
        self,
        model: Model,
        what: str,
        *,
        epochs: int | None = None,
        lr: float | None = None,
        state: Path | None = None,
    ) -> Model:
        """A copy of ``model`` trained for ``epochs`` (those of fine-tuning), in eval mode on the CPU.

        ``state``: where the training state is saved when it is stopped, and looked for when it is called again.
        """
        epochs, lr = self.config.epochs if epochs is None else epochs, self.lr if lr is None else lr
        model = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        if epochs:
            recipe = dataclasses.replace(self.recipe, epochs=epochs, lr=lr)
            fit(model, self.task, recipe, seed=self.config.seed, state=state, progress=self.progress, description=what)
        if state is not None:
            state.unlink(missing_ok=True)
        return model.cpu().eval()

    def from_scratch(self, model: nn.Module, what: str, epochs: int, state: Path | None = None) -> nn.Module:
        """``model`` trained as long as the student and ``epochs`` of fine-tuning together, at the student's rate."""
        return self.train(model, what, epochs=self.recipe.epochs + epochs, lr=self.recipe.lr, state=state)
