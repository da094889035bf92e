"""Where tensors live and in which precision a model runs: one place for ``--device``, ``--precision`` and threads."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("float32", "bfloat16", "float16")


def torchrun_rank() -> tuple[int, int]:
    """(rank, world) of this process, as torchrun says in RANK and WORLD_SIZE; (0, 1) of one that runs alone.

    Raises ConfigError when they cannot be.
    """
    given = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if all(text.isdecimal() for text in given) and int(given[0]) < int(given[1]):
        return int(given[0]), int(given[1])
    raise ConfigError(
        f"RANK and WORLD_SIZE should be those of torchrun; found {given[0]!r} and {given[1]!r}. Unset them, or start "
        "with torchrun"
    )


def resolve_device(name: str) -> torch.device:
    """The device for ``name``: ``auto`` takes CUDA, then MPS, then the CPU; ``cuda:1`` names one of several.

    Of several GPUs a rank of torchrun takes the one of its LOCAL_RANK. With a GPU, ``float32`` is made to mean float32
    in this process (``exact_float32``).

    Raises ConfigError when the device asked for is not there.
    """
    device = _named(name)
    if device.type == "cuda":
        exact_float32()
    return device


def exact_float32() -> None:
    """Convolutions and recurrent layers of float32 tensors in float32, as matrix products are.

    torch leaves cuDNN to round their factors to TF32, 10 bits of mantissa in place of 23: a cache would say "float32"
    of logits with three digits. Who wants the tensor cores asks for ``bfloat16`` or ``float16``, which is kept with
    the cache. A switch of the whole process; matrix products stay as the program that calls us has them.
    """
    torch.backends.cudnn.allow_tf32 = False  # this name is in every torch that we take; the newer ones begin at 2.9


def _named(name: str) -> torch.device:
    """What ``resolve_device`` gives."""
    cuda = torch.cuda.is_available()
    mps = torch.backends.mps.is_available()
    if cuda and name in ("auto", "cuda") and os.environ.get("LOCAL_RANK", "").isdecimal():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    unknown = ConfigError(f"--device should be one of {', '.join(DEVICES)} or cuda:N; found {name!r}")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown from None
    if device.type not in DEVICES:
        raise unknown
    there = {"cpu": 1, "cuda": torch.cuda.device_count() if cuda else 0, "mps": int(mps)}
    if (device.index or 0) >= there[device.type]:
        raise ConfigError(
            f"--device {name} was asked for, but this machine has none that torch can use. Try --device auto"
        )
    return device


def on_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """``array`` on ``device``, which nobody waits for: a GPU takes it out of page-locked memory when it comes to it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which a forward pass runs in ``precision``; float32 is the plain one (see ``exact_float32``)."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def use_threads(threads: int) -> None:
    """Threads of torch's own arithmetic on the CPU; 0 leaves torch's choice.

    Tiny models run several times faster on one thread than on all of them.
    """
    if threads:
        torch.set_num_threads(threads)
