"""A student with masks learns by the training loop, is stopped, goes on, and has zeros where it had them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.compression import pruning
from pipeline.training import TrainConfig, fit, prepare
from tests.training.stopping import stopped


def student() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(7)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()
    masks = pruning.magnitude_masks(model, torch.zeros(2, 1, 6, 6), classes=3, share=0.7)
    pruning.apply_masks(model, masks)
    return model, masks


@pytest.mark.parametrize(
    "options", [{"keep": "best"}, {"keep": "last"}, {"optimizer": "sgd", "lr": 0.05, "accumulate": 2}]
)
def test_zeros_stay_through_training_and_a_stop(
    config: Callable[..., TrainConfig], tmp_path: Path, options: dict[str, object]
) -> None:
    recipe = config(epochs=3, **options)
    task = prepare(recipe).task
    model, masks = student()
    fit(model, task, recipe, seed=0)
    again, _ = student()
    stopped(again, task, recipe, tmp_path / "state", 5)
    again, _ = student()
    fit(again, task, recipe, seed=0, state=tmp_path / "state")
    before, _ = student()
    for each in (model, again, before):
        pruning.remove_masks(each)
    (name, mask), *_ = masks.items()
    assert torch.equal(model.get_parameter(name) == 0, ~mask)
    assert not torch.equal(model.get_parameter(name), before.get_parameter(name))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
