"""Every shared small model, pruned: what stays the same, what falls, and its way through JSON and tensors."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from pipeline.compression import pruning
from pipeline.models import logits_of
from pipeline.models.macs import count_macs
from pipeline.models.structure import structure_of, with_structure
from pipeline.runs import parameter_count
from tests import architectures

pytest.importorskip("torch_pruning")
CASES = [
    (name, scope, heads)
    for name in architectures.CONVOLUTIONAL
    for scope in ("local", "global")
    for heads in ("whole",)
]
CASES += [(name, "local", heads) for name in architectures.TRANSFORMERS for heads in ("whole", "width", "none")]
CASES += [("vit", "global", "whole"), ("hf_vit", "global", "width"), ("native", "local", "whole")]


def made(name: str) -> architectures.Made:
    if name.startswith("hf"):
        pytest.importorskip("transformers")
    return getattr(architectures, name)()


def logits(model: nn.Module, example: Tensor) -> Tensor:
    with torch.no_grad():
        return logits_of(model(example))


@pytest.mark.parametrize(("name", "scope", "heads"), CASES)
def test_pruned_by_a_third_and_by_half_it_is_smaller_runs_and_comes_back_bit_for_bit(
    name: str, scope: pruning.Scope, heads: pruning.Heads
) -> None:
    model, example, classes = made(name)
    before = copy.deepcopy(model.state_dict())
    macs, parameters = count_macs(model, example), parameter_count(model)
    for ratio in (0.3, 0.5):
        pruned = pruning.prune(model, example, classes=classes, ratio=ratio, scope=scope, heads=heads)
        found = logits(pruned, example)
        assert found.shape == (2, classes) and torch.isfinite(found).all()
        assert count_macs(pruned, example) < macs and parameter_count(pruned) < parameters
        macs, parameters = count_macs(pruned, example), parameter_count(pruned)
        structure = json.loads(json.dumps(structure_of(model, pruned)))
        again = with_structure(model, structure, pruned.state_dict(), example)
        assert torch.equal(logits(again, example), found)
        assert structure_of(pruned, again) == {}
        assert not again.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "a copy is pruned"
