"""One training run on several processes, as torchrun starts them; or on this one alone.

Ranks take turns at the batches of one order, so that a step of N ranks is the step of one with N times the
accumulation. What has to be agreed on (when to stop, what was lost and won in an epoch) is agreed on here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.devices import torchrun_rank
from pipeline.errors import ConfigError

PARALLEL = ("ddp", "fsdp")
AGREE_STEPS = 16
"""Optimiser steps from one question whether to stop or to save to the next: each costs a message."""


@dataclass(frozen=True)
class Ranks:
    """This process among ``world`` that train one model; ``rank`` 0 writes what there is to write.

    ``sharded``: each rank holds a share of the weights (FSDP2), and every forward pass is one of all ranks.
    """

    rank: int = 0
    world: int = 1
    sharded: bool = False

    @classmethod
    @contextlib.contextmanager
    def of_this_process(cls, device: torch.device, parallel: str = "ddp") -> Iterator[Ranks]:
        """What torchrun says (RANK, WORLD_SIZE), with the process group open: NCCL on CUDA, else Gloo."""
        _, world = torchrun_rank()
        if world == 1:
            yield cls()
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        opened = not dist.is_initialized()
        if opened:
            try:
                dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            except (ValueError, RuntimeError) as error:
                raise ConfigError(f"WORLD_SIZE is {world}, but the ranks do not find each other: {error}") from error
        try:
            yield cls(dist.get_rank(), dist.get_world_size(), parallel == "fsdp")
        finally:
            if opened:
                dist.destroy_process_group()

    def shard(self, model: nn.Module) -> None:
        """Give each rank its share of ``model``, in place, before an optimiser is made: by blocks, then the rest."""
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)
        mesh = init_device_mesh(next(model.parameters()).device.type, (self.world,))
        for stack in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
            for block in stack:
                fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def gather(self, model: nn.Module) -> None:
        """Whole weights in the place of shares, to be kept; not for another forward pass."""
        if not self.sharded:
            return
        for module in model.modules():
            if hasattr(module, "reshard"):
                # A state dict would put shares back in the place of weights that are whole for the last forward pass.
                module.reshard()  # type: ignore[operator]
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(whole(parameter).detach(), parameter.requires_grad))

    def spread(self, model: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """``forward`` with its gradients averaged over the ranks, and the weights of rank 0 to begin with."""
        if self.world == 1 or self.sharded:
            return forward
        module = forward if isinstance(forward, nn.Module) else model
        return DistributedDataParallel(module)

    def apart(self, forward: Callable[..., Any], last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients stay here, until the last batch of a step that this rank has."""
        if isinstance(forward, DistributedDataParallel) and not last:
            return forward.no_sync()
        if self.sharded:
            forward.set_requires_gradient_sync(last)  # type: ignore[attr-defined]
        return contextlib.nullcontext()

    def any(self, *said: bool) -> tuple[bool, ...]:
        """For each of ``said``, whether any rank says so."""
        if self.world == 1:
            return said
        told: list[Any] = [None] * self.world
        dist.all_gather_object(told, said)
        return tuple(any(each) for each in zip(*told, strict=True))

    def rows(self, rows: Tensor) -> Tensor:
        """The rows (n, ...) of all ranks, on the host, in the order of the ranks."""
        if self.world == 1:
            return rows
        told: list[Any] = [None] * self.world
        dist.all_gather_object(told, rows.cpu())
        return torch.cat([found for found in told if len(found)] or told[:1])  # none may be of another shape

    def told(self, value: Any) -> Any:
        """What rank 0 says."""
        if self.world == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def same_buffers(self, model: nn.Module) -> None:
        """Running statistics as rank 0 has them, before anything is measured with them."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


ALONE = Ranks()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each rank holds a share; any other as it is. Every rank has to ask."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def shared_as(tensor: Tensor, other: Tensor) -> Tensor:
    """``tensor``, of which every rank holds all, shared among them as ``other`` is."""
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)  # type: ignore[attr-defined]
