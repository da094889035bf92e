"""Importances against sums written out here in float64, on channels coupled by a residual sum and by blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.compression import pruning
from pipeline.compression.pruning.importance import per_channel
from pipeline.errors import ModelError

pytest.importorskip("torch_pruning")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(F.relu(x + self.norm(self.second(x))).mean(dim=(2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Residual().eval()
    nn.init.normal_(model.norm.weight)
    return model


EXAMPLE = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))


def losses(model: nn.Module) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        x = torch.randn(4, 1, 5, 5, generator=generator)
        yield F.cross_entropy(model(x), torch.tensor([0, 1, 2, 0]))


def found(model: nn.Module, kind: pruning.Importance, **options: object) -> Tensor:
    (group,) = pruning.groups_of(model, EXAMPLE, classes=3)
    assert set(group.makers) == {"first", "second"}
    # The groups are of a copy, so that the model here has to be the one that they are of.
    copied = pruning.graph.Traced(model, EXAMPLE, 3, "whole")
    return pruning.importances(copied.model, copied.groups, kind, **options)["first"]


def coupled(model: nn.Module) -> list[Tensor]:
    """All weights of channel c, in row c: first and second write it, second and head read it, the norm scales it."""
    w = {name: p.double() for name, p in model.named_parameters()}
    parts = [w["first.weight"].flatten(1), w["second.weight"].flatten(1), w["norm.weight"][:, None]]
    return [*parts, w["second.weight"].transpose(0, 1).flatten(1), w["head.weight"].T]


def test_l1_sums_the_filters_that_make_a_channel(model: nn.Module) -> None:
    expected = sum(part.abs().sum(dim=1) for part in coupled(model)[:2])
    assert torch.allclose(found(model, "l1").double(), expected)


def test_l2_sums_the_squares_of_all_that_is_coupled(model: nn.Module) -> None:
    expected = torch.cat(coupled(model), dim=1).pow(2).sum(dim=1)
    assert torch.allclose(found(model, "l2").double(), expected)


def test_bn_scale_is_the_scale(model: nn.Module) -> None:
    assert torch.allclose(found(model, "bn-scale"), model.norm.weight.detach().abs())


def test_taylor_is_the_mean_square_of_the_change_to_first_order(model: nn.Module) -> None:
    expected = torch.zeros(6, dtype=torch.float64)
    for loss in losses(model):
        names, parameters = zip(*model.named_parameters(), strict=True)
        grads = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
        products = {name: (p * grads[name]).detach().double() for name, p in model.named_parameters()}
        parts = [products["first.weight"].flatten(1), products["second.weight"].flatten(1)]
        parts += [products["norm.weight"][:, None], products["second.weight"].transpose(0, 1).flatten(1)]
        parts.append(products["head.weight"].T)
        expected += torch.cat(parts, dim=1).sum(dim=1) ** 2 / 3
    assert torch.allclose(found(model, "taylor", losses=losses).double(), expected, rtol=1e-4)
    assert all(p.grad is None for p in model.parameters())


def test_random_is_its_seed_s(model: nn.Module) -> None:
    first = found(model, "random", seed=1)
    assert torch.equal(first, found(model, "random", seed=1))
    assert not torch.equal(first, found(model, "random", seed=2))


def test_what_cannot_be_measured_is_named(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="taylor needs losses"):
        found(model, "taylor")
    with pytest.raises(ModelError, match="found none"):
        found(model, "taylor", losses=lambda model: iter(()))
    with pytest.raises(ModelError, match="not finite"):
        found(model, "taylor", losses=lambda model: [next(losses(model)) * float("inf")])
    with pytest.raises(ModelError, match="bn-scale, random; found 'hessian'"):
        found(model, "hessian")  # type: ignore[arg-type]
    without = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(ModelError, match="bn-scale ranks channels by the scales of batch norms"):
        pruning.prune(without, EXAMPLE, classes=3, ratio=0.5, importance="bn-scale")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 9, (3, 2), groups=3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv1d(4, 6, 3), nn.Linear(4, 5),
        nn.ConvTranspose2d(6, 9, 3, groups=3), nn.ConvTranspose2d(4, 6, 3),
    ],
)  # fmt: skip
def test_sums_belong_to_the_channels_that_a_gradient_says(layer: nn.Module) -> None:
    """With positive weights and inputs of one, a channel's sum is what its output would be, or its input's gradient."""
    with torch.no_grad():
        layer.weight.abs_()
        layer.bias.zero_()
    is_linear = isinstance(layer, nn.Linear)
    channels = layer.in_features if is_linear else layer.in_channels
    sides = [] if is_linear else [7] * (layer.weight.ndim - 2)
    x = torch.ones(1, channels, *sides, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    middle = (0, slice(None), *(len_ // 2 for len_ in sides))
    outputs = (0, slice(None), *(size // 2 for size in y.shape[2:]))
    # Away from the borders every tap of a kernel of stride 1 is used once, whichever way it runs.
    assert torch.allclose(per_channel(layer, layer.weight, "out"), y[outputs], rtol=1e-4)
    assert torch.allclose(per_channel(layer, layer.weight, "in"), x.grad[middle], rtol=1e-4)
