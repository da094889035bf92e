"""transcode, subset and merge: every entry of the new cache is the one it should be, and nobody is asked again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.caches import merge, subset, transcode
from pipeline.caches.building import BuildReport
from pipeline.encodings import Dense, TopK
from pipeline.errors import CacheCorruptError, CacheIncompleteError, CacheMismatchError, ConfigError, EncodingError
from pipeline.identity import digest, view_seed
from pipeline.store import Cache, CacheWriter, IndexRows, Layout, open_cache, replay_file, verify
from tests.store.small import CLASSES, FEATURES, LAYOUT, files_of, index_of, logits_of, small_cache

IDS = {"train": 21, "validation": 8, "test": 9}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return small_cache(tmp_path / "small", Dense())


def by_entry(cache: Cache) -> dict[tuple[str, str, int], tuple[bytes, int, int, str]]:
    """(split, id, view) -> (stored bytes and feature, label, seed, digest) of every entry."""
    found = {}
    for split in cache.splits():
        digests = cache.input_digests(split)
        for view in cache.views(split):
            for part in cache.parts_of(split, view):
                index, arrays = cache.index(part), cache.read_part(part)
                features = [cache.read_feature(name, part) for name in cache.feature_names]
                for row, example_id in enumerate(index.example_ids):
                    stored = b"".join(a[row].tobytes() for a in [*arrays.values(), *features])
                    content = digests[part.first + row] if digests else ""
                    key = (split, example_id, view)
                    found[key] = (stored, int(index.labels[row]), int(index.seeds[row]), content)
    return found


def transcoded(cache: Cache, out: Path, **options: Any) -> Cache:
    transcode.run(transcode.TranscodeConfig(cache=cache.address, out=out, **options))
    return sound(out)


def subset_of(cache: Cache, out: Path, **options: Any) -> Cache:
    subset.run(subset.SubsetConfig(cache=cache.address, out=out, **options))
    return sound(out)


def merged(out: Path, *caches: Cache | Path) -> Cache:
    addresses = tuple(str(c.address if isinstance(c, Cache) else c) for c in caches)
    merge.run(merge.MergeConfig(caches=addresses, out=out))
    return sound(out)


def sound(out: Path) -> Cache:
    found = open_cache(out)
    report = verify(found)
    assert report.ok, report.problems
    return found


@pytest.mark.parametrize("options", [{"store": "parquet"}, {"part_size": 5}, {"store": "parquet", "part_size": 30}])
def test_another_store_or_part_size_holds_the_same_entries(
    cache: Cache, tmp_path: Path, options: dict[str, Any]
) -> None:
    made = transcoded(cache, tmp_path / "made", **options)
    assert by_entry(made) == by_entry(cache)
    assert made.manifest.bound == 0 and made.class_names == cache.class_names
    assert made.digest != cache.digest


def test_there_and_back_gives_the_same_arrays(cache: Cache, tmp_path: Path) -> None:
    there = transcoded(cache, tmp_path / "there", store="parquet", part_size=3)
    back = transcoded(there, tmp_path / "back", store="zarr", part_size=cache.part_size)
    for part in cache.parts:
        np.testing.assert_array_equal(back.read_part(part.number)["logits"], cache.read_part(part)["logits"])
    assert [step["verb"] for step in back.manifest.lineage] == ["transcode", "transcode"]
    assert back.manifest.lineage[0]["from"][0]["identity"] == cache.digest


def test_another_encoding_is_what_a_dump_would_have_kept(cache: Cache, tmp_path: Path) -> None:
    made = transcoded(cache, tmp_path / "made", encoding="topk", k=2, temperature=(1.0, 3.0), part_size=8)
    for part in LAYOUT.parts:
        for name, rows in TopK(2, "float32", (1.0, 3.0)).encode(logits_of(part)).items():
            np.testing.assert_array_equal(made.read_part(part.number)[name], rows)
    assert set(made.manifest.fidelity["kl"]) == {"1", "3"} and made.manifest.fidelity["kl"]["1"]["mean"] > 0
    assert made.manifest.fidelity["entries_compared"] == made.manifest.counts["entries"]
    assert "measured_against" not in made.manifest.fidelity


def test_kept_logits_become_four_bits(cache: Cache, tmp_path: Path) -> None:
    half = transcoded(cache, tmp_path / "half", encoding="topk", dtype="float16", k=4, temperature=(1.0, 3.0))
    made = transcoded(half, tmp_path / "made", dtype="int4")
    assert made.encoding == TopK(4, "int4", (1.0, 3.0)) and made.manifest.format == 3 and verify(made).ok
    assert half.manifest.bound < made.manifest.bound < 0.3
    assert half.digest[:12] in made.manifest.fidelity["measured_against"]
    assert 0 < made.manifest.fidelity["kl"]["1"]["mean"] < 0.05 and made.manifest.fidelity["top1_agreement"] == 1.0
    fewer = transcoded(made, tmp_path / "fewer", k=3)
    assert fewer.encoding == TopK(3, "int4", (1.0, 3.0)) and fewer.manifest.bound > made.manifest.bound
    with pytest.raises(ConfigError, match="int4"):
        transcoded(cache, tmp_path / "dense", dtype="int4")


def test_a_second_loss_is_declared_on_top_of_the_first(cache: Cache, tmp_path: Path) -> None:
    once = transcoded(cache, tmp_path / "once", dtype="int8", part_size=8)
    twice = transcoded(once, tmp_path / "twice", dtype="float16", part_size=8)
    assert twice.manifest.bound > once.manifest.bound > 0
    assert once.digest[:12] in twice.manifest.fidelity["measured_against"]
    worst = 0.0
    for part in LAYOUT.parts:
        exact, kept = logits_of(part), twice.decode(twice.read_part(part.number)).logits
        worst = max(
            worst, float(np.abs((exact - exact.mean(1, keepdims=True)) - (kept - kept.mean(1, keepdims=True))).max())
        )
    assert worst <= twice.manifest.bound


def test_features_can_be_left_out(cache: Cache, tmp_path: Path) -> None:
    assert transcoded(cache, tmp_path / "with", store="parquet").feature_names == ("block.1",)
    assert transcoded(cache, tmp_path / "without", store="parquet", labels_only=True).feature_names == ()
    with pytest.raises(ConfigError, match="has no feature nothing"):
        transcoded(cache, tmp_path / "x", features=("nothing",))


def test_a_value_that_does_not_fit_names_its_example(tmp_path: Path) -> None:
    made = tmp_path / "far"
    layout = Layout.of({"train": (3, 1)}, part_size=4)
    from tests.store.small import identity_of

    identity = identity_of(Dense(), "zarr", layout)
    writer = CacheWriter(made, layout, Dense(), classes=CLASSES, identity=identity["digest"])
    values = np.zeros((3, CLASSES), np.float32)
    values[1, 2] = -1e6
    writer.write_part(layout.parts[0], {"logits": values}, index_of(layout.parts[0]))
    writer.finalise({"identity": identity, "class_names": [f"class {n}" for n in range(CLASSES)]})
    with pytest.raises(EncodingError, match="example train/1, view 0"):
        transcoded(open_cache(made), tmp_path / "out", dtype="float16")


def test_topk_cannot_become_dense(cache: Cache, tmp_path: Path) -> None:
    top = transcoded(cache, tmp_path / "top", encoding="topk", k=2)
    with pytest.raises(ConfigError, match="cannot become dense"):
        transcoded(top, tmp_path / "x", encoding="dense")
    with pytest.raises(ConfigError, match="draws would have to hit them"):
        transcoded(top, tmp_path / "x", encoding="sampled", draws=9)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"draws": 9}, "--draws is of"),
        ({"encoding": "sampled", "k": 3}, "no --k"),
        ({"encoding": "sampled", "dtype": "float16"}, "no --dtype"),
        ({"encoding": "sampled", "temperature": (1.0, 4.0)}, "one --temperature"),
        ({"encoding": "sampled", "draws": 70_000}, "65535"),
    ],
)
def test_options_of_another_encoding_are_refused(
    cache: Cache, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        transcoded(cache, tmp_path / "x", **options)


def test_a_subset_holds_what_was_chosen_and_nothing_else(cache: Cache, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("train/3\ntrain/20\ntest/0\n\n")
    made = subset_of(cache, tmp_path / "made", ids=ids, views=2)
    whole = by_entry(cache)
    wanted = {("train", "train/3"), ("train", "train/20"), ("test", "test/0")}
    assert by_entry(made) == {k: v for k, v in whole.items() if k[:2] in wanted and k[2] < 2}
    assert made.splits() == ("train", "test") and made.identity["views"]["count"] == 2
    assert made.identity["data"]["examples"] == 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"splits": ("test",)}, {"test": 9}),
        ({"first": 4}, {"train": 4, "validation": 4, "test": 4}),
        ({"classes": ("class 0",)}, {"train": 4, "validation": 2, "test": 2}),
    ],
)
def test_ways_to_choose(cache: Cache, tmp_path: Path, options: dict[str, Any], expected: dict[str, int]) -> None:
    made = subset_of(cache, tmp_path / "made", **options)
    assert {split: made.examples(split) for split in made.splits()} == expected
    if "classes" in options:
        assert set(made.labels("train").tolist()) == {0}


def test_a_subset_of_everything_has_the_digest_of_the_data_in_its_order(cache: Cache, tmp_path: Path) -> None:
    from pipeline.identity import digest_dataset

    made = subset_of(cache, tmp_path / "made")
    rows = [(i, s, d) for s in cache.splits() for i, d in zip(cache.ids(s), cache.input_digests(s), strict=True)]
    assert made.identity["data"]["digest"] == digest_dataset(rows)
    assert by_entry(made) == by_entry(cache)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ids": "train/3\nnobody\n"}, "1 ids .* nobody"),
        ({"ids": "\n"}, "names no id"),
        ({"classes": ("dragon",)}, "found dragon"),
        ({"splits": ("test",), "ids": "train/3\n"}, "does not have in test"),
    ],
)
def test_a_choice_that_cannot_be(cache: Cache, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    if "ids" in options:
        (tmp_path / "ids").write_text(options["ids"])
        options = {**options, "ids": tmp_path / "ids"}
    with pytest.raises(ConfigError, match=words):
        subset_of(cache, tmp_path / "x", **options)


def dumped(
    folder: Path,
    *,
    names: dict[str, list[str]],
    seed: int = 0,
    views: int = 3,
    state: str = "ab" * 32,
    part_size: int = 8,
    version: int = 1,
) -> Cache:
    """A cache as a dump would make it, whose every row is a function of (id, seed, view)."""
    layout = Layout.of({s: (len(n), views if s == "train" else 1) for s, n in names.items()}, part_size)
    body = {
        "teacher": {"reference": "cnn-32", "args": {}, "state": state},
        "data": {"digest": digest([sorted(names.items()), version]), "examples": sum(map(len, names.values()))},
        "preprocessing": "none",
        "class_names": [f"class {n}" for n in range(CLASSES)],
        "views": {"transform": "flip:p=0.5,vertical=false", "seed": seed, "count": views},
        "encoding": Dense().describe(),
        "store": "zarr",
        "part_size": part_size,
    }
    identity = {**body, "digest": digest(body)}
    writer = CacheWriter(folder, layout, Dense(), classes=CLASSES, identity=identity["digest"])
    for part in layout.parts:
        ids = names[part.split][part.first : part.first + part.entries]
        index = IndexRows(
            example_ids=ids,
            view=part.view,
            split=part.split,
            seeds=np.array([view_seed(seed, i, part.view) for i in ids], np.int64),
            labels=np.array([sum(i.encode()) % CLASSES for i in ids], np.int64),
            input_digests=None if part.view else [digest([i, version]) for i in ids],
        )
        rows = np.stack([row_of(i, seed, part.view) for i in ids])
        writer.write_part(part, {"logits": rows}, index, {}, {"bound": 0.0})
    writer.finalise({"identity": identity, "class_names": body["class_names"]})
    return open_cache(folder)


def row_of(example_id: str, seed: int, view: int) -> np.ndarray:
    key = int(digest([example_id, seed if view else 0, view])[:8], 16)
    return np.random.default_rng(key).standard_normal(CLASSES).astype(np.float32)


NAMES = {"train": [f"t{n}" for n in range(19)], "test": ["x0", "x1"]}


def test_views_of_two_dumps_one_after_another(tmp_path: Path) -> None:
    a, b = dumped(tmp_path / "a", names=NAMES), dumped(tmp_path / "b", names=NAMES, seed=7, views=2, part_size=5)
    made = merged(tmp_path / "made", a, b)
    assert made.identity["views"]["count"] == 4 and made.manifest.format == 2
    assert made.identity["views"]["merged"] == [{"seed": 0, "count": 2}, {"seed": 7, "count": 1}]
    for (_, example_id, view), (stored, _, seed, _) in by_entry(made).items():
        own, number = (7, 1) if view == 3 else (0, view)
        assert stored == row_of(example_id, own, number).tobytes()
        assert seed == view_seed(own, example_id, number)
    third = dumped(tmp_path / "c", names=NAMES, seed=9, views=2)
    again = merged(tmp_path / "again", made, third)
    assert [block["seed"] for block in again.identity["views"]["merged"]] == [0, 7, 9]


def test_views_made_again_from_a_merged_cache_have_the_seeds_that_it_holds(tmp_path: Path) -> None:
    from pipeline.sources import replay_views

    a, b = dumped(tmp_path / "a", names=NAMES), dumped(tmp_path / "b", names=NAMES, seed=7)
    made = merged(tmp_path / "made", a, b)
    views = replay_views(made)
    assert views.count == 5
    for view in made.views("train"):
        index = made.index(made.parts_of("train", view)[0])
        assert [views.seed_of(i, view) for i in index.example_ids] == index.seeds.tolist()


def test_examples_of_two_teams(tmp_path: Path) -> None:
    others = {"train": ["t3", "n1", "n2"], "validation": ["v1"]}
    made = merged(tmp_path / "made", dumped(tmp_path / "a", names=NAMES), dumped(tmp_path / "b", names=others))
    assert made.ids("train") == [*NAMES["train"], "n1", "n2"] and made.ids("validation") == ["v1"]
    for (_, example_id, view), (stored, *_) in by_entry(made).items():
        assert stored == row_of(example_id, 0, view).tobytes()
    assert made.identity["data"]["examples"] == 24 and made.manifest.format == 1


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"state": "cd" * 32, "seed": 3}, "another teacher"),
        ({"seed": 0, "part_size": 4}, "both hold the views of seed 0"),
        ({"seed": 3, "views": 1}, "no random views"),
        ({"seed": 3, "names": {"train": ["n1"]}}, "other examples and other views"),
    ],
)
def test_what_does_not_belong_together(tmp_path: Path, other: dict[str, Any], words: str) -> None:
    a, b = dumped(tmp_path / "a", names=NAMES), dumped(tmp_path / "b", **{"names": NAMES, **other})
    with pytest.raises(CacheMismatchError, match=words):
        merged(tmp_path / "x", a, b)
    assert not (tmp_path / "x").exists()


def test_one_id_with_two_contents(tmp_path: Path) -> None:
    a = dumped(tmp_path / "a", names=NAMES)
    b = dumped(tmp_path / "b", names={"train": ["t3", "n1"]}, version=2)
    with pytest.raises(CacheMismatchError, match="another example 't3'"):
        merged(tmp_path / "x", a, b)


def without(folder: Path, source: Path, numbers: set[int]) -> Path:
    """A copy of a cache of which some parts were not pulled."""
    shutil.copytree(source, folder)
    cache = open_cache(source)
    for number in numbers:
        for path in cache.parts[number].files:
            (folder / path).unlink()
    return folder


def test_parts_of_one_identity_are_that_cache_byte_for_byte(cache: Cache, tmp_path: Path) -> None:
    source, last = Path(cache.address), len(cache.parts) - 1
    one = without(tmp_path / "one", source, {0, 3})
    other = without(tmp_path / "other", source, set(range(1, last + 1)) - {3})
    made = merged(tmp_path / "made", one, other)
    assert files_of(tmp_path / "made") == files_of(source)
    assert made.manifest.lineage == ()


def test_a_part_that_nobody_has_is_named(cache: Cache, tmp_path: Path) -> None:
    one, other = (without(tmp_path / n, Path(cache.address), {2}) for n in ("one", "other"))
    with pytest.raises(CacheIncompleteError, match="2:3"):
        merged(tmp_path / "made", one, other)
    assert not (tmp_path / "made").exists()


def test_a_damaged_part_is_taken_from_elsewhere(cache: Cache, tmp_path: Path) -> None:
    one, other = (without(tmp_path / n, Path(cache.address), {m}) for n, m in (("one", 2), ("other", 5)))
    path = one / next(iter(cache.parts[0].files))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    merged(tmp_path / "made", one, other)
    assert files_of(tmp_path / "made") == files_of(Path(cache.address))


def test_a_merge_resumes_from_the_parts_that_are_written(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = files_of(Path(transcoded(cache, tmp_path / "whole", part_size=5).address))
    written = CacheWriter.write_part
    count = 0

    def failing(self: CacheWriter, *arguments: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return written(self, *arguments, **more)

    monkeypatch.setattr(CacheWriter, "write_part", failing)
    config = transcode.TranscodeConfig(cache=cache.address, out=tmp_path / "made", part_size=5)
    with pytest.raises(KeyboardInterrupt):
        transcode.run(config)
    assert not (tmp_path / "made").exists()
    report = transcode.run(config)
    assert report.resumed == 3 and files_of(tmp_path / "made") == expected
    assert transcode.run(config).resumed == report.parts


def test_an_output_that_is_something_else_is_left_alone(cache: Cache, tmp_path: Path) -> None:
    small_cache(tmp_path / "taken", Dense(), "parquet")
    before = files_of(tmp_path / "taken")
    with pytest.raises(ConfigError, match="--overwrite"):
        transcoded(cache, tmp_path / "taken", dtype="int8")
    assert files_of(tmp_path / "taken") == before
    assert transcoded(cache, tmp_path / "taken", dtype="int8", overwrite=True).encoding == Dense("int8")


def test_a_damaged_source_is_an_error_not_a_cache(cache: Cache, tmp_path: Path) -> None:
    shard = next(p for p in (Path(cache.address) / "labels.zarr").rglob("c.*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CacheCorruptError):
        transcoded(open_cache(cache.address), tmp_path / "made", store="parquet")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("verb", [transcode.run, subset.run])
def test_the_report_is_plain_json(cache: Cache, tmp_path: Path, verb: Callable[..., BuildReport]) -> None:
    config = transcode.TranscodeConfig if verb is transcode.run else subset.SubsetConfig
    report = verb(config(cache=cache.address, out=tmp_path / "made", labels_only=True))
    assert json.loads(json.dumps(report.as_dict()))["entries"] == cache.manifest.counts["entries"]
    assert "identity" in report.summary


def test_replayed_views_of_what_is_left(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.table(
        {
            "example_id": ["train/0", "train/1"],
            "view": pa.array([1, 2], pa.int32()),
            "seed": [1, 2],
            "shape": pa.array([[1], [1]], pa.list_(pa.int32())),
            "pixels": pa.array([[0.5], [0.25]], pa.list_(pa.float32())),
        }
    )
    small_cache(tmp_path / "small", Dense(), replay=replay_file(table))
    cache = open_cache(tmp_path / "small")
    made = subset_of(cache, tmp_path / "made", views=2)
    assert made.replayed_views().to_pylist() == table.to_pylist()[:1]
    assert transcoded(cache, tmp_path / "same", store="parquet").replayed_views().to_pylist() == table.to_pylist()
    assert subset_of(cache, tmp_path / "tests", splits=("test",)).replayed_views() is None


def test_feature_specs_stay(cache: Cache, tmp_path: Path) -> None:
    assert dict(subset_of(cache, tmp_path / "made", first=2).manifest.features) == FEATURES
    assert dataclasses.asdict(FEATURES["block.1"])["shape"] == (2, 3)
