"""Queries, keys and values from one layer, taken apart in the ways that people write; channels told by marks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.compression import pruning
from pipeline.errors import ModelError
from pipeline.models import logits_of
from pipeline.models.structure import structure_of, with_structure
from pipeline.runs import parameter_count
from tests import architectures

pytest.importorskip("torch_pruning")
DEAD = [8 * head + i for head in (0, 2) for i in range(8)]


class Fused(architectures.Attention):
    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """q, k and v, each (B, heads, T, width)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def by_heads(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(p.reshape(*p.shape[:2], self.num_heads, self.head_dim).transpose(1, 2) for p in parts)


class Chunked(Fused):
    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.by_heads(self.qkv(x).chunk(3, dim=-1))


class Indexed(Fused):
    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]


class Sliced(Fused):
    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        qkv, n = self.qkv(x), self.qkv.out_features // 3
        return self.by_heads((qkv[..., :n], qkv[..., n : 2 * n], qkv[..., 2 * n :]))


class Interleaved(Fused):
    """Each head has its query, key and value side by side, as GPT-NeoX and BLOOM do."""

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        qkv = self.qkv(x).reshape(*x.shape[:2], self.num_heads, 3, self.head_dim)
        return tuple(part.transpose(1, 2) for part in qkv.unbind(3))


def with_attention(kind: type[Fused]) -> architectures.Made:
    model, example, classes = architectures.vit_sdpa()
    for layer in model.layers:
        layer.attention.__class__ = kind
    return model, example, classes


@pytest.mark.parametrize("kind", [Chunked, Indexed, Sliced])
def test_dead_heads_leave_however_the_projection_is_taken_apart(kind: type[Fused]) -> None:
    model, example, classes = with_attention(kind)
    with torch.no_grad():
        for layer in model.layers:
            rows = [offset + channel for offset in (0, 32, 64) for channel in DEAD]
            layer.attention.qkv.weight[rows] = 0
            layer.attention.qkv.bias[rows] = 0
            layer.attention.proj.weight[:, DEAD] = 0
        expected = model(example)
        ratios = {f"layers.{number}.attention.qkv": 0.5 for number in (0, 1)}
        with torch.enable_grad():
            pruned = pruning.prune(model, example, classes=classes, ratio=0.0, ratios=ratios)
        assert torch.allclose(pruned(example), expected, atol=1e-6)
    assert pruned.layers[0].attention.num_heads == 2
    narrower = pruning.prune(model, example, classes=classes, ratio=0.5, heads="width")
    assert (narrower.layers[1].attention.num_heads, narrower.layers[1].attention.head_dim) == (4, 4)
    again = with_structure(model, structure_of(model, narrower), narrower.state_dict(), example)
    assert torch.equal(again(example), narrower(example))


def test_heads_in_another_order_are_found_out_by_what_they_do() -> None:
    """The shapes would fit, and channels of several heads would leave."""
    model, example, classes = with_attention(Interleaved)
    for heads in ("whole", "width"):
        with pytest.raises(ModelError, match=r"Interleaved\) to come head by head, 4 of 8"):
            pruning.prune(model, example, classes=classes, ratio=0.5, heads=heads)
    pruned = pruning.prune(model, example, classes=classes, ratio=0.5, heads="none")
    assert pruned.layers[0].attention.qkv.out_features == 96
    assert parameter_count(pruned) < 0.5 * parameter_count(model)


def marks(parameter: Tensor, axis: int) -> list[list[float]]:
    """Along ``axis``, the distinct values of each slice."""
    return [part.unique().tolist() for part in parameter.detach().unbind(axis)]


@pytest.mark.parametrize("name", ["vit", "hf_vit", "hf_bert"])
def test_the_same_channels_leave_the_stream_everywhere(name: str) -> None:
    """Every tensor along the residual stream is marked by its channel; the marks that are left agree."""
    if name.startswith("hf"):
        pytest.importorskip("transformers")
    model, example, classes = getattr(architectures, name)()
    scale = torch.linspace(0.5, 1.5, 32)[torch.randperm(32, generator=torch.Generator().manual_seed(4))]
    marked = {}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.startswith("bert.pooler") or ("classifier" in key and name == "hf_bert"):
                continue
            inner = any(part in key for part in ("qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value"))
            if inner or key.endswith(("mlp.0.weight", "fc1.weight", "intermediate.dense.weight")):
                axis = 1 if key.endswith("weight") else None  # these read the stream
            elif parameter.ndim == 2 and ("head" in key or "classifier" in key or "embeddings" in key):
                axis = 1
            elif key.endswith(("mlp.0.bias", "fc1.bias", "intermediate.dense.bias", "head.bias", "classifier.bias")):
                axis = None
            elif parameter.ndim == 3:
                axis = 2  # class token, positions
            else:
                axis = 0  # these write the stream, and norms
            if axis is None:
                continue
            marked[key] = axis
            shape = [1] * parameter.ndim
            shape[axis] = -1
            scale = torch.linspace(0.5, 1.5, parameter.shape[axis])[
                torch.randperm(32, generator=torch.Generator().manual_seed(4))
            ]
            parameter.copy_(0.02 * scale.view(shape).expand_as(parameter))
        assert torch.isfinite(logits_of(model(example))).all()
    pruned = pruning.prune(model, example, classes=classes, ratio=0.5, heads="none")
    assert len(marked) > 20
    found = {key: marks(pruned.get_parameter(key), axis) for key, axis in marked.items()}
    first = next(iter(found.values()))
    assert len(first) == 16 and all(len(mark) == 1 for mark in first)
    assert all(each == first for each in found.values())
