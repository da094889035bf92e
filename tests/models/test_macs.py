"""Multiply-accumulates of one example, against counts by hand."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.macs import count_macs, count_nonzeros
from tests import architectures


def test_linear_and_convolution_count_as_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, padding=1, groups=4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    by_hand = 16 * 16 * 8 * 3 * 9 + 8 * 8 * 8 * 2 * 9 + 8 * 5
    for batch in (1, 2, 5):
        assert count_macs(model, torch.randn(batch, 3, 16, 16)) == by_hand
    assert model.training, "the mode is left as it was"


def test_attention_counts_whichever_kernel_computes_it() -> None:
    """The counter knows nothing of the fused attention of the CPU, and would say 0 for both of its products."""
    written_out, example, _ = architectures.vit()
    fused, *_ = architectures.vit_sdpa()
    patches, tokens, width = 16 * 32 * 48, 17, 32
    layer = tokens * width * 3 * width + 2 * tokens * tokens * width + tokens * width * width + 4 * tokens * width**2
    assert count_macs(written_out, example) == count_macs(fused, example) == patches + 2 * layer + 32 * 7


def test_torch_s_own_encoder_counts_on_its_slow_path() -> None:
    model, example, classes = architectures.native()
    tokens, width = 16, 32
    layer = tokens * width * 3 * width + 2 * tokens * tokens * width + tokens * width * width + 4 * tokens * width**2
    assert count_macs(model, example) == 16 * 32 * 48 + 2 * layer + 32 * classes
    assert torch.backends.mha.get_fastpath_enabled()


def test_quantised_modules_are_refused_and_not_counted_as_nothing() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        scripted = torch.jit.trace(model, torch.randn(2, 16))
    for hidden in (quantised, scripted):
        with pytest.raises(ModelError, match="float model"):
            count_macs(hidden, torch.randn(2, 16))
    with pytest.raises(ModelError, match="none in it"):
        count_macs(model, torch.randn(0, 16))


def test_parameters_that_are_not_zero() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    with torch.no_grad():
        first.weight.fill_(1)[0] = 0
        first.bias.zero_()
        second.bias.fill_(-1)
    assert count_nonzeros(nn.Sequential(first, second)) == 12 + 4
