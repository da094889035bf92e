"""Students that learn from each other: made, told apart, and kept with what each of them came to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.configuration import parse_arguments
from pipeline.datasets import Dataset
from pipeline.devices import autocast
from pipeline.identity import view_seed
from pipeline.losses import gated_logits, mean_logits
from pipeline.models import build_model, check_model, save_weights, state_digest
from pipeline.sampler import Order
from pipeline.training.cohort import together
from pipeline.training.config import TrainConfig
from pipeline.training.fitted import Fitted
from pipeline.training.lessons import Lessons
from pipeline.training.members import Members, Team
from pipeline.training.objective import Output
from pipeline.training.tally import exact_sum, judged
from pipeline.training.task import Task
from pipeline.training.validation import VALIDATION_BATCHES

CPU = torch.device("cpu")
FEWEST = 6
"""Peers from which stacking pays on a CPU.

Measured on one thread at 8 x 8 pixels, batches of 64: stacked, 2 peers are 0.7 to 0.9 times as fast with mlp-16, 4 are
0.9 to 1.0 times, 6 are 0.9 to 1.2 times and 16 are 1.3 to 1.8 times; with cnn-4, 2 are as fast, 4 are 1.0 to 1.3 times
and 16 are 1.5 to 1.6 times. A step of vmap has a fixed cost of about 0.2 ms.
"""


class Peers(Members):
    """Models that learn from each other, the student first; with ``gated``, their ensemble as one member more.

    The ensemble of n models has n weights of its own, equal at first. Lan et al. 2018 take them from features that all
    branches share; these models share none.

    - ``group``: the models, stacked or one by one;
    - ``lessons``: the features that they learn from each other, which takes a ``Team``; None for none;
    - ``whose``: what each member is called in errors, the ensemble last;
    - ``apart``: why models that are alike, and enough, are not stacked, "" for those that are, and for others.
    """

    def __init__(
        self,
        group: Members,
        *,
        gated: bool = False,
        lessons: Lessons | None = None,
        whose: Sequence[str] = (),
        apart: str = "",
    ) -> None:
        super().__init__()
        self.group = group
        self.gate = nn.Parameter(torch.zeros(group.count)) if gated else None
        self.lessons, self.whose, self.apart = lessons, tuple(whose), apart

    @property
    def count(self) -> int:
        return self.group.count + (self.gate is not None)

    def forward(self, x: Tensor) -> Tensor | Output:
        """Logits (n, B, C), or (n + 1, B, C) with those of the ensemble last; in training with features, an Output."""
        if self.lessons is None or not self.training:
            return self.logits(x)
        with self.lessons.listening():
            logits = self.logits(x)
            return Output(logits, self.lessons())

    def logits(self, x: Tensor) -> Tensor:
        """Logits (n, B, C), or (n + 1, B, C)."""
        logits: Tensor = self.group(x)
        return logits if self.gate is None else torch.cat([logits, gated_logits(logits, self.gate)[None]])

    def members(self) -> Sequence[nn.Module]:
        """The models, without their ensemble: copies where they are stacked."""
        return self.group.members()


def with_peers(
    student: nn.Module, config: TrainConfig, dataset: Dataset, seed: int, device: torch.device = CPU
) -> Peers:
    """``student``, with the weights that it has, and its peers, checked; peer k has initial weights of (seed, k).

    Models that are alike are stacked where that pays on ``device``, where they are to be trained: on a CPU from
    ``FEWEST`` on, and as ``together`` says.

    Raises ConfigError or ModelError for a model that does not exist, does not fit ``dataset``, or does not have the
    features that are to be learnt.
    """
    models, whose = [student], [f"the student, {config.student}"]
    example = dataset.prepare(dataset.load(0))[None]
    for number, (reference, arguments) in enumerate(references(config)[1:], start=1):
        torch.manual_seed(view_seed(seed, "peer", number))
        models.append(
            build_model(
                reference,
                arguments,
                classes=len(dataset.classes),
                input_shape=dataset.input_shape,
                discrete=dataset.discrete,
            )
        )
        whose.append(f"peer {number}, {reference}")
    for model, name in zip(models, whose, strict=True):
        check_model(model, classes=len(dataset.classes), example_input=example, whose=f"{name},")
    gated, hints = config.exchange == "ensemble", config.goal.hints
    whose += ["their ensemble"] * gated
    first, *others = references(config)
    group: Members
    few = device.type == "cpu" and len(models) < FEWEST
    if few or any(other != first for other in others):
        group, apart = Team(models), ""
    elif hints is not None:
        # A tap takes what the module of one model gives. Stacked models have no modules of their own, and what the
        # module of all gives is a tensor of vmap's, which means nothing outside of it.
        group, apart = Team(models), "features are taken from the modules of each"
    else:
        group, apart = together([model.to(device) for model in models], example.to(device))
    lessons = None if hints is None else Lessons(models, whose, config.exchange, hints, example, seed)
    return Peers(group, gated=gated, lessons=lessons, whose=whose, apart=apart)


def references(config: TrainConfig) -> list[tuple[str, dict[str, Any]]]:
    """The model of each peer and its arguments, the student's first."""
    student = (config.student, parse_arguments(config.student_args, "--student-args"))
    return [student] * max(config.peers, 1) + [(reference, {}) for reference in config.peer]


