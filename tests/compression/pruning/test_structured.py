"""Structured pruning: smaller, still a classifier of the same classes, and never silently unchanged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline.compression import pruning
from pipeline.errors import ModelError
from pipeline.models import build_model
from pipeline.runs import parameter_count

pytest.importorskip("torch_pruning")
SHAPE = (1, 8, 8)


class Residual(nn.Module):
    """Coupled channels: what leaves one convolution must leave the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head((x + self.second(x)).mean(dim=(2, 3)))


class HardCoded(nn.Module):
    """A size written out in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Linear(8 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(-1, 8 * 64))


@pytest.fixture
def example() -> Tensor:
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("importance", ["l1", "l2"])
@pytest.mark.parametrize("make", [Residual, lambda: build_model("cnn-8", {}, classes=5, input_shape=SHAPE)])
def test_channels_leave_and_classes_stay(
    make: type[nn.Module], importance: pruning.Importance, example: Tensor
) -> None:
    model = make().eval()
    before = copy.deepcopy(model.state_dict())
    pruned = pruning.prune(model, example, ratio=0.5, classes=5, importance=importance)
    assert parameter_count(pruned) < 0.5 * parameter_count(model)
    assert pruned(example).shape == (2, 5)
    assert pruned(example[:1]).shape == (1, 5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "a copy is pruned"


def test_frozen_parameters_are_pruned_too(example: Tensor) -> None:
    """torch-pruning leaves them alone without a word; a teacher that was frozen for a dump is the usual case."""
    model = Residual().eval().requires_grad_(False)
    assert parameter_count(pruning.prune(model, example, ratio=0.5, classes=5)) < parameter_count(model)


def test_nothing_to_prune_is_an_error(example: Tensor) -> None:
    only_a_classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ModelError, match="removed nothing"):
        pruning.prune(only_a_classifier, example, ratio=0.5, classes=5)


def test_a_model_that_breaks_is_named(example: Tensor) -> None:
    with pytest.raises(ModelError, match=r"flatten|cannot follow"):
        pruning.prune(HardCoded().eval(), example, ratio=0.5, classes=5)


def test_the_classifier_is_the_last_layer_with_as_many_outputs(example: Tensor) -> None:
    model = Residual().eval()
    assert pruning.classifier_of(model, example, 5) is model.head
    with pytest.raises(ModelError, match="7 outputs"):
        pruning.classifier_of(model, example, 7)


def test_outputs_that_are_not_finite_are_an_error(example: Tensor) -> None:
    model = Residual().eval()
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        pruning.check_pruned(model, example, before=10**9, classes=5)


def test_recalibration_measures_the_mean_over_all_inputs_and_changes_nothing_else() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).eval()
    inputs = [torch.randn(16, 3, 4, 4) * 2 + 5 for _ in range(4)]
    before = [p.clone() for p in model.parameters()]
    assert pruning.recalibrate(model, inputs) == 1
    norm = model[0]
    assert torch.allclose(norm.running_mean, torch.cat(inputs).mean(dim=(0, 2, 3)), atol=1e-4)
    assert norm.momentum == 0.1
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_scratch_control_has_the_shape_and_other_weights(example: Tensor) -> None:
    model = pruning.prune(Residual().eval(), example, ratio=0.5, classes=5)
    fresh, again = pruning.reinitialise(model, 1), pruning.reinitialise(model, 1)
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in model.parameters()]
    assert not torch.equal(fresh.head.weight, model.head.weight)
    assert torch.equal(fresh.head.weight, again.head.weight)
