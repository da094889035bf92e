"""Channels and heads that give nothing are the ones that leave, and the logits stay what they were.

The dead ones are chosen by hand, layer by layer, without the code under test: were one index of one coupled layer off,
something alive would leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from pipeline.compression import pruning
from pipeline.models import logits_of
from pipeline.runs import parameter_count
from tests import architectures

pytest.importorskip("torch_pruning")
Kill = Callable[[nn.Module], dict[str, float]]
"""Kills half of some channels, and gives the ratios that take them."""


def dead(count: int) -> list[int]:
    return [i for i in range(count) if (i * 7 + 3) % 4 < 2]


@torch.no_grad()
def writes_nothing(layer: nn.Module, channels: Sequence[int], norm: nn.Module | None = None) -> None:
    for each in (layer, norm):
        if each is not None:
            each.weight[channels] = 0
            if each.bias is not None:
                each.bias[channels] = 0


@torch.no_grad()
def reads_nothing(layer: nn.Module, channels: Sequence[int]) -> None:
    layer.weight[:, channels] = 0


def residual(model: nn.Module) -> dict[str, float]:
    """The stream of every stage, and what is inside each block."""
    get = model.get_submodule
    width, ratios = 8, {}
    writes_nothing(get("stem.0"), dead(width), get("stem.1"))
    for stage in range(3):
        for block in (2 * stage, 2 * stage + 1):
            name = f"stages.{block}"
            wide = dead(width * 2**stage)
            if f"{name}.downsample.0" in dict(model.named_modules()):
                reads_nothing(get(f"{name}.downsample.0"), dead(width * 2 ** (stage - 1)))
                writes_nothing(get(f"{name}.downsample.0"), wide, get(f"{name}.downsample.1"))
                reads_nothing(get(f"{name}.body.0.0"), dead(width * 2 ** (stage - 1)))
            else:
                reads_nothing(get(f"{name}.body.0.0"), wide)
            writes_nothing(get(f"{name}.body.0.0"), wide, get(f"{name}.body.0.1"))
            reads_nothing(get(f"{name}.body.2.0"), wide)
            writes_nothing(get(f"{name}.body.2.0"), wide, get(f"{name}.body.2.1"))
            ratios |= {f"{name}.body.0.0": 0.5, f"{name}.body.2.0": 0.5}
    reads_nothing(model.head, dead(32))
    return ratios


def depthwise(model: nn.Module) -> dict[str, float]:
    """The wide channels inside the inverted residuals: written, filtered one by one, read."""
    ratios = {}
    for block in range(3, 8):
        get = model.get_submodule
        wide = dead(get(f"{block}.body.0").out_channels)
        writes_nothing(get(f"{block}.body.0"), wide, get(f"{block}.body.1"))
        writes_nothing(get(f"{block}.body.3"), wide, get(f"{block}.body.4"))
        reads_nothing(get(f"{block}.body.6"), wide)
        ratios[f"{block}.body.0"] = 0.5
    return ratios


def transformer(layer: str, hidden: tuple[str, str], projections: Sequence[str], out: str) -> Kill:
    """Two of four heads, and half of what is between the two layers of the perceptron."""

    def kill(model: nn.Module) -> dict[str, float]:
        ratios = {}
        for number in (0, 1):
            get = lambda name, number=number: model.get_submodule(layer.format(number) + name)  # noqa: E731
            writes_nothing(get(hidden[0]), dead(64))
            reads_nothing(get(hidden[1]), dead(64))
            heads = [8 * head + i for head in (0, 2) for i in range(8)]
            for projection in projections:
                fused = get(projection).out_features == 96
                for offset in (0, 32, 64) if fused else (0,):
                    writes_nothing(get(projection), [offset + channel for channel in heads])
            reads_nothing(get(out), heads)
            ratios |= {layer.format(number) + hidden[0]: 0.5, layer.format(number) + projections[0]: 0.5}
        return ratios

    return kill


ours = transformer("layers.{}.", ("mlp.0", "mlp.2"), ["attention.qkv"], "attention.proj")
of_hf = transformer(
    "vit.layers.{}.", ("mlp.fc1", "mlp.fc2"), [f"attention.{x}_proj" for x in "qkv"], "attention.o_proj"
)
of_bert = transformer(
    "bert.encoder.layer.{}.", ("intermediate.dense", "output.dense"),
    [f"attention.self.{x}" for x in ("query", "key", "value")], "attention.output.dense",
)  # fmt: skip


@pytest.mark.parametrize("importance", ["l1", "l2"])
@pytest.mark.parametrize(
    ("name", "kill"),
    [("resnet", residual), ("mobilenet", depthwise), ("vit", ours), ("vit_sdpa", ours), ("hf_vit", of_hf),
     ("hf_bert", of_bert)],
)  # fmt: skip
def test_what_gives_nothing_leaves_and_the_logits_stay(name: str, kill: Kill, importance: pruning.Importance) -> None:
    if name.startswith("hf"):
        pytest.importorskip("transformers")
    model, example, classes = getattr(architectures, name)()
    ratios = kill(model)
    with torch.no_grad():
        expected = logits_of(model(example))
    assert expected.std() > 1e-3
    pruned = pruning.prune(model, example, classes=classes, ratio=0.0, ratios=ratios, importance=importance)
    with torch.no_grad():
        found = logits_of(pruned(example))
    assert torch.allclose(found, expected, atol=1e-5)
    assert parameter_count(pruned) < 0.8 * parameter_count(model)


def test_a_wrong_channel_would_show() -> None:
    """The check of the checks: other ratios take what is alive."""
    model, example, classes = architectures.vit()
    ratios = ours(model)
    expected: Tensor = model(example).detach()
    more = {name: 0.75 for name in ratios}
    found = pruning.prune(model, example, classes=classes, ratio=0.0, ratios=more)(example).detach()
    assert not torch.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("heads", ["whole", "width"])
@pytest.mark.parametrize("name", ["vit", "hf_vit", "hf_bert"])
def test_the_counts_of_heads_are_those_of_the_weights(name: str, heads: pruning.Heads) -> None:
    if name.startswith("hf"):
        pytest.importorskip("transformers")
    model, example, classes = getattr(architectures, name)()
    pruned = pruning.prune(model, example, classes=classes, ratio=0.5, heads=heads)
    counted = 0
    for module in pruned.modules():
        count = getattr(module, "num_heads", None) or getattr(module, "num_attention_heads", None)
        width = getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
        if isinstance(count, int):
            assert (count, width) == ((2, 8) if heads == "whole" else (4, 4))
            assert getattr(module, "all_head_size", 16) == 16
            counted += 1
    assert counted == 2
