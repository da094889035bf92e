"""Caches made from caches whose entries are ragged, or whose positions keep uneven numbers of classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.caches import difference, merge, noise, subset, transcode
from pipeline.caches.plan import Plan
from pipeline.encodings import KEPT, Dense, Encoding, Sampled, TopK
from pipeline.errors import CacheCorruptError, CacheMismatchError, ConfigError
from pipeline.identity import digest
from pipeline.store import Cache, Layout, open_cache, verify
from tests.store.small import (
    CLASSES,
    LENGTHS,
    RAGGED,
    encoded,
    identity_of,
    index_of,
    ragged_layout,
    small_cache,
    write,
    writer_of,
)

ENCODINGS = {
    "sampled": Sampled(5),
    "random": Sampled(20, scheme="independent"),
    "dense": Dense("float16"),
    "topk": TopK(3),
}


@pytest.fixture(params=ENCODINGS)
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Cache:
    return small_cache(tmp_path / "small", ENCODINGS[request.param], layout=RAGGED)


def by_entry(cache: Cache) -> dict[tuple[str, str, int], tuple[Any, ...]]:
    """(split, id, view) -> (stored bytes, feature bytes, positions, label, seed) of every entry, found one by one."""
    found = {}
    for split in cache.splits():
        for view in cache.views(split):
            ids = [i for part in cache.parts_of(split, view) for i in cache.index(part).example_ids]
            for row, example_id in enumerate(ids):
                arrays = cache.read_rows(split, view, np.array([row]))
                feature = (
                    cache.read_feature_rows("block.1", split, view, np.array([row])) if cache.feature_names else None
                )
                part = cache.index(cache.parts_of(split, view)[row // cache.part_size])
                inner = row % cache.part_size
                stored = tuple((name, arrays[name].tobytes()) for name in sorted(arrays))
                other = (int(part.length[inner]), int(part.labels[inner]), int(part.seeds[inner]))
                found[split, example_id, view] = (stored, None if feature is None else feature.tobytes(), *other)
    return found


def sound(out: Path) -> Cache:
    found = open_cache(out)
    assert verify(found).problems == ()
    return found


@pytest.mark.parametrize("options", [{"store": "parquet"}, {"part_size": 5}, {"store": "parquet", "part_size": 30}])
def test_another_store_or_part_size_holds_the_same_entries(
    cache: Cache, tmp_path: Path, options: dict[str, Any]
) -> None:
    transcode.run(transcode.TranscodeConfig(cache=cache.address, out=tmp_path / "made", **options))
    made = sound(tmp_path / "made")
    assert by_entry(made) == by_entry(cache)
    np.testing.assert_array_equal(made.lengths("train"), LENGTHS["train"][:21])


def test_a_subset_holds_what_was_chosen(cache: Cache, tmp_path: Path) -> None:
    chosen = tmp_path / "ids"
    chosen.write_text("train/3\ntrain/8\ntrain/20\ntest/4\n")
    subset.run(subset.SubsetConfig(cache=cache.address, out=tmp_path / "made", ids=chosen, views=2))
    made = sound(tmp_path / "made")
    kept = {k: v for k, v in by_entry(cache).items() if k[1] in chosen.read_text().split() and k[2] < 2}
    assert by_entry(made) == kept and len(kept) == 7


def test_a_subset_of_equal_lengths_is_no_longer_ragged(tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "small", Dense(), layout=RAGGED)
    chosen = tmp_path / "ids"
    alike = np.flatnonzero(LENGTHS["train"][:21] == LENGTHS["train"][0])
    chosen.write_text("".join(f"train/{n}\n" for n in alike))
    subset.run(subset.SubsetConfig(cache=cache.address, out=tmp_path / "made", ids=chosen))
    made = sound(tmp_path / "made")
    assert (made.manifest.format, made.manifest.layout.length) == (1, LENGTHS["train"][0])
    assert by_entry(made) == {k: v for k, v in by_entry(cache).items() if k[1] in chosen.read_text().split()}


def test_halves_merge_into_the_whole(cache: Cache, tmp_path: Path) -> None:
    for name, numbers in (("one", range(13)), ("other", range(7, 21))):
        (tmp_path / f"{name}.ids").write_text("".join(f"train/{n}\n" for n in numbers))
        config = subset.SubsetConfig(
            cache=cache.address, out=tmp_path / name, ids=tmp_path / f"{name}.ids", splits=("train",)
        )
        subset.run(config)
    merge.run(merge.MergeConfig(caches=(str(tmp_path / "one"), str(tmp_path / "other")), out=tmp_path / "made"))
    assert by_entry(sound(tmp_path / "made")) == {k: v for k, v in by_entry(cache).items() if k[0] == "train"}


def test_other_positions_of_the_same_examples_do_not_merge(tmp_path: Path) -> None:
    for name, layout in (("a", RAGGED), ("b", Layout.of(RAGGED.splits(), 8, 7))):
        views = {"transform": "flip", "seed": len(name + layout.__class__.__name__) + (name == "b"), "count": 3}
        writer = writer_of(tmp_path / name, layout=layout)
        body = {k: v for k, v in identity_of(Dense(), "zarr", layout).items() if k != "digest"} | {"views": views}
        writer.identity = digest(body)
        write(writer)
        identity = {**body, "digest": writer.identity}
        writer.finalise({"identity": identity, "class_names": [f"class {n}" for n in range(CLASSES)]})
    with pytest.raises(CacheMismatchError, match="other numbers of positions for the same train"):
        merge.run(merge.MergeConfig(caches=(str(tmp_path / "a"), str(tmp_path / "b")), out=tmp_path / "made"))


def test_ragged_logits_are_recoded(tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "small", Dense(), layout=RAGGED)
    config = transcode.TranscodeConfig(cache=cache.address, out=tmp_path / "made", encoding="topk", k=2, part_size=8)
    transcode.run(config)
    made = sound(tmp_path / "made")
    for part, there in zip(RAGGED.parts, made.parts, strict=True):
        for name, rows in encoded(made.encoding, part).items():
            np.testing.assert_allclose(made.read_part(there)[name], rows, rtol=1e-6)


@pytest.mark.parametrize("options", [{"encoding": "dense"}, {"encoding": "topk", "k": 2}, {"dtype": "float16"}])
def test_draws_become_nothing_else(tmp_path: Path, options: dict[str, Any]) -> None:
    cache = small_cache(tmp_path / "small", Sampled(5), layout=RAGGED)
    with pytest.raises(ConfigError, match=r"draws hit|no --dtype"):
        transcode.run(transcode.TranscodeConfig(cache=cache.address, out=tmp_path / "made", **options))
    with pytest.raises(ConfigError, match="keeps draws"):
        noise.run(noise.NoiseConfig(caches=(cache.address,), out=tmp_path / "made", sigma=1.0))


def test_noise_over_ragged_entries(tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "small", Dense(), layout=RAGGED)
    noise.run(noise.NoiseConfig(caches=(cache.address,), out=tmp_path / "made", sigma=1e-6, seed=0))
    made = sound(tmp_path / "made")
    ours, theirs = (np.exp(c.decode(c.read_parts(c.parts)).logits.astype(np.float64)) for c in (cache, made))
    np.testing.assert_allclose(ours / ours.sum(1, keepdims=True), theirs / theirs.sum(1, keepdims=True), atol=2e-5)


def test_differences(tmp_path: Path) -> None:
    one = small_cache(tmp_path / "one", Dense(), layout=RAGGED)
    other = small_cache(tmp_path / "other", Dense("float16"), layout=RAGGED)
    even = small_cache(tmp_path / "even", Dense(), layout=Layout.of(RAGGED.splits(), 8, 7))
    draws = small_cache(tmp_path / "draws", Sampled(5), layout=RAGGED)

    def apart(a: Cache, b: Cache) -> str:
        return difference.run(difference.DiffConfig(one=a.address, other=b.address)).apart

    assert apart(one, other) == ""
    assert "another number of positions" in apart(one, even)
    assert apart(one, draws) == apart(draws, draws) == ""


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=list(ENCODINGS))
def test_a_plan_goes_through_its_file(tmp_path: Path, encoding: Encoding) -> None:
    identity = identity_of(encoding, "zarr", RAGGED)
    plan = Plan(identity, RAGGED, CLASSES, (), {}, None)
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan


def test_a_random_view_with_other_positions_is_noticed(tmp_path: Path) -> None:
    layout = ragged_layout({"train": (11, 2)}, 8)
    writer = writer_of(tmp_path / "c", Sampled(5), layout=layout, features=False)
    for part in layout.parts:
        index = index_of(part)
        if part.view:
            index = replace(index, length=np.roll(index.length, 1))
        writer.write_part(part, encoded(writer.encoding, part), index)
    body = identity_of(writer.encoding, "zarr", layout)
    writer.finalise({"identity": body, "class_names": []})
    cache = open_cache(tmp_path / "c")
    problems = verify(cache).problems
    assert problems and all("other numbers of positions" in p.message for p in problems)
    config = transcode.TranscodeConfig(cache=cache.address, out=tmp_path / "made", part_size=3)
    with pytest.raises(CacheCorruptError, match="other examples"):
        transcode.run(config)
    assert cache.parts[0].statistics[KEPT] == cache.parts[0].kept
