"""Recalibration of nets with and without batch norms."""

from __future__ import annotations

import pytest
import torch

from pipeline.compression import pruning
from pipeline.errors import ModelError
from tests import architectures


def test_a_pruned_depthwise_net_is_measured_at_every_norm() -> None:
    pytest.importorskip("torch_pruning")
    model, example, classes = architectures.mobilenet()
    pruned = pruning.prune(model, example, classes=classes, ratio=0.5)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 3, 16, 16, generator=generator) for _ in range(4)]
    assert pruning.recalibrate(pruned, batches) == 16
    stem = torch.cat([pruned[0](batch) for batch in batches])
    assert torch.allclose(pruned[1].running_mean, stem.mean(dim=(0, 2, 3)), atol=1e-4)


@pytest.mark.parametrize("name", ["grouped", "vit"])
def test_a_net_without_batch_norms_is_left_as_it_is(name: str) -> None:
    model, example, _ = getattr(architectures, name)()
    before = model(example)
    assert pruning.recalibrate(model, []) == 0
    assert torch.equal(model(example), before)


def test_no_batches_are_an_error_and_the_old_statistics_stay() -> None:
    model, example, _ = architectures.resnet()
    before = model(example)
    with pytest.raises(ModelError, match="there were none"):
        pruning.recalibrate(model, iter(()))
    assert torch.equal(model(example), before)
