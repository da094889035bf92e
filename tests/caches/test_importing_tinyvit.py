"""Files that TinyViT's own code wrote (foreign/README.md): every record is found, under its key, in every epoch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.caches.importing import ImportConfig, run
from pipeline.caches.importing.tinyvit import TinyViT
from pipeline.errors import ConfigError, DataError, EncodingError
from pipeline.progress import Silent
from pipeline.softlabels import TopK
from pipeline.store import Cache, open_cache, verify

FOREIGN = Path(__file__).parent / "foreign"
SAVED = FOREIGN / "tinyvit"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAVED, tmp_path / "saved"))


def imported(source: Path, out: Path, **options: Any) -> Cache:
    run(ImportConfig(source=str(source), out=out, classes=20, **options))
    return open_cache(out)


@pytest.mark.parametrize("part_size", [0, 4])
def test_labels_are_those_of_the_logits_they_were_made_from(tmp_path: Path, part_size: int) -> None:
    cache = imported(SAVED, tmp_path / "cache", part_size=part_size)
    with np.load(FOREIGN / "tinyvit.npz") as file:
        keys, logits, seeds = file["keys"].tolist(), file["logits"], file["seeds"]
    assert cache.splits() == ("train",) and cache.examples("train") == len(keys) and sorted(cache.ids("train")) == keys
    for view in cache.views("train"):
        for part in cache.parts_of("train", view):
            index, soft = cache.index(part), cache.decode(cache.read_part(part))
            assert isinstance(soft, TopK)
            rows = [keys.index(key) for key in index.example_ids]
            assert index.seeds.tolist() == seeds[view, rows].tolist()
            exact = torch.softmax(torch.from_numpy(logits[view, rows]).double(), dim=1)
            values, ids = exact.topk(5)
            order = ids.argsort(dim=1)
            assert (soft.ids == torch.gather(ids, 1, order).numpy()).all()
            off = np.abs(np.exp(soft.at(1.0)[0]) - torch.gather(values, 1, order).numpy()).max()
            residual = np.abs(np.exp(soft.at(1.0)[1]) - (1 - values.sum(dim=1)).numpy()).max()
            assert max(off, residual) <= cache.manifest.bound < 5e-4
    assert verify(cache).ok


def test_what_it_cannot_say_is_unknown(tmp_path: Path) -> None:
    cache = imported(SAVED, tmp_path / "cache")
    identity = cache.identity
    assert identity["teacher"] == {"reference": None, "args": {}, "state": None, "precision": None}
    assert identity["data"] == {"digest": None, "examples": 17} and identity["preprocessing"] is None
    assert identity["views"] == {"transform": None, "seed": None, "count": 2, "plain": False}
    (step,) = identity["lineage"]
    assert (step["verb"], step["format"], step["files"]["number"], step["files"]["bytes"]) == (
        "import",
        "tinyvit",
        8,
        1368,
    )
    assert step["source"] == {"epochs": [0, 1], "repeated records left out": 2}
    assert "residual (known to within 0.0005)" in step["unknown"] and "seeds of the views" not in step["unknown"]
    assert cache.classes == 20 and cache.class_names == ()
    assert cache.input_digests("train") == []


def test_an_epoch_alone_and_the_first_views_alone(tmp_path: Path) -> None:
    second = imported(SAVED / "logits_top5_epoch1", tmp_path / "second")
    assert second.views("train") == (0,) and second.manifest.lineage[0]["source"]["epochs"] == [1]
    first = imported(SAVED, tmp_path / "first", views=1)
    assert first.views("train") == (0,) and first.manifest.lineage[0]["files"]["number"] == 4


def test_the_same_files_give_the_same_bytes_and_others_another_identity(tmp_path: Path, copy: Path) -> None:
    one, other = imported(SAVED, tmp_path / "one"), imported(copy, tmp_path / "other")
    assert (tmp_path / "one/manifest.json").read_bytes() == (tmp_path / "other/manifest.json").read_bytes()
    values = copy / "logits_top5_epoch1/rank0-values.bin"
    data = bytearray(values.read_bytes())
    data[0] ^= 1  # a seed
    values.write_bytes(data)
    assert imported(copy, tmp_path / "changed").digest != one.digest == other.digest


def test_ids_beyond_32767_have_wrapped_around_and_are_read_as_they_were_meant(tmp_path: Path) -> None:
    folder = tmp_path / "saved/logits_top2_epoch0"
    folder.mkdir(parents=True)
    meant = np.array([[40_000, 7], [65_535, 32_768]])
    probs = np.array([[0.75, 0.125], [0.5, 0.25]], np.float16)
    pairs = zip(meant, probs, strict=True)
    records = [np.int32(5).tobytes() + i.astype(np.int16).tobytes() + p.tobytes() for i, p in pairs]
    (folder / "rank0-values.bin").write_bytes(b"".join(records))
    (folder / "rank0-keys.txt").write_text("a\nb\n")
    run(ImportConfig(source=str(folder.parent), out=tmp_path / "cache", classes=65_536))
    cache = open_cache(tmp_path / "cache")
    soft = cache.decode(cache.read_part(0))
    assert isinstance(soft, TopK) and soft.ids.tolist() == np.sort(meant, axis=1).tolist()
    with pytest.raises(DataError, match="16 bits"):
        run(ImportConfig(source=str(folder.parent), out=tmp_path / "more", classes=65_537))


def test_classes_have_to_be_said_and_to_be_right(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --classes"):
        run(ImportConfig(source=str(SAVED), out=tmp_path / "cache"))
    with pytest.raises(EncodingError, match=r"example n0\w+ of train, view 0: .* below 15"):
        run(ImportConfig(source=str(SAVED), out=tmp_path / "cache", classes=15))
    names = tmp_path / "names"
    names.write_text("".join(f"class {n}\n" for n in range(20)))
    run(ImportConfig(source=str(SAVED), out=tmp_path / "named", class_names=names))
    cache = open_cache(tmp_path / "named")
    assert cache.class_names[19] == "class 19" and "class names" not in cache.manifest.lineage[0]["unknown"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"encoding": "dense"}, "needs all classes"),
        ({"k": 3}, "has the 5 largest"),
        ({"temperature": (2.0,)}, "at one temperature"),
        ({"plain": True}, "augmented images"),
        ({"made_at": 2.0}, "temperature 1"),
        ({"ids": "row"}, "plain files"),
        ({"kind": "probs"}, "plain files"),
    ],
)
def test_options_that_it_has_no_use_for(tmp_path: Path, options: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        imported(SAVED, tmp_path / "cache", **options)
    assert not (tmp_path / "cache").exists()


def _cut(folder: Path) -> None:
    path = folder / "logits_top5_epoch1/rank1-values.bin"
    path.write_bytes(path.read_bytes()[:-3])


def _lose_a_rank(folder: Path) -> None:
    for path in (folder / "logits_top5_epoch1").glob("rank1-*"):
        path.unlink()


def _lose_the_keys(folder: Path) -> None:
    (folder / "logits_top5_epoch0/rank1-keys.txt").unlink()


def _repeat(folder: Path) -> None:
    path = folder / "logits_top5_epoch0/rank0-keys.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[1], *lines[1:]]) + "\n")


def _other_k(folder: Path) -> None:
    shutil.copytree(folder / "logits_top5_epoch1", folder / "logits_top7_epoch2")


def _no_text(folder: Path) -> None:
    for path in folder.rglob("rank*-keys.txt"):
        path.write_bytes(path.read_bytes().replace(b"n0000000", b"\xff0000000"))


def _lose_all(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


def _probabilities_of_two(folder: Path) -> None:
    path = folder / "logits_top5_epoch0/rank0-values.bin"
    records = np.frombuffer(path.read_bytes(), TinyViT(folder).record).copy()
    records["probs"][2, 0] = 2.0
    path.write_bytes(records.tobytes())


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (_cut, "records of 24 bytes.*complete"),
        (_lose_a_rank, "should hold the 17 examples of logits_top5_epoch0; it holds 9, and lacks 8"),
        (_lose_the_keys, "of rank 1 only one"),
        (_repeat, "stand twice"),
        (_other_k, "all of the same K"),
        (_no_text, "UTF-8"),
        (_probabilities_of_two, "no softmax"),
        (_lose_all, "nothing in it is known by its name"),
    ],
)
def test_damage_is_a_named_error(tmp_path: Path, copy: Path, damage: Any, what: str) -> None:
    damage(copy)
    with pytest.raises((DataError, EncodingError), match=what):
        imported(copy, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_examples_keep_the_order_of_the_first_epoch() -> None:
    source = TinyViT(SAVED)
    source.scan(Silent())
    first, second = (source.read("train", view, 0, 17, 20).ids for view in (0, 1))
    written = [(SAVED / f"logits_top5_epoch0/rank{r}-keys.txt").read_text().split() for r in (0, 1)]
    expected = list(dict.fromkeys([*written[0], *written[1]]))
    assert first == second == expected and len(expected) == 17
