"""Top-k probabilities as somebody rounded them: what comes back is what was said, and the bound covers the teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.caches.importing.kept import LOWEST, Kept, encode, residual_known_to
from pipeline.encodings import TopK
from pipeline.errors import EncodingError
from pipeline.losses.response import distillation_loss
from pipeline.softlabels import TopK as TopKLabels


def published(logits: npt.NDArray[np.float32], k: int, precision: str) -> tuple[Kept, npt.NDArray[np.float64]]:
    """What a top-k source keeps of ``logits``, and the teacher's own probabilities in float64."""
    soft = torch.softmax(torch.from_numpy(logits), dim=1).to(getattr(torch, precision))
    values, ids = soft.topk(k, dim=1)
    exact = torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    return Kept(ids.numpy(), values.numpy()), exact


def decoded(kept: Kept, classes: int, temperature: float = 1.0, dtype: str = "float32") -> tuple[TopKLabels, float]:
    encoding = TopK(kept.ids.shape[1], dtype, (temperature,))
    arrays, bound = encode(kept, classes, encoding)
    soft = encoding.decode(arrays, classes)
    assert isinstance(soft, TopKLabels)
    return soft, bound


@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(2, 60),
    k=st.integers(1, 12),
    scale=st.sampled_from([0.1, 1.0, 4.0, 12.0, 40.0]),
    precision=st.sampled_from(["float16", "float32"]),
    dtype=st.sampled_from(["float32", "float16", "int8", "int4"]),
)
def test_the_bound_covers_the_teacher(
    seed: int, classes: int, k: int, scale: float, precision: str, dtype: str
) -> None:
    k = min(k, classes)
    logits = (np.random.default_rng(seed).standard_normal((8, classes)) * scale).astype(np.float32)
    kept, exact = published(logits, k, precision)
    soft, bound = decoded(kept, classes, dtype=dtype)
    logprobs, log_residual = soft.at(1.0)
    teachers = np.take_along_axis(exact, soft.ids, axis=1)
    assert np.abs(np.exp(logprobs.astype(np.float64)) - teachers).max() <= bound
    residual = np.exp(log_residual.astype(np.float64))
    assert np.abs(residual - (1 - teachers.sum(axis=1))).max() <= bound + 1e-12
    assert np.abs(np.exp(logprobs).sum(axis=1) + residual - 1).max() <= k * bound + 1e-6
    assert np.isneginf(log_residual).all() == (k == classes)


def test_kept_values_are_those_of_the_source() -> None:
    kept, _ = published(np.random.default_rng(0).standard_normal((50, 30)).astype(np.float32) * 5, 6, "float16")
    soft, _ = decoded(kept, 30)
    order = np.argsort(kept.ids, axis=1)
    said = np.take_along_axis(kept.probs, order, axis=1)
    assert (soft.ids == np.take_along_axis(kept.ids, order, axis=1)).all()
    normal = said > np.finfo(np.float16).tiny
    assert np.allclose(np.exp(soft.at(1.0)[0])[normal], said[normal].astype(np.float32), rtol=1e-5, atol=0)


def test_a_sum_beyond_one_leaves_no_residual_and_the_bound_says_how_much_it_may_be() -> None:
    kept = Kept(np.array([[3, 1]]), np.array([[0.9995, 0.0007]], np.float16))
    assert kept.probs.astype(np.float64).sum() > 1
    soft, bound = decoded(kept, 10)
    assert float(soft.log_residual[0, 0]) == LOWEST
    # Of the eight dropped classes none is larger than the smallest that was kept, and all fit into the rounding.
    assert 1e-4 < bound < 2 * residual_known_to(np.dtype("float16"), 2)


def test_zeros_are_kept_as_less_than_the_source_can_tell_from_zero() -> None:
    kept = Kept(np.array([[0, 1, 2]]), np.array([[1.0, 0.0, 0.0]], np.float16))
    soft, bound = decoded(kept, 5)
    assert np.exp(soft.at(1.0)[0][0]).tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-37)
    assert np.isfinite(soft.logits).all() and bound > 0


def test_another_temperature_is_that_of_the_probabilities() -> None:
    kept, _ = published(np.random.default_rng(1).standard_normal((4, 9)).astype(np.float32), 3, "float32")
    at_one, _ = decoded(kept, 9)
    at_four, _ = decoded(kept, 9, 4.0)
    assert np.allclose(at_four.at(4.0)[0], at_one.at(1.0)[0], atol=1e-6)
    assert np.allclose(at_four.logits, 4 * at_one.logits, atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "probs", "what"),
    [
        ([[0, 5]], [[0.6, 0.3]], "below 5"),
        ([[-1, 2]], [[0.6, 0.3]], "below 5"),
        ([[2, 2]], [[0.6, 0.3]], "kept twice"),
        ([[0, 1]], [[0.6, np.nan]], "0 or more"),
        ([[0, 1]], [[0.6, -0.1]], "0 or more"),
        ([[0, 1]], [[0.9, 0.8]], "come to 1.7"),
        ([[0, 1]], [[0.5, 0.01]], "no softmax over 5 classes"),
    ],
)
def test_what_no_softmax_gives_is_refused_with_its_row(ids: Any, probs: Any, what: str) -> None:
    good = Kept(np.array([[0, 1], *ids]), np.array([[0.6, 0.3], *probs], np.float32))
    with pytest.raises(EncodingError, match=what) as raised:
        encode(good, 5, TopK(2))
    assert raised.value.row == 1


def test_losses_take_such_labels() -> None:
    kept, exact = published(np.random.default_rng(2).standard_normal((64, 40)).astype(np.float32) * 8, 5, "float16")
    soft, bound = decoded(kept, 40)
    assert (soft.log_residual == LOWEST).any() and bound < 1e-3
    student = torch.randn(64, 40, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = distillation_loss(student, soft.map(torch.from_numpy), temperature=1.0)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and torch.isfinite(loss).all() and torch.isfinite(student.grad).all()
    # The gradient is the student's mass less the teacher's: right to the bound on each kept class.
    q = torch.softmax(student.detach().double(), dim=1)
    wanted = torch.gather(q - torch.from_numpy(exact), 1, torch.from_numpy(soft.ids))
    found = torch.gather(student.grad.double(), 1, torch.from_numpy(soft.ids))
    assert float((wanted - found).abs().max()) <= 3 * bound + 1e-5
