"""The shared small models run, and are the same at every call."""

from __future__ import annotations

import pytest
import torch

from pipeline.models import logits_of
from tests import architectures


@pytest.mark.parametrize("name", [*architectures.EVERY, "native"])
def test_each_maps_its_example_to_finite_logits_and_is_the_same_again(name: str) -> None:
    if name.startswith("hf"):
        pytest.importorskip("transformers")
    model, example, classes = getattr(architectures, name)()
    again, *_ = getattr(architectures, name)()
    with torch.no_grad():
        logits = logits_of(model(example))
        assert torch.equal(logits, logits_of(again(example)))
    assert logits.shape == (2, classes)
    assert torch.isfinite(logits).all() and logits.std() > 0
