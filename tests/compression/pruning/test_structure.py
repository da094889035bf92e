"""Structures that lie: what JSON of strangers says is checked, and can set nothing but plain, smaller numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.compression import pruning
from pipeline.errors import ModelError
from pipeline.models.structure import structure_of, with_structure
from tests import architectures

pytest.importorskip("torch_pruning")


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, torch.Tensor, nn.Module]:
    model, example, classes = architectures.vit()
    return model, example, pruning.prune(model, example, classes=classes, ratio=0.5)


def test_a_structure_names_what_changed_and_nothing_else(pair: tuple[nn.Module, torch.Tensor, nn.Module]) -> None:
    model, _, pruned = pair
    structure = structure_of(model, pruned)
    assert structure["layers.0.attention"] == {"num_heads": 2}
    assert structure["layers.0.attention.qkv"] == {"in_features": 16, "out_features": 48}
    assert structure["norm"] == {"normalized_shape": [16]}
    assert structure["head"] == {"in_features": 16}
    assert structure["patches"] == {"out_channels": 16}


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("nowhere", "in_features", 3), ("head", "weight", 3), ("head", "forward", 3), ("head", "__class__", 3),
        ("head", "_parameters", 3), ("head", "nothing", 3), ("head", "training", 0), ("head", "in_features", "16"),
        ("head", "in_features", 16.0), ("head", "in_features", True), ("head", "in_features", -1),
        ("head", "in_features", None), ("head", "in_features", [16]), ("head", "in_features", 33),
        ("norm", "normalized_shape", 16), ("norm", "normalized_shape", [16, 1]), ("norm", "normalized_shape", [2**40]),
        ("norm", "normalized_shape", ["16"]), ("patches", "padding", [2**30, 2**30]), ("patches", "padding_mode", "x"),
        ("layers.0.attention", "scale", 1.0), ("layers.0.attention", "fused_kernel", True),
    ],
)  # fmt: skip
def test_what_pruning_never_writes_is_refused(
    pair: tuple[nn.Module, torch.Tensor, nn.Module], name: str, attribute: str, value: Any
) -> None:
    model, example, pruned = pair
    structure: dict[str, Any] = copy.deepcopy(structure_of(model, pruned))
    structure.setdefault(name, {})[attribute] = value
    with pytest.raises(ModelError, match=r"no plain attribute|should be like|attributes of modules"):
        with_structure(model, structure, pruned.state_dict(), example)


def test_a_structure_that_does_not_fit_its_state_does_not_run(
    pair: tuple[nn.Module, torch.Tensor, nn.Module],
) -> None:
    model, example, pruned = pair
    structure, state = structure_of(model, pruned), pruned.state_dict()
    with pytest.raises(ModelError, match="do not fit together"):
        with_structure(model, structure | {"norm": {"normalized_shape": [15]}}, state, example)
    with pytest.raises(ModelError, match="do not fit together"):
        with_structure(model, {k: v for k, v in structure.items() if k != "norm"}, state, example)
    for wrong in ([], {"head": 3}, {"head": [["in_features", 3]]}):
        with pytest.raises(ModelError, match="structure should"):
            with_structure(model, wrong, state, example)


def test_tensors_are_checked(pair: tuple[nn.Module, torch.Tensor, nn.Module]) -> None:
    model, example, pruned = pair
    structure, state = structure_of(model, pruned), pruned.state_dict()
    bias = state["head.bias"]
    cases = {
        "1 missing": {name: value for name, value in state.items() if name != "head.bias"},
        "1 unexpected": state | {"head.more": bias},
        "no larger than": state | {"head.bias": torch.zeros(8)},
        "found torch.float64": state | {"head.bias": bias.double()},
        "dense": state | {"head.bias": torch.zeros(7, device="meta")},
        "not finite": state | {"head.bias": bias * float("nan")},
        "logits; found": state | {"head.bias": bias[:6], "head.weight": state["head.weight"][:6]},
    }
    for message, wrong in cases.items():
        with pytest.raises(ModelError, match=message):
            with_structure(model, structure, wrong, example)


def test_another_model_has_no_structure(pair: tuple[nn.Module, torch.Tensor, nn.Module]) -> None:
    with pytest.raises(ModelError, match="should have the modules"):
        structure_of(pair[0], nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(ModelError, match="should be a ReLU"):
        structure_of(nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU()))


def test_tied_weights_stay_tied_and_frozen_ones_frozen() -> None:
    class Tied(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3))
            self[2].weight = self[0].weight

    model = Tied().requires_grad_(False).eval()
    state = {name: value.clone() for name, value in Tied().state_dict().items()}
    state["2.weight"] = state["0.weight"].clone()
    again = with_structure(model, {}, state, torch.randn(2, 6))
    assert again[2].weight is again[0].weight
    assert not any(p.requires_grad for p in again.parameters())
    state["2.weight"] = state["0.weight"] + 1
    with pytest.raises(ModelError, match="one tensor in the model"):
        with_structure(model, {}, state)
