"""Groups of channels that can only leave together, as torch-pruning finds them; and their leaving.

A group is what a residual sum, a depthwise convolution, a norm or an attention couples (Fang et al. 2023, DepGraph).
Its units are what leaves at a time: a channel; one channel of each block, where convolutions or norms work in groups;
a head, or one channel of each head.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipeline.compression.pruning.attention import ADVICE, Attending, attending, check_heads, projecting
from pipeline.compression.pruning.checks import classifier_of
from pipeline.compression.pruning.masks import masks_of
from pipeline.errors import ModelError, first_line
from pipeline.models import logits_of
from pipeline.references import optional

Heads: TypeAlias = Literal["whole", "width", "none"]
HEADS: tuple[Heads, ...] = ("whole", "width", "none")
Side: TypeAlias = Literal["out", "in", "norm"]
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
Conv: TypeAlias = nn.modules.conv._ConvNd


@dataclass(frozen=True)
class Coupled:
    """A layer's part in a group: its channel ``channels[i]`` goes where channel ``roots[i]`` of the group goes."""

    name: str
    layer: nn.Module
    side: Side
    channels: tuple[int, ...]
    roots: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Coupled channels. ``units`` (U, n) are the channels of the group that leave together, as numbers of its root.

    ``name`` is the first layer that makes them, ``makers`` all that do; ``kind`` is channels, heads or head width.
    """

    name: str
    kind: str
    makers: tuple[str, ...]
    units: Tensor
    parts: tuple[Coupled, ...]
    root: nn.Module
    trigger: Any
    bypass: Attending | None = None
    """A fused projection that torch-pruning does not follow: its rows and the reader's columns leave by hand."""


