"""The state of a training run as one safetensors file: written whole or not at all, loaded without executing anything.

Tensors (weights, optimiser, best weights so far, random state, this epoch's losses) are named tensors, all else is
JSON in the file's metadata, so that no crash can leave one without the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, some
from pipeline.training.ranks import shared_as, whole
from pipeline.workspace import write_atomic

KEY = "softlabels-training-state"
FORMAT = 2


@dataclass
class Position:
    """Where a run is: everything about it that is not a tensor.

    ``epoch`` and ``batch`` are those to do next; ``step`` counts optimiser steps; ``best`` is (accuracy, -NLL) on
    validation; ``history`` has a record per finished epoch.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_epoch: int = -1
    best: tuple[float, float] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stale(self) -> int:
        """Epochs since the best one."""
        return self.epoch - 1 - self.best_epoch


def save_state(
    path: Path,
    signature: str,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor] | None,
    losses: Tensor,
    *,
    write: bool = True,
) -> None:
    """Write the whole state. Ranks that hold shares of it all call this, and one of them does ``write``.

    ``signature`` says which run it belongs to, ``losses`` are those of the open epoch.

    Raises DiskFullError when there is no room; the state that was there before stays, and is what a run goes on from.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in (best or {}).items()}
    scalars: dict[str, Any] = {}
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{number}/{key}"] = value
            else:
                scalars[f"{number}/{key}"] = value
    tensors["losses"] = losses
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"random/cuda/{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        tensors["random/mps"] = torch.mps.get_rng_state()
    # Copies: tied weights share memory, which the format refuses.
    plain = {name: whole(value.detach()).to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    if not write:
        return
    document = {"format": FORMAT, "signature": signature, "optimizer": scalars, "position": vars(position)}
    write_atomic(path, safetensors.torch.save(plain, metadata={KEY: json.dumps(document, allow_nan=False)}))


@dataclass
class Loaded:
    """What ``load_state`` gives back besides the model and optimiser that it filled."""

    position: Position
    best: dict[str, Tensor] | None
    losses: Tensor


def load_state(
    path: Path, signature: str, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> Loaded | None:
    """Fill ``model``, ``optimizer`` and the random generators from ``path``; None when there is no file.

    Raises ConfigError when the file is not a training state, is that of another run, or holds weights of other names
    or shapes than ``model``.
    """
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            document = json.loads((file.metadata() or {})[KEY])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = (document["format"], document["signature"])
        position = Position(**document["position"])
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a training state of this release ({error}). Delete it to start over"
        ) from None
    if found != (FORMAT, signature):
        raise ConfigError(f"{path} is the state of another run (other options, data or seed). Delete it to start over")
    position.best = None if position.best is None else (position.best[0], position.best[1])
    held, kept = model.state_dict(), _under(tensors, "model/")
    _check_weights(path, kept, held)
    model.load_state_dict({name: shared_as(value, held[name]) for name, value in kept.items()})
    state: dict[int, dict[str, Any]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in _under(tensors, "optimizer/").items():
        number, _, key = name.partition("/")
        parameter = parameters[int(number)]
        state.setdefault(int(number), {})[key] = (
            shared_as(value, parameter) if value.shape == parameter.shape else value
        )
    for name, scalar in document["optimizer"].items():
        number, _, key = name.partition("/")
        state.setdefault(int(number), {})[key] = scalar
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random/cpu"])
    cuda = _under(tensors, "random/cuda/")
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([cuda[str(n)] for n in range(len(cuda))])
    if "random/mps" in tensors and torch.backends.mps.is_available():
        torch.mps.set_rng_state(tensors["random/mps"])
    best = {name: shared_as(value.to(device), held[name]) for name, value in _under(tensors, "best/").items()}
    return Loaded(position, best or None, tensors["losses"])


def _check_weights(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ConfigError unless both have the same names and shapes: the same run may have kept them otherwise."""
    there, here = ({f"{name} {tuple(value.shape)}" for name, value in side.items()} for side in (found, expected))
    if there != here:
        raise ConfigError(
            f"{path} is a state of this run with other weights: expected {some(sorted(here - there)) or 'no others'}, "
            f"found {some(sorted(there - here)) or 'none of these'}. It is of another release, or of another "
            "device, where peers are stacked or are not. Go on there, or delete it to start over"
        )


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
