"""Fidelity: exact labels have none to lose, truncated ones lose what the equation says."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import encodings
from pipeline.fidelity import Fidelity, kl_divergence, stored_logprobs, summarise
from pipeline.metrics import log_softmax
from pipeline.verification import differences

LOGITS = np.random.default_rng(0).normal(0, 3, (50, 12)).astype(np.float32)


def made(name: str, **options: object) -> encodings.Encoding:
    return encodings.make(name, **{"dtype": "float32", "k": 3, "temperatures": (1.0, 4.0), **options})


def test_exact_labels_lose_nothing():
    encoding = made("dense")
    fidelity = Fidelity(encoding, 12)
    fidelity.compare(LOGITS, encoding.encode(LOGITS))
    fidelity.count(LOGITS.argmax(axis=1), np.full(50, -1))
    summary = summarise([("train", fidelity.totals())])
    assert summary["top1_agreement"] == 1.0
    assert summary["kl"]["1"]["max"] == pytest.approx(0, abs=1e-12)
    assert summary["teacher_accuracy"] == {}


def test_top_k_stands_for_a_distribution_with_an_even_tail():
    encoding = made("topk")
    for temperature in (1.0, 4.0):
        stored = stored_logprobs(encoding.decode(encoding.encode(LOGITS), 12), temperature)
        exact = log_softmax(LOGITS, temperature)
        assert np.exp(stored).sum(axis=1) == pytest.approx(1, abs=1e-5)
        top = np.argsort(-LOGITS, axis=1)[:, :3]
        assert np.take_along_axis(stored, top, 1) == pytest.approx(np.take_along_axis(exact, top, 1), abs=1e-5)
        assert (kl_divergence(exact, stored) > 0).all()


def test_teacher_accuracy_counts_labelled_rows_by_split():
    fidelity = Fidelity(made("dense"), 12)
    labels = LOGITS.argmax(axis=1)
    labels[:10] = -1
    labels[10:20] = (labels[10:20] + 1) % 12
    fidelity.count(LOGITS.argmax(axis=1), labels)
    assert summarise([("test", fidelity.totals())])["teacher_accuracy"] == {"test": 0.75}


@pytest.mark.parametrize(
    "encoding",
    [
        made("dense"),
        made("dense", dtype="float16"),
        made("dense", dtype="int8"),
        made("topk"),
        made("topk", dtype="float16"),
        made("topk", k=12),
    ],
    ids=str,
)
def test_differences_stay_within_the_declared_bound(encoding: encodings.Encoding):
    arrays = encoding.encode(LOGITS)
    found = differences(LOGITS, encoding.decode(arrays, 12)).max()
    assert found <= encoding.bound(arrays, LOGITS.shape[1]) + 1e-6


def test_differences_see_one_wrong_value():
    arrays = {k: v.copy() for k, v in made("dense").encode(LOGITS).items()}
    arrays["logits"][7, 3] += 0.5
    found = differences(LOGITS, made("dense").decode(arrays, 12))
    assert found.argmax() == 7
    assert found[7] == pytest.approx(0.5 * 11 / 12, abs=1e-5)
