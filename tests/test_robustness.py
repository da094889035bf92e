"""Models on corrupted examples, against what is counted here one example at a time."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.corruptions import corrupt
from pipeline.datasets import Dataset
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.robustness import Corrupted, Figures, Robustness, conditions, corrupted
from pipeline.evaluation.scoring import score_rows

SIDE, N = 10, 24
NAMES, LEVELS = ("gaussian-noise", "occlusion", "contrast"), (1, 4)


class Blobs(Dataset):
    """Bright on the left, or on the right; ``loads`` counts the times that each was decoded."""

    def __init__(self, side: int = SIDE, high: float = 0.8) -> None:
        random = np.random.default_rng(0)
        labels = np.arange(N) % 2
        x = random.random((N, 1, side, side)) * 0.5
        for row, label in enumerate(labels):
            x[row, 0, :, label * side // 2 : (label + 1) * side // 2] += random.random() * (high - 0.5)
        self.x, self.loads = torch.from_numpy(x.astype(np.float32)), np.zeros(N, int)
        super().__init__(
            name="blobs",
            classes=["left", "right"],
            ids=[f"b/{n}" for n in range(N)],
            labels=labels,
            input_shape=(1, side, side),
            splits=np.full(N, 2),
        )

    def load(self, row: int) -> Tensor:
        self.loads[row] += 1
        return self.x[row]

    def prepare(self, x: Tensor) -> Tensor:
        return (x - 0.5) / 0.25


def halves(sharp: float, lean: float = 0.0):  # type: ignore[no-untyped-def]
    """A model that holds the left half against the right."""

    def predict(x: Tensor) -> np.ndarray:
        gap = sharp * (x[..., : SIDE // 2].mean(dim=(1, 2, 3)) - x[..., SIDE // 2 :].mean(dim=(1, 2, 3))) + lean
        return torch.stack([gap, -gap], dim=1).float().numpy()

    return predict


MODELS = {"sharp": halves(4.0), "soft": halves(1.0, 0.05), "leaning": halves(4.0, 0.6)}
ROWS = np.arange(3, N)


@pytest.fixture(scope="module")
def found() -> Robustness[str]:
    return corrupted(MODELS, Blobs(), ROWS, NAMES, LEVELS, 7, baseline="soft", bins=4, batch_size=5)


def by_hand(key: str, name: str | None, level: int) -> tuple[Figures, np.ndarray]:
    """In float64, one example at a time."""
    data, right, likelihood, sure, guesses = Blobs(), [], [], [], []
    for row in ROWS.tolist():
        x = data.load(row)
        x = x if name is None else corrupt(x, name, level, seed=7, example_id=data.ids[row])
        logits = MODELS[key](data.prepare(x)[None])[0].astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum()
        label = data.labels[row]
        guesses.append(int(p.argmax()))
        right.append(p.argmax() == label)
        likelihood.append(-math.log(p[label]))
        sure.append(p.max())
    bins = np.minimum((np.array(sure) * 4).astype(int), 3)
    gaps = [abs(np.array(right)[bins == b].sum() - np.array(sure)[bins == b].sum()) for b in range(4)]
    return Figures(float(np.mean(right)), float(np.mean(likelihood)), sum(gaps) / len(right), 0), np.array(guesses)


def test_every_figure_is_that_of_the_corrupted_examples(found: Robustness[str]) -> None:
    for key in MODELS:
        clean, own = by_hand(key, None, 0)
        assert found.clean[key].accuracy == pytest.approx(clean.accuracy) and found.clean[key].agreement == 1
        for name in NAMES:
            for level in LEVELS:
                expected, guesses = by_hand(key, name, level)
                figures = found.cells[key][name, level]
                for what in ("accuracy", "nll", "ece"):
                    assert getattr(figures, what) == pytest.approx(getattr(expected, what), rel=1e-5), (key, name, what)
                assert figures.agreement == pytest.approx((guesses == own).mean())
    assert len({figures.nll for figures in found.cells["sharp"].values()}) == 6
    assert any(figures.agreement < 1 for figures in found.cells["leaning"].values())


def test_means_drops_and_errors(found: Robustness[str]) -> None:
    cells = {key: {c: f.accuracy for c, f in of.items()} for key, of in found.cells.items()}
    for key in MODELS:
        assert found.mean(key).accuracy == pytest.approx(np.mean(list(cells[key].values())))
        assert found.mean(key, severity=4).accuracy == pytest.approx(np.mean([cells[key][n, 4] for n in NAMES]))
        assert found.mean(key, corruption=NAMES[0]).accuracy == pytest.approx(
            np.mean([cells[key][NAMES[0], s] for s in LEVELS])
        )
        assert found.drop(key) == pytest.approx(found.clean[key].accuracy - found.mean(key).accuracy)
    assert found.mce("soft") == pytest.approx(1)
    summary, levels = found.summary("leaning"), [(1 - f.accuracy, f.nll) for f in found.cells["leaning"].values()]
    assert summary["corrupted_accuracy"] == pytest.approx(1 - np.mean([e for e, _ in levels]))
    assert summary["corrupted_nll"] == pytest.approx(np.mean([n for _, n in levels]))


def test_mean_corruption_error_is_the_mean_of_ratios_of_sums() -> None:
    def cells(errors: dict[str, list[float]]) -> dict[tuple[str, int], Figures]:
        return {(n, s): Figures(1 - e, 0, 0, 1) for n, of in errors.items() for s, e in enumerate(of, start=1)}

    own, reference = {"a": [0.2, 0.4], "b": [0.1, 0.1]}, {"a": [0.3, 0.5], "b": [0.4, 0.4]}
    clean = {"own": Figures(0.9, 0, 0, 1), "reference": Figures(0.8, 0, 0, 1)}
    made = Robustness(("a", "b"), (1, 2), 0, clean, {"own": cells(own), "reference": cells(reference)}, "reference")
    assert made.mce("own") == pytest.approx(np.mean([0.6 / 0.8, 0.2 / 0.8]))
    assert made.mce("own", relative=True) == pytest.approx(np.mean([0.4 / 0.4, 0.0 / 0.4]))
    assert made.mce("reference") == made.mce("reference", relative=True) == 1
    without = Robustness(("a", "b"), (1, 2), 0, clean, made.cells)
    assert without.mce("own") is None and "mce" not in without.summary("own")
    perfect = cells({"a": [0.0, 0.0], "b": [0.1, 0.1]})
    made = Robustness(("a", "b"), (1, 2), 0, clean, {"own": cells(own), "reference": perfect}, "reference")
    assert made.mce("own") is None and made.mce("own", relative=True) is None


def test_any_batch_size_and_number_of_workers_gives_the_same(found: Robustness[str]) -> None:
    for options in ({"batch_size": 100}, {"batch_size": 4, "workers": 2}):
        again = corrupted(MODELS, Blobs(), ROWS, NAMES[::-1], LEVELS[::-1], 7, baseline="soft", bins=4, **options)
        assert again.as_dict() == found.as_dict()
    other = corrupted(MODELS, Blobs(), ROWS, NAMES, LEVELS, 8, baseline="soft", bins=4)
    assert other.as_dict() != found.as_dict()


def test_each_example_is_decoded_once_for_all_models() -> None:
    data, seen = Blobs(), []
    clean = score_rows(MODELS, data, ROWS)
    data.loads[:] = 0
    corrupted(MODELS, data, ROWS, NAMES, LEVELS, clean=clean, advance=seen.append)
    assert data.loads[ROWS[1:]].tolist() == [6] * (len(ROWS) - 1) and not data.loads[:3].any()
    assert sum(seen) == 6 * len(ROWS)
    first = corrupted(MODELS, Blobs(), ROWS, NAMES, LEVELS, 7, clean=clean, baseline="soft", bins=4)
    assert first.cells == corrupted(MODELS, Blobs(), ROWS, NAMES, LEVELS, 7, bins=4).cells


def test_as_json(found: Robustness[str]) -> None:
    text = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert text["corruptions"] == ["gaussian-noise", "contrast", "occlusion"] and text["severities"] == [1, 4]
    assert text["baseline"] == "soft" and text["left_out"] == {}
    model = text["models"]["sharp"]
    assert model["by_corruption"]["contrast"]["4"]["accuracy"] == found.cells["sharp"]["contrast", 4].accuracy
    assert model["by_severity"]["1"]["nll"] == found.mean("sharp", severity=1).nll
    assert model["summary"] == found.summary("sharp") and model["clean"]["agreement"] == 1
    grey = corrupted(MODELS, Blobs(), ROWS, ["all"], [1])
    assert len(grey.corruptions) == 17 and list(grey.as_dict()["left_out"]) == ["saturate"]


def test_a_corrupted_dataset_is_prepared_and_known_as_its_base() -> None:
    data = Blobs()
    seen = Corrupted(data, "fog", 3, 7)
    assert torch.equal(seen.load(5), corrupt(data.x[5], "fog", 3, seed=7, example_id="b/5"))
    assert torch.equal(seen.prepare(data.x[5]), data.prepare(data.x[5]))
    assert seen.ids is data.ids and (seen.labels == data.labels).all() and seen.rows("test").size == N


def test_what_cannot_be_run_is_refused_before_any_work() -> None:
    data = Blobs()
    with pytest.raises(ConfigError, match=r"severities are 1 to 5; found 0, 6"):
        conditions(data, 0, ["all"], [0, 3, 6])
    with pytest.raises(ConfigError, match="found none"):
        conditions(data, 0, ["all"], [])
    with pytest.raises(ConfigError, match="no corruption 'rain'"):
        corrupted(MODELS, data, ROWS, ["rain"])
    with pytest.raises(ConfigError, match="baseline should be one of sharp, soft, leaning; found dull"):
        corrupted(MODELS, data, ROWS, ["fog"], baseline="dull")
    data.x += 0.6
    with pytest.raises(DataError, match=r"a corruption acts on images in \[0, 1\]; b/3 holds values from"):
        corrupted(MODELS, data, ROWS, ["fog"])
    data.x = data.x[:, 0, 0]
    with pytest.raises(ConfigError, match=r"acts on images \(C, H, W\); b/3 is float32 of shape \(10,\)"):
        corrupted(MODELS, data, ROWS, ["fog"])