def peer_records(
    peers: Peers, models: Sequence[nn.Module], config: TrainConfig, task: Task, fitted: Fitted
) -> dict[str, Any]:
    """What a record says of the peers: figures on validation of each, of their mean probability, of their ensemble.

    ``models`` are the members of ``peers``, which are evaluated once more, on ``task.device``, where there are
    validation rows. JSON values.
    """
    history = fitted.history
    figures = _figures(peers, config, task) if len(task.validation) else []
    named = ("accuracy", "nll")
    records = [
        {
            "reference": reference,
            "parameters": sum(p.numel() for p in model.parameters()),
            "state": state_digest(model),
            "loss": history[-1]["loss"][number],
            **(dict(zip(named, figures[number], strict=True)) if figures else {}),
        }
        for number, ((reference, _), model) in enumerate(zip(references(config), models, strict=True))
    ]
    found: dict[str, Any] = {"peers": records}
    if figures:
        found["mean_probability"] = dict(zip(named, figures[-1], strict=True))
    if peers.gate is not None:
        gated = dict(zip(named, figures[-2], strict=True)) if figures else {}
        found["ensemble"] = {"weights": torch.softmax(peers.gate.detach(), dim=0).tolist(), **gated}
    return found


def _figures(peers: Peers, config: TrainConfig, task: Task) -> list[list[float]]:
    """Accuracy and mean negative log-likelihood (nats) of each member, and last of the models' mean probability."""
    order = Order((task.validation,), config.batch_size * VALIDATION_BATCHES, shuffle=False)
    labels = torch.from_numpy(task.validation_labels)
    found: list[Tensor] = []
    for rows, x in zip(order.epoch(0), task.validation_inputs.stream(order, 0, 0, 0), strict=True):
        with torch.no_grad(), autocast(task.device, config.precision):
            logits = peers(x).float().cpu()
        logits = torch.cat([logits, mean_logits(logits[: peers.group.count], temperature=1.0)[None]])
        found.append(judged(logits, labels[torch.from_numpy(rows)]))
    figures: list[list[float]] = (exact_sum(torch.stack(found)) / order.examples).T.tolist()
    return figures


def save_peers(folder: Path, models: Sequence[nn.Module], config: TrainConfig, metadata: dict[str, Any]) -> None:
    """peer-1.safetensors and so on, all of ``models`` but the student; ``metadata`` is the student's."""
    for number, ((reference, arguments), model) in enumerate(zip(references(config), models, strict=True)):
        if number:
            own = metadata | {"reference": reference, "args": arguments, "peer": number}
            save_weights(folder / f"peer-{number}.safetensors", model, own)
