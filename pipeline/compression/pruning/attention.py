"""Attention: which layers make queries, keys and values, and the counts a module keeps of its heads.

A head can leave, or every head can get narrower; either way the module has to know, for it cuts its projections into
heads by numbers of its own. Modules are recognised by the names that torch, timm and transformers give their parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models import logits_of

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
WIDTHS = ("head_dim", "attention_head_size", "head_size", "dim_head")
INNER = ("all_head_size", "inner_dim")
FUSED = ("qkv", "to_qkv", "query_key_value", "Wqkv", "in_proj")
SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("to_q", "to_k", "to_v"),
    ("q_lin", "k_lin", "v_lin"),
    ("wq", "wk", "wv"),
    ("q", "k", "v"),
)
ADVICE = 'Leave its heads whole (heads="none"), or leave pruning out for this model'


@dataclass(frozen=True, eq=False)
class Attending:
    """One attention module: its projections (one fused, or three) and its heads before pruning."""

    name: str
    module: nn.Module
    projections: tuple[nn.Linear, ...]
    heads: int
    width: int

    def rows(self, channels: Iterable[int]) -> list[int]:
        """The rows of each projection that make ``channels`` of all heads together; three in a fused one."""
        inner = self.heads * self.width
        offsets = (0, inner, 2 * inner) if len(self.projections) == 1 else (0,)
        return [offset + channel for offset in offsets for channel in channels]

    def update(self, whole: bool) -> None:
        """Make the module's own counts agree with its projections, after ``whole`` heads left, or all got narrower.

        Attributes that hold the heads, the width of one, or their product are set; a scale that is kept as a number
        stays, for the weights were trained under it.
        """
        inner = inner_width(self.projections)
        if inner == self.heads * self.width:
            return
        heads, width = (inner // self.width, self.width) if whole else (self.heads, inner // self.heads)
        for names, old, new in (
            (HEADS, self.heads, heads),
            (WIDTHS, self.width, width),
            (INNER, self.heads * self.width, inner),
        ):
            for attribute in names:
                if getattr(self.module, attribute, None) == old:
                    setattr(self.module, attribute, new)


def inner_width(projections: tuple[nn.Linear, ...]) -> int:
    """The channels of all heads together: a fused projection makes three times as many."""
    return projections[0].out_features // (3 if len(projections) == 1 else 1)


def projecting(model: nn.Module) -> list[tuple[str, nn.Module, tuple[str, ...]]]:
    """Modules that look like attention: their name, themselves, and which of their parts make queries, keys, values.

    ``nn.MultiheadAttention`` is not among them: it keeps its projections as bare parameters.
    """
    known: list[tuple[str, ...]] = [*((fused,) for fused in FUSED), *SEPARATE]
    found = []
    for name, module in model.named_modules():
        parts = {child for child, part in module.named_children() if isinstance(part, nn.Linear)}
        chosen = [names for names in known if all(child in parts for child in names)]
        if chosen and not isinstance(module, nn.MultiheadAttention):
            found.append((name, module, chosen[0]))
    return found


def attending(model: nn.Module) -> list[Attending]:
    """Every attention module, with its heads.

    Raises ModelError for projections whose heads cannot be told: pruning would run, and mix channels of different
    heads.
    """
    found = []
    for name, module, parts in projecting(model):
        projections = tuple(module.get_submodule(part) for part in parts)
        heads = [n for a in HEADS if isinstance(n := getattr(module, a, None), int)]
        what = f"{name or 'the model'} ({type(module).__name__}), which looks like attention by its {parts[0]}"
        if not heads:
            raise ModelError(
                f"pruning needs the heads of {what}; it has none of the attributes {', '.join(HEADS)}. {ADVICE}"
            )
        linear = tuple(part for part in projections if isinstance(part, nn.Linear))
        if len({part.out_features for part in linear}) > 1:
            raise ModelError(f"pruning cannot follow {what}: queries and keys of different heads (grouped). {ADVICE}")
        inner = inner_width(linear)
        if heads[0] < 1 or inner % heads[0] or linear[0].out_features % inner:
            raise ModelError(f"pruning cannot follow {what}: {inner} channels do not make {heads[0]} heads. {ADVICE}")
        found.append(Attending(name, module, linear, heads[0], inner // heads[0]))
    return found


def check_heads(model: nn.Module, example: Tensor, readers: Mapping[Attending, nn.Linear]) -> None:
    """Raise ModelError unless the channels of each head are where they are taken to be: head by head, in order.

    The first head of a module is not read any more, and its queries, keys and values are changed: the logits must stay
    as they are, unless those channels belong to other heads too. All modules at once, and one by one to name the one
    that is not so. The model is as it was afterwards.
    """
    if not readers or _first_heads_are_apart(model, example[:1], readers):
        return
    for attention, reader in readers.items():
        if not _first_heads_are_apart(model, example[:1], {attention: reader}):
            raise ModelError(
                f"pruning takes the channels of {attention.name} ({type(attention.module).__name__}) to come head by "
                f"head, {attention.heads} of {attention.width}, queries before keys before values, and they do not. "
                f"{ADVICE}"
            )


@torch.no_grad()
def _first_heads_are_apart(model: nn.Module, example: Tensor, readers: Mapping[Attending, nn.Linear]) -> bool:
    makers = [(a, p) for a in readers for part in a.projections for p in part.parameters(recurse=False)]
    touched = [*(reader.weight for reader in readers.values()), *(parameter for _, parameter in makers)]
    before = [parameter.detach().clone() for parameter in touched]
    try:
        for attention, reader in readers.items():
            reader.weight[:, : attention.width] = 0
        expected = logits_of(model(example)).clone()
        for attention, parameter in makers:
            rows = attention.rows(range(attention.width))
            parameter[rows] = 1 - 2 * parameter[rows]
        found = logits_of(model(example))
    finally:
        for weight, old in zip(touched, before, strict=True):
            weight.copy_(old)
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
