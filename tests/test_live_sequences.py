"""A live teacher of token sequences: logits of scored positions, and of no others where its head can be taken off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.models import build_model
from pipeline.sampler import Order
from pipeline.sources import LiveTeacher
from tests.sequences import VOCABULARY, Made

ROWS = np.array([3, 17, 4, 40])
DATA = Made()


class Capped(nn.Module):
    """A model that does more than its head: the two cannot be told apart."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor) -> Tensor:
        return 3.0 * torch.tanh(self.model(ids_BT) / 3.0)


def teacher(capped: bool) -> nn.Module:
    torch.manual_seed(2)
    model = build_model("gpt-16", {"layers": 1}, classes=VOCABULARY, input_shape=DATA.input_shape, discrete=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return (Capped(model) if capped else model).eval()


@pytest.mark.parametrize("capped", [False, True])
def test_logits_are_made_where_they_are_scored(capped: bool) -> None:
    model = teacher(capped)
    tokens, scored = torch.stack([DATA.load(row) for row in ROWS]), torch.from_numpy(DATA.targets(ROWS) >= 0)
    with torch.no_grad():
        expected = torch.cat([model(tokens)[n][scored[n]] for n in range(len(ROWS))])
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == VOCABULARY]
    rows: list[int] = []
    heads[0].register_forward_hook(lambda _, args, __: rows.append(args[0][..., 0].numel()))
    live = LiveTeacher(model, VOCABULARY, sequences=DATA)
    labels = live.stream(Order((ROWS,), 4), 0).next(tokens, ROWS).logits
    torch.testing.assert_close(labels, expected)
    assert labels.dtype == torch.float32 and not labels.requires_grad
    everywhere = len(ROWS) * (int(torch.nonzero(scored)[:, 1].max()) + 1)
    assert rows[-1] == (everywhere if capped else int(scored.sum())) and int(scored.sum()) < everywhere


def test_weights_that_change_later_are_seen() -> None:
    model, tokens = teacher(False), torch.stack([DATA.load(row) for row in ROWS])
    live = LiveTeacher(model, VOCABULARY, sequences=DATA)
    before = live.next(tokens, ROWS).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        expected = model(tokens)[torch.from_numpy(DATA.targets(ROWS) >= 0)]
    torch.testing.assert_close(live.next(tokens, ROWS).logits, expected)
    assert not torch.allclose(before, expected)


def test_in_half_precision_too() -> None:
    model, tokens = teacher(False), torch.stack([DATA.load(row) for row in ROWS])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(tokens)[torch.from_numpy(DATA.targets(ROWS) >= 0)].float()
    found = LiveTeacher(model, VOCABULARY, precision="bfloat16", sequences=DATA).next(tokens, ROWS).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7)
    assert not torch.allclose(found, LiveTeacher(model, VOCABULARY, sequences=DATA).next(tokens, ROWS).logits)