class Traced:
    """A copy of a model whose channels can leave; ``groups`` in the order of its layers.

    All parameters of the copy require gradients, since torch-pruning leaves frozen ones out without a word. Left whole:
    the classifier and what is coupled to it, ``nn.MultiheadAttention``, and heads when ``heads`` is "none". Raises
    ModelError where torch-pruning cannot follow the model, MissingDependencyError without the extra ``compress``.
    """

    def __init__(self, model: nn.Module, example: Tensor, classes: int, heads: Heads) -> None:
        if heads not in HEADS:
            raise ModelError(f"heads should be one of {', '.join(HEADS)}; found {heads!r}")
        if masks_of(model) or any(parametrize.is_parametrized(module) for module in model.modules()):
            raise ModelError(
                "channels leave plain weights; this model has masks or other parametrisations: remove them"
            )
        with _quiet():
            self.library: Any = optional("torch_pruning", "compress", "pruning")
        self.model, self.example, self.heads = copy.deepcopy(model).cpu().eval().requires_grad_(True), example, heads
        found = attending(self.model) if heads != "none" else []
        self.attention = {part: attention for attention in found for part in attention.projections}
        self.readers: dict[Attending, nn.Linear] = {}
        self.names = {module: name for name, module in self.model.named_modules()}
        self.places = {name: place for place, name in enumerate(self.names.values())}
        ignored = [classifier_of(self.model, example, classes)]
        for module in self.model.modules():
            if isinstance(module, nn.MultiheadAttention):
                ignored += list(module.modules())
        if heads == "none":
            ignored += [module.get_submodule(part) for _, module, parts in projecting(self.model) for part in parts]
        with self._following():
            self.graph = self.library.DependencyGraph().build_dependency(
                self.model, example, forward_fn=lambda m, x: logits_of(m(x)), verbose=False
            )
            roots = (nn.modules.conv._ConvNd, nn.Linear)
            raw = list(self.graph.get_all_groups(ignored_layers=ignored, root_module_types=roots))
            groups = [group for each in raw if (group := self._group(each)) is not None]
            check_heads(self.model, example, self.readers)
            self.groups = sorted(groups, key=lambda group: self.places[group.name])

    @contextmanager
    def _following(self) -> Iterator[None]:
        """What goes wrong inside torch-pruning is said as what it means here."""
        try:
            with _quiet(), torch.enable_grad():
                yield
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"torch-pruning cannot follow {type(self.model).__name__}: {first_line(error)}. Sizes written out in "
                f"its forward pass are a usual cause (use flatten(1)); or leave pruning out for this model"
            ) from error

    def _group(self, raw: Any) -> Group | None:
        """What torch-pruning found, with its units; None for what no layer makes."""
        attention = self._attention(raw)
        if attention is not None:
            return self._heads(attention, raw)
        parts = self._parts(raw)
        channels = len(raw[0].idxs)
        makers = tuple(sorted({part.name for part in parts if part.side == "out"}, key=self.places.__getitem__))
        if not makers:
            return None
        blocks = math.lcm(*(_blocks(part) for part in parts))
        if channels % blocks:
            raise ModelError(f"pruning cannot follow {makers[0]}: {channels} channels in {blocks} blocks")
        units = torch.arange(channels).view(blocks, -1).T.contiguous()
        return Group(makers[0], "channels", makers, units, parts, raw[0].dep.target.module, raw[0].dep.handler)

    def _heads(self, attention: Attending, raw: Any) -> Group:
        """A group of heads, seen from the layer that reads them: there channels are numbered as the values are."""
        readers = [(dep.target.module, dep.handler) for dep, _ in _items(raw) if self._reads(dep)]
        inner = attention.heads * attention.width
        if not readers or readers[0][0].in_features != inner:
            raise ModelError(
                f"pruning cannot follow the heads of {attention.name}: no linear layer reads them. {ADVICE}"
            )
        reader, handler = readers[0]
        self.readers[attention] = reader
        parts = self._parts(self.graph.get_pruning_group(reader, handler, list(range(inner))))
        bypass = None
        fused = attention.projections[0] if len(attention.projections) == 1 else None
        if fused is not None and not any(p.layer is fused and len(p.channels) == 3 * inner for p in parts):
            # torch-pruning follows unbind and slices, and takes the parts of chunk, split and indexing for the whole.
            roots = tuple(range(inner))
            parts = (
                Coupled(self.names[fused], fused, "out", tuple(attention.rows(roots)), 3 * roots),
                Coupled(self.names[reader], reader, "in", roots, roots),
            )
            bypass = attention
        makers = tuple(self.names[part] for part in attention.projections)
        units = torch.arange(inner).view(attention.heads, attention.width)
        kind = "heads" if self.heads == "whole" else "head width"
        units = units if self.heads == "whole" else units.T.contiguous()
        return Group(makers[0], kind, makers, units, parts, reader, handler, bypass)

    def _attention(self, raw: Any) -> Attending | None:
        made = [dep.target.module for dep, _ in _items(raw) if self.graph.is_out_channel_pruning_fn(dep.handler)]
        found = [self.attention[layer] for layer in made if layer in self.attention]
        if len({id(each) for each in found}) > 1:
            raise ModelError(f"pruning cannot follow {found[0].name} and another: they share their heads. {ADVICE}")
        return found[0] if found else None

    def _reads(self, dep: Any) -> bool:
        return isinstance(dep.target.module, nn.Linear) and self.graph.is_in_channel_pruning_fn(dep.handler)

    def _parts(self, raw: Any) -> tuple[Coupled, ...]:
        return tuple(part for dep, item in _items(raw) if (part := self._part(dep, item)) is not None)

    def _part(self, dep: Any, item: Any) -> Coupled | None:
        layer = dep.target.module
        roots = item.root_idxs
        if not isinstance(layer, (Conv, nn.Linear, *NORMS)) or any(root is None for root in roots):
            return None
        side: Side = "out"
        if isinstance(layer, NORMS):
            side = "norm"
        elif not self.graph.is_out_channel_pruning_fn(dep.handler):
            side = "in"
        return Coupled(self.names[layer], layer, side, tuple(item.idxs), tuple(roots))

    def remove(self, chosen: Mapping[str, Sequence[int]]) -> nn.Module:
        """The model without the units ``chosen`` of the groups named; this object is used up."""
        with self._following():
            for group in self.groups:
                units = list(chosen.get(group.name, ()))
                if units:
                    leaving = sorted(group.units[units].flatten().tolist())
                    if group.bypass is not None:
                        self.library.prune_linear_out_channels(*group.bypass.projections, group.bypass.rows(leaving))
                        self.library.prune_linear_in_channels(group.root, leaving)
                        continue
                    self.graph.get_pruning_group(group.root, group.trigger, leaving).prune()
            for attention in set(self.attention.values()):
                attention.update(whole=self.heads == "whole")
        return self.model


def _items(raw: Any) -> list[tuple[Any, Any]]:
    return [(item.dep, item) for item in (raw[i] for i in range(len(raw)))]


def _blocks(part: Coupled) -> int:
    """Into how many equal blocks a layer's part has to stay divided."""
    layer = part.layer
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    if isinstance(layer, Conv) and not (layer.groups == layer.out_channels == layer.in_channels):
        return layer.groups
    return 1


@contextmanager
def _quiet() -> Iterator[None]:
    """torch-pruning warns of what is checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
