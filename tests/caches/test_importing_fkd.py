"""Files that FKD's own code wrote (foreign/README.md): crops, flips and labels of every kind that it makes."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.caches.importing import ImportConfig, run
from pipeline.caches.importing.fkd import crop_feature
from pipeline.errors import ConfigError, DataError, EncodingError
from pipeline.softlabels import Dense, TopK
from pipeline.store import Cache, open_cache, verify

FOREIGN = Path(__file__).parent / "foreign"
SAVED = FOREIGN / "fkd"
INNER = "imagenet/train"
KEPT = {"marginal_smoothing_k5": 5, "marginal_smoothing_k5_fp16": 5, "smoothing": 1}


def imported(source: Path, out: Path, **options: Any) -> Cache:
    run(ImportConfig(source=str(source), out=out, **{"classes": 20, **options}))
    return open_cache(out)


def truth() -> tuple[list[str], torch.Tensor]:
    """Ids, and the probabilities (images, crops, C) that the labels were made from."""
    with np.load(FOREIGN / "fkd.npz") as file:
        return file["ids"].tolist(), torch.softmax(torch.from_numpy(file["logits"]).double(), dim=-1)


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("part_size", [0, 3])
def test_labels_are_those_of_the_logits_they_were_made_from(tmp_path: Path, kind: str, part_size: int) -> None:
    cache = imported(SAVED / kind / INNER, tmp_path / "cache", part_size=part_size)
    ids, exact = truth()
    assert cache.ids("train") == ids == ["n00/img_00", "n00/img_01", "n01/img_10", "n01/img_11"]
    assert cache.views("train") == (0, 1, 2, 3)
    for view in range(4):
        soft = cache.decode(cache.read_rows("train", view, np.arange(4)))
        assert isinstance(soft, TopK)
        values, kept = exact[:, view].topk(KEPT[kind])
        order = kept.argsort(dim=1)
        assert (soft.ids == torch.gather(kept, 1, order).numpy()).all()
        off = np.abs(np.exp(soft.at(1.0)[0]) - torch.gather(values, 1, order).numpy()).max()
        residual = np.abs(np.exp(soft.at(1.0)[1]) - (1 - values.sum(dim=1)).numpy()).max()
        assert max(off, residual) <= cache.manifest.bound < (6e-4 if "fp16" in kind else 1e-5)
        for part in cache.parts_of("train", view):
            assert set(cache.index(part).seeds.tolist()) == {-1}
    assert verify(cache).ok


def test_whole_distributions_are_dense_and_name_their_classes(tmp_path: Path) -> None:
    cache = imported(SAVED / "ori", tmp_path / "cache", classes=0)
    _, exact = truth()
    assert cache.classes == 20 and cache.ids("train")[0] == f"{INNER}/n00/img_00"
    for view in range(4):
        soft = cache.decode(cache.read_rows("train", view, np.arange(4)))
        assert isinstance(soft, Dense)
        logs = torch.log(exact[:, view]).numpy()
        centred = [x - x.mean(axis=1, keepdims=True) for x in (soft.logits, logs)]
        assert np.abs(centred[0] - centred[1]).max() <= cache.manifest.bound < 1e-5
    topk = imported(SAVED / "ori", tmp_path / "topk", encoding="topk", k=3, temperature=(1.0, 2.0))
    assert topk.encoding.temperatures == (1.0, 2.0) and verify(topk).ok


@pytest.mark.parametrize("kind", ["marginal_smoothing_k5", "marginal_smoothing_k5_fp16"])
def test_crops_are_a_feature_from_which_the_coordinates_come_back(tmp_path: Path, kind: str) -> None:
    cache = imported(SAVED / kind, tmp_path / "cache")
    (path, *_) = sorted((SAVED / kind).rglob("*.tar"))
    coordinates, flips, _ = torch.load(path, weights_only=False)
    for view in range(4):
        crop = cache.read_feature_rows("crop", "train", view, np.array([0])).astype(np.float32).sum(axis=1)[0]
        assert np.abs(crop[:4] - coordinates[view].astype(np.float32)).max() <= 6e-8
        assert bool(crop[4]) == bool(flips[view])


def test_float16_and_its_remainder_are_float32() -> None:
    values = np.random.default_rng(0).random((20_000, 4)).astype(np.float32)
    found = crop_feature(values, np.zeros(len(values), bool)).astype(np.float32).sum(axis=1)
    assert np.abs(found[:, :4] - values).max() <= 6e-8
    assert np.abs(values.astype(np.float16).astype(np.float32) - values).max() > 2e-4  # what one float16 would lose


def test_what_it_cannot_say_is_unknown(tmp_path: Path) -> None:
    cache = imported(SAVED / "marginal_smoothing_k5", tmp_path / "cache", id_template="{id}.JPEG", views=2)
    assert cache.ids("train")[0] == f"{INNER}/n00/img_00.JPEG" and cache.views("train") == (0, 1)
    (step,) = cache.manifest.lineage
    assert step["options"] == {"id_template": "{id}.JPEG", "views": 2}
    assert "temperature (taken as 1)" in step["unknown"] and "seeds of the views" in step["unknown"]
    told = imported(
        SAVED / "marginal_smoothing_k5", tmp_path / "told", teacher="effnet", preprocessing="x", made_at=2.0
    )
    assert told.identity["teacher"]["reference"] == "effnet" and told.identity["preprocessing"] == "x"
    (step,) = told.manifest.lineage
    assert step["options"] == {"teacher": "effnet", "preprocessing": "x", "made_at": 2.0}
    assert not {"teacher", "preprocessing", "temperature (taken as 1)"} & set(step["unknown"])
    assert "weights" in step["unknown"] and told.encoding.temperatures == (2.0,)


def test_hard_labels_are_no_soft_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hard labels"):
        imported(SAVED / "hard", tmp_path / "cache")


def test_two_columns_of_two_classes_could_be_either(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="could be either"):
        imported(SAVED / "smoothing", tmp_path / "cache", classes=2)


def resaved(source: Path, folder: Path, change: Any) -> Path:
    """A copy of some files, the last one changed."""
    copy = Path(shutil.copytree(source, folder / "saved"))
    path = sorted(copy.rglob("*.tar"))[-1]
    buffer = io.BytesIO()
    torch.save(change(*torch.load(path, weights_only=False)), buffer)
    path.write_bytes(buffer.getvalue())
    return copy


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda c, f, o: [c, f, o[:, :, :4]], "like img_00"),
        (lambda c, f, o: [c[:3], f[:3], o[:3]], "labels of 4 crops"),
        (lambda c, f, o: [c, f], "found 2 arrays"),
        (lambda c, f, o: [c[:, :3], f, o], "should hold coordinates"),
        (lambda c, f, o: [c * np.nan, f, o], "should hold coordinates"),
        (lambda c, f, o: [c, f.astype(np.float32), o], "should hold coordinates"),
        (lambda c, f, o: [c, f, o.astype(np.float64)], "float32"),
        (lambda c, f, o: [c, f, o + 0.5], "whole numbers"),
        (lambda c, f, o: [c, f, o * 2], "no softmax|below 20|kept twice"),
        (lambda c, f, o: {"coords": c}, "list of arrays"),
    ],
)
def test_a_file_that_is_not_like_the_others_is_named(tmp_path: Path, change: Any, what: str) -> None:
    source = resaved(SAVED / "marginal_smoothing_k5", tmp_path, change)
    with pytest.raises((DataError, EncodingError), match=what) as raised:
        imported(source, tmp_path / "cache")
    assert "img_11" in str(raised.value) and not (tmp_path / "cache").exists()


def test_tensors_are_read_like_arrays(tmp_path: Path) -> None:
    source = resaved(SAVED / "marginal_smoothing_k5", tmp_path, lambda *arrays: [torch.from_numpy(a) for a in arrays])
    one, other = imported(source, tmp_path / "one"), imported(SAVED / "marginal_smoothing_k5", tmp_path / "other")
    for name, values in one.read_part(0).items():
        assert np.array_equal(values, other.read_part(0)[name])


def test_float16_ids_of_many_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exact up to 2,048"):
        imported(SAVED / "marginal_smoothing_k5_fp16", tmp_path / "cache", classes=2_100)


def test_a_hostile_file_among_them_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.mkdir, (tmp_path / "witness",)

    source = resaved(SAVED / "marginal_smoothing_k5", tmp_path, lambda c, f, o: [c, f, Evil()])
    with pytest.raises(DataError, match=r"img_11\.tar.*Nothing in it was run"):
        imported(source, tmp_path / "cache")
    assert not (tmp_path / "witness").exists() and not (tmp_path / "cache").exists()


def test_nothing_is_left_beside_the_cache(tmp_path: Path) -> None:
    imported(SAVED / "marginal_smoothing_k5", tmp_path / "out" / "cache")
    assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")] == ["cache"]
    with pytest.raises(ConfigError, match="not empty"):
        (tmp_path / "full").mkdir()
        (tmp_path / "full/x").write_text("")
        imported(SAVED / "marginal_smoothing_k5", tmp_path / "full")
