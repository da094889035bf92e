"""The measures of tokens on the device: what the numpy functions say in float64, up to the rounding of float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import metrics
from pipeline.errors import DataError
from pipeline.metrics.scores_torch import ToldTensors
from pipeline.metrics.scores_torch import score as on_device
from pipeline.softlabels import Dense, Sampled, SoftLabels
from tests.metrics.test_speculation import rows, top_k

P, V = 40, 23
CPU = torch.device("cpu")


def draws(seed: int) -> Sampled:
    random = np.random.default_rng(seed)
    counts = random.multinomial(6, np.full(V, 1 / V), size=P)
    offsets = np.concatenate([[0], np.cumsum((counts > 0).sum(axis=1))])
    return Sampled(np.nonzero(counts)[1].astype(np.uint16), counts[counts > 0] / 6, offsets, 1.0, V)


def told(kind: str, temperature: float) -> SoftLabels | None:
    teacher = rows(P, V, 1)
    kinds: dict[str, SoftLabels | None] = {
        "none": None, "dense": Dense(teacher.astype(np.float32)), "half": Dense(teacher.astype(np.float16)),
        "some": top_k(teacher, 4, temperature), "all": top_k(teacher, V, temperature), "draws": draws(0),
    }  # fmt: skip
    return kinds[kind]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["none", "dense", "half", "some", "all", "draws"])
def test_each_figure_of_each_token(kind: str, temperature: float) -> None:
    if kind == "draws" and temperature != 1:
        pytest.skip("draws are of one temperature")
    logits, labels, groups = rows(P, V, 0).astype(np.float32), np.arange(P) % V, np.arange(P) // 7
    soft = told(kind, temperature)
    expected = metrics.score(logits, labels, soft, temperature, groups)
    given = None if soft is None else ToldTensors(soft, temperature, CPU)
    found = on_device(torch.from_numpy(logits), labels, given, groups)
    for name in metrics.Scores.__dataclass_fields__:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if other is not None:
            assert one.dtype == other.dtype and one.shape == (P,), name
            np.testing.assert_allclose(one, other, atol=3e-6, rtol=3e-6, err_msg=name)
    assert (found.predictions == expected.predictions).all() and (found.rank == expected.rank).all()


def test_ties_and_values_that_are_not_finite() -> None:
    found = on_device(torch.zeros(2, 4), np.array([0, 3]))
    assert found.rank.tolist() == [4, 4] and found.predictions.tolist() == [0, 0]
    sure = on_device(torch.tensor([[800.0, 0.0], [800.0, 0.0]]), np.array([0, 1]))
    assert sure.brier.tolist() == [0.0, 2.0] and sure.log_likelihood.tolist() == [0.0, -800.0]
    with pytest.raises(DataError, match="finite; 1 of 2 rows"):
        on_device(torch.tensor([[1.0, 0.0], [torch.nan, 0.0]]), np.array([0, 1]))
