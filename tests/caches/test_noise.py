"""noise: the mean of the teachers' labels plus noise of the right size, and nothing in the cache that tells more."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from pipeline.caches import merge, noise, subset, transcode
from pipeline.caches.difference import DiffConfig
from pipeline.caches.difference import run as diff
from pipeline.caches.noising import FLOOR, bytes_for, logits_of, normals, onto_simplex, with_noise
from pipeline.encodings import Dense, Encoding, TopK
from pipeline.errors import CacheCorruptError, CacheMismatchError, ConfigError, TemperatureError
from pipeline.fidelity import Fidelity
from pipeline.identity import digest, view_seed
from pipeline.store import Cache, CacheWriter, FeatureSpec, IndexRows, Layout, Part, open_cache, replay_file, verify
from tests.store.small import files_of

CLASSES = 6
SPLITS = {"train": (21, 3), "test": (9, 1)}
ROWS = 21 * 3 + 9


@pytest.fixture(autouse=True)
def _own_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "notes"))


def logits_by(teacher: int, part: Part) -> np.ndarray:
    rows = [np.random.default_rng([teacher, part.view, len(part.split), part.first + n]) for n in range(part.entries)]
    return np.stack([4 * random.standard_normal(CLASSES) for random in rows]).astype(np.float32)


def dumped(folder: Path, teacher: int, *, encoding: Encoding | None = None, part_size: int = 8, **more: Any) -> Cache:
    """A cache as a dump would make it, with fidelity, a feature and a recorded view; ``more`` goes into its identity."""
    encoding = encoding or Dense()
    layout = Layout.of(SPLITS, part_size)
    body = {
        "teacher": {"reference": "cnn-8", "args": {}, "state": digest(teacher), "precision": "float32"},
        "data": {"digest": "cd" * 32, "examples": 30},
        "preprocessing": "none",
        "class_names": [f"class {n}" for n in range(CLASSES)],
        "views": {"transform": "flip", "seed": 0, "count": 3},
        "encoding": encoding.describe(),
        "store": "zarr",
        "part_size": part_size,
        "splits": ["train", "test"],
        "features": {"hint": "block.1"},
        "made_on": "a field that a later release may add",
        **more,
    }
    identity = {**body, "digest": digest(body)}
    specs = {"hint": FeatureSpec((2,))}
    writer = CacheWriter(folder, layout, encoding, classes=CLASSES, features=specs, identity=identity["digest"])
    for part in layout.parts:
        numbers = range(part.first, part.first + part.entries)
        ids = [f"{part.split}/{n}" for n in numbers]
        logits = logits_by(teacher, part)
        index = IndexRows(
            example_ids=ids,
            view=part.view,
            split=part.split,
            seeds=np.array([view_seed(0, i, part.view) for i in ids], np.int64),
            labels=np.array([n % CLASSES for n in numbers], np.int64),
            input_digests=None if part.view else [digest(i) for i in ids],
        )
        fidelity = Fidelity(encoding, CLASSES)
        fidelity.count(logits.argmax(1), index.labels)
        arrays = encoding.encode(logits)
        fidelity.compare(logits, arrays)
        hint = {"hint": logits[:, :2].astype(np.float16)}
        statistics = {"bound": encoding.bound(arrays, CLASSES), "secret": float(logits[0, 0]), **fidelity.totals()}
        writer.write_part(part, arrays, index, hint, statistics)
    table = pa.table(
        {
            "example_id": ["train/0"],
            "view": pa.array([1], pa.int32()),
            "seed": [1],
            "shape": pa.array([[1]], pa.list_(pa.int32())),
            "pixels": pa.array([[0.5]], pa.list_(pa.float32())),
        }
    ).replace_schema_metadata({"teacher": f"weights {digest(teacher)}"})
    writer.finalise(
        {
            "identity": identity,
            "class_names": body["class_names"],
            "fidelity": {"teacher_accuracy": {"train": 0.123456789}, "kl": {}},
            "replay": replay_file(table),
        }
    )
    return open_cache(folder)


@pytest.fixture
def teachers(tmp_path: Path) -> list[Cache]:
    return [dumped(tmp_path / f"teacher{n}", n) for n in range(3)]


def configured(out: Path, *caches: Cache, **options: Any) -> noise.NoiseConfig:
    options = options if "epsilon" in options or "sigma" in options else {"sigma": 0.1, **options}
    return noise.NoiseConfig(caches=tuple(str(c.address) for c in caches), out=out, **options)


def noisy(out: Path, *caches: Cache, **options: Any) -> Cache:
    noise.run(configured(out, *caches, **options))
    found = open_cache(out)
    report = verify(found)
    assert report.ok, report.problems
    return found


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    z = logits.astype(np.float64) / temperature
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def probabilities(cache: Cache, temperature: float) -> np.ndarray:
    return np.concatenate([softmax(cache.decode(cache.read_part(p)).logits, temperature) for p in cache.parts])


def mean_of(cache: Cache, numbers: list[int], temperature: float) -> np.ndarray:
    parts = cache.manifest.layout.parts
    return np.concatenate([np.mean([softmax(logits_by(n, p), temperature) for n in numbers], 0) for p in parts])


@pytest.mark.parametrize("store", ["zarr", "parquet"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_without_noise_to_speak_of_it_is_the_mean(
    teachers: list[Cache], tmp_path: Path, store: str, temperature: float
) -> None:
    made = noisy(tmp_path / "made", *teachers, sigma=1e-9, temperature=temperature, store=store, part_size=5)
    expected = mean_of(made, [0, 1, 2], temperature)
    np.testing.assert_allclose(probabilities(made, temperature), expected, atol=CLASSES * FLOOR + 3e-7)
    assert made.manifest.store == store
    assert made.ids("train") == teachers[0].ids("train") and made.encoding == Dense()
    assert made.input_digests("train") == teachers[0].input_digests("train")
    for view in made.views("train"):
        ours, theirs = (np.concatenate([c.index(p).seeds for p in c.parts_of("train", view)]) for c in (made, teachers[0]))
        np.testing.assert_array_equal(ours, theirs)


def test_caches_of_other_part_sizes_and_encodings_have_a_mean(tmp_path: Path) -> None:
    caches = [
        dumped(tmp_path / "a", 0, part_size=5),
        dumped(tmp_path / "b", 1, encoding=Dense("float16")),
        dumped(tmp_path / "c", 2, encoding=TopK(CLASSES, "float32", (1.0, 2.0))),
    ]
    made = noisy(tmp_path / "made", *caches, sigma=1e-9, temperature=2.0)
    np.testing.assert_allclose(probabilities(made, 2.0), mean_of(made, [0, 1, 2], 2.0), atol=2e-3)


def test_the_noise_has_the_size_that_the_account_says() -> None:
    """Before it is put back onto the simplex: what was added is normal with deviation sigma, in every coordinate."""
    probs = np.random.default_rng(0).dirichlet(np.ones(7), size=20_000)
    for sigma in (1e-3, 0.3, 40.0):
        added = (with_noise(probs, sigma, bytes_for(0, None)) - probs) / sigma
        assert added.std(axis=0) == pytest.approx(np.ones(7), rel=0.05)
        assert abs(added.mean()) < 5 / math.sqrt(added.size)
        correlation = np.corrcoef(added.T) - np.eye(7)
        assert np.abs(correlation).max() < 0.05


def test_the_normal_numbers_are_normal() -> None:
    from scipy import stats

    found = normals(bytes_for(3, 0), 200_001)
    assert found.shape == (200_001,)
    assert stats.kstest(found, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(found[:100_000], found[100_001:])[0, 1]) < 0.02  # cosine and sine of one angle
    tails = np.mean(np.abs(found) > 3)
    assert tails == pytest.approx(math.erfc(3 / math.sqrt(2)), rel=0.2)
    with np.errstate(all="raise"):
        assert np.isfinite(normals(lambda count: bytes(count), 4)).all()
        assert np.isfinite(normals(lambda count: b"\xff" * count, 4)).all()


def test_noisy_values_lie_on_a_grid_that_shows_nothing_of_the_labels() -> None:
    probs = np.random.default_rng(1).dirichlet(np.ones(5), size=100)
    for sigma in (0.3, 1.0, 17.0):
        steps = with_noise(probs, sigma, bytes_for(0, 1)) / (2.0 ** math.floor(math.log2(sigma)) * 2.0**-20)
        np.testing.assert_array_equal(steps, np.rint(steps))


def test_the_projection_is_the_nearest_distribution() -> None:
    random = np.random.default_rng(2)
    values = random.normal(0, 1, size=(40, 5)) * np.array([0.01, 0.3, 1, 10])[:, None].repeat(10, 0).reshape(40, 1)
    found = onto_simplex(values)
    assert (found >= 0).all() and found.sum(1) == pytest.approx(np.ones(40))
    # The condition of Karush, Kuhn and Tucker: no distribution lies on the far side of the plane through the projection.
    corners = np.eye(5)
    away = np.einsum("nc,nkc->nk", values - found, corners[None] - found[:, None])
    assert (away <= 1e-9).all()
    inside = random.dirichlet(np.ones(5), size=20)
    np.testing.assert_allclose(onto_simplex(inside), inside, atol=1e-12)


def test_what_is_stored_gives_the_noisy_mean_at_the_temperature() -> None:
    probs = onto_simplex(np.random.default_rng(3).normal(0.1, 0.5, size=(50, 10)))
    assert (probs == 0).any()
    for temperature in (0.5, 1.0, 4.0, 100.0):
        found = softmax(logits_of(probs, temperature), temperature)
        np.testing.assert_allclose(found, probs, atol=10 * FLOOR + 1e-6)
        assert found.min() >= 0.9 * FLOOR


def test_a_student_sees_labels_that_are_right_on_average(teachers: list[Cache], tmp_path: Path) -> None:
    clean, made = mean_of(teachers[0], [0, 1, 2], 1.0), noisy(tmp_path / "made", *teachers, sigma=0.2)
    found = probabilities(made, 1.0)
    assert 0.02 < np.abs(found - clean).mean() < 0.2
    assert np.corrcoef(found.ravel(), clean.ravel())[0, 1] > 0.6


# What a derived cache would carry over, and what of it tells of the answers or of the weights without any noise.


def everything_of(cache: Cache) -> bytes:
    """All bytes of a cache's small files, and the texts in its Parquet files."""
    found = []
    for path in sorted(Path(cache.address).rglob("*")):
        if path.is_file():
            found.append(path.read_bytes())
            if path.suffix == ".parquet":
                table = pa.parquet.read_table(path)
                found.append(repr((table.schema.metadata, table.to_pydict())).encode())
    return b"\n".join(found)


def test_no_digest_of_weights_or_of_a_source_is_left(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers)
    held = everything_of(made)
    for cache in teachers:
        assert cache.identity["teacher"]["state"] and made.identity["teacher"]["state"] is None
        for secret in (cache.digest, cache.identity["teacher"]["state"]):
            assert secret[:12].encode() not in held
        assert cache.address.encode() not in held
    assert b"weights" not in (Path(made.address) / "views.parquet").read_bytes()
    assert "made_on" not in made.identity and made.manifest.lineage[0]["from"] == []
    assert [step["verb"] for step in made.manifest.lineage] == ["noise"]


def test_the_lineage_of_a_source_is_not_carried_over(teachers: list[Cache], tmp_path: Path) -> None:
    halves = []
    for number, cache in enumerate(teachers):
        config = subset.SubsetConfig(cache=cache.address, out=tmp_path / f"half{number}", first=4, views=1)
        subset.run(config)
        halves.append(open_cache(config.out))
    made = noisy(tmp_path / "made", *halves)
    held = everything_of(made)
    assert all(cache.digest.encode() not in held for cache in [*teachers, *halves]) and b"0.123456789" not in held
    assert made.manifest.lineage[0]["options"]["rows"] == 8


def test_fidelity_is_that_of_the_noisy_labels(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers, sigma=5.0)
    fidelity = made.manifest.fidelity
    assert fidelity["kl"] == {} and fidelity["entries_compared"] == 0 and fidelity["top1_agreement"] is None
    assert made.manifest.bound == 0.0
    for split in made.splits():
        parts = [p for view in made.views(split) for p in made.parts_of(split, view)]
        right = [made.decode(made.read_part(p)).logits.argmax(1) == made.index(p).labels for p in parts]
        assert fidelity["teacher_accuracy"][split] == pytest.approx(float(np.concatenate(right).mean()))


def test_statistics_of_parts_are_those_of_the_noisy_labels(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers, part_size=teachers[0].part_size)
    assert "secret" in teachers[0].parts[0].statistics
    for record in made.parts:
        assert set(record.statistics) == {"labelled", "correct", "bound"}
        predicted = made.decode(made.read_part(record)).logits.argmax(1)
        assert record.statistics["correct"] == int((predicted == made.index(record).labels).sum())


def test_a_lossy_source_does_not_show_in_the_bound(tmp_path: Path) -> None:
    source = dumped(tmp_path / "a", 0, encoding=Dense("int8"))
    assert source.manifest.bound > 0
    assert noisy(tmp_path / "made", source).manifest.bound == 0.0


def test_features_are_gone(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers)
    assert teachers[0].feature_names == ("hint",) and made.feature_names == ()
    assert not list(Path(made.address).glob("features*")) and made.identity["features"] == {}


def test_replayed_views_hold_images_and_nothing_else(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers)
    table = made.replayed_views()
    assert table.column_names == ["example_id", "view", "seed", "shape", "pixels"]
    assert table.to_pylist() == teachers[0].replayed_views().to_pylist()
    assert not table.schema.metadata


def test_the_card_says_what_may_be_claimed(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers, epsilon=10.0, disjoint=True)
    card = (Path(made.address) / "README.md").read_text()
    for words in ("epsilon = 10, delta = 1e-05", "one training record", "Not covered", "sqrt(2) / 3", "Not what a teacher"):
        assert words in card, words
    assert "Exact: the logits" not in card and "The teacher's most probable" not in card
    step = made.manifest.lineage[0]
    assert step["options"]["rows"] == ROWS and step["options"]["teachers"] == 3 and step["options"]["seed"] is None
    assert step["options"]["sensitivity"] == pytest.approx(math.sqrt(2 * ROWS) / 3)


def test_without_the_word_for_it_no_record_is_protected(teachers: list[Cache], tmp_path: Path) -> None:
    shared = noisy(tmp_path / "shared", *teachers, epsilon=10.0, disjoint=True).manifest.lineage[0]
    whole = noisy(tmp_path / "whole", *teachers, epsilon=10.0).manifest.lineage[0]
    assert whole["options"]["sigma"] == pytest.approx(3 * shared["options"]["sigma"])
    assert "training record" in shared["account"]["claim"] and "3 teachers together" in whole["account"]["claim"]


def test_a_seed_makes_the_same_bytes_and_voids_the_claim(teachers: list[Cache], tmp_path: Path) -> None:
    one = noisy(tmp_path / "one", *teachers, seed=7)
    again = noisy(tmp_path / "again", *teachers, seed=7)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "again")
    assert one.manifest.lineage[0]["account"]["claim"].startswith("No privacy is claimed")
    assert "No privacy is claimed" in (tmp_path / "one" / "README.md").read_text()
    other = noisy(tmp_path / "other", *teachers, seed=8)
    assert other.digest != one.digest and not np.array_equal(probabilities(other, 1.0), probabilities(one, 1.0))
    fewer = noisy(tmp_path / "fewer", *teachers[:2], seed=7)
    swapped = noisy(tmp_path / "swapped", *teachers[1:], seed=7)
    assert fewer.digest != swapped.digest
    assert again.digest == one.digest


def test_drawn_in_secret_two_makings_differ(teachers: list[Cache], tmp_path: Path) -> None:
    one, other = (noisy(tmp_path / name, *teachers, part_size=8) for name in ("one", "other"))
    assert one.digest != other.digest
    assert not np.array_equal(probabilities(one, 1.0), probabilities(other, 1.0))
    parts = [one.decode(one.read_part(p)).logits for p in one.parts_of("train", 0)]
    assert not np.array_equal(parts[0], parts[1])


def test_made_twice_in_one_place_it_is_found_finished(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers)
    before = files_of(tmp_path / "made")
    report = noise.run(configured(tmp_path / "made", *teachers))
    assert report.built.resumed == len(made.parts) and files_of(tmp_path / "made") == before


def test_other_teachers_are_another_cache_though_the_cache_does_not_name_them(
    teachers: list[Cache], tmp_path: Path
) -> None:
    made = noisy(tmp_path / "made", *teachers[:2])
    with pytest.raises(ConfigError, match="--overwrite"):
        noise.run(configured(tmp_path / "made", *teachers[1:]))
    assert noisy(tmp_path / "made", *teachers[1:], overwrite=True).digest != made.digest


@pytest.mark.parametrize("seed", [None, 5])
def test_it_resumes_from_the_parts_that_are_written(
    teachers: list[Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int | None
) -> None:
    written, kept = CacheWriter.write_part, []

    def failing(self: CacheWriter, part: Part, arrays: Any, *arguments: Any, **more: Any) -> Any:
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(arrays["logits"])
        return written(self, part, arrays, *arguments, **more)

    config = configured(tmp_path / "made", *teachers, seed=seed, part_size=5)
    monkeypatch.setattr(CacheWriter, "write_part", failing)
    with pytest.raises(KeyboardInterrupt):
        noise.run(config)
    assert not (tmp_path / "made").exists()
    monkeypatch.setattr(CacheWriter, "write_part", written)
    assert noise.run(config).built.resumed == 3
    made = open_cache(tmp_path / "made")
    assert verify(made).ok
    for number, logits in enumerate(kept):
        np.testing.assert_array_equal(made.read_part(number)["logits"], logits)
    if seed is not None:
        noise.run(configured(tmp_path / "whole", *teachers, seed=seed, part_size=5))
        assert files_of(tmp_path / "made") == files_of(tmp_path / "whole")


def test_a_cache_that_was_thrown_away_is_drawn_anew(teachers: list[Cache], tmp_path: Path) -> None:
    import shutil

    one = noisy(tmp_path / "made", *teachers).digest
    shutil.rmtree(tmp_path / "made")
    assert noisy(tmp_path / "made", *teachers).digest != one


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"preprocessing": "halved"}, "preprocessing"),
        ({"views": {"transform": "flip", "seed": 1, "count": 3}}, "views"),
    ],
)
def test_caches_that_have_no_mean(
    teachers: list[Cache], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    odd = dumped(tmp_path / "odd", 9, **change)
    with pytest.raises(CacheMismatchError, match=words):
        noise.run(configured(tmp_path / "x", teachers[0], odd))
    assert not (tmp_path / "x").exists()


def test_other_examples_and_splits_have_no_mean(teachers: list[Cache], tmp_path: Path) -> None:
    for name, options in (("splits", {"splits": ("train",)}), ("examples", {"ids": tmp_path / "ids"})):
        (tmp_path / "ids").write_text("\n".join([*(f"train/{n}" for n in range(20)), *(f"test/{n}" for n in range(8))]))
        subset.run(subset.SubsetConfig(cache=teachers[1].address, out=tmp_path / name, **options))
        with pytest.raises(CacheMismatchError, match="splits or numbers"):
            noise.run(configured(tmp_path / "x", teachers[0], open_cache(tmp_path / name)))
    for number, ids in enumerate((("train/0", "train/1"), ("train/0", "train/2"))):
        (tmp_path / "ids").write_text("\n".join(ids))
        config = subset.SubsetConfig(cache=teachers[number].address, out=tmp_path / f"two{number}", ids=tmp_path / "ids")
        subset.run(config)
    with pytest.raises(CacheMismatchError, match="examples, or another order"):
        noise.run(configured(tmp_path / "x", *(open_cache(tmp_path / f"two{n}") for n in range(2))))


def test_one_teacher_is_not_disjoint_from_itself(teachers: list[Cache], tmp_path: Path) -> None:
    twin = dumped(tmp_path / "twin", 0, part_size=5)
    with pytest.raises(ConfigError, match="not disjoint from itself"):
        noise.run(configured(tmp_path / "x", teachers[0], twin, disjoint=True))
    noise.run(configured(tmp_path / "y", teachers[0], twin))


def test_noise_is_not_added_twice(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers)
    with pytest.raises(ConfigError, match="noisy already"):
        noise.run(configured(tmp_path / "x", made))


def test_a_temperature_that_was_not_kept(tmp_path: Path) -> None:
    top = dumped(tmp_path / "top", 0, encoding=TopK(2, "float32", (4.0,)))
    with pytest.raises(TemperatureError, match="keeps T = 4"):
        noise.run(configured(tmp_path / "x", top))
    assert noisy(tmp_path / "made", top, temperature=4.0).encoding == Dense()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma": None}, "--epsilon or --sigma"),
        ({"sigma": 1.0, "epsilon": 1.0}, "one of the two"),
        ({"sigma": 0.0}, "--sigma should be a number above 0"),
        ({"sigma": math.inf}, "--sigma should be a number above 0"),
        ({"epsilon": -1.0}, "--epsilon should be a number above 0"),
        ({"delta": 1.0}, "--delta"),
        ({"temperature": 0.0}, "--temperature"),
        ({"seed": -1}, "--seed"),
        ({"disjoint": True}, "several teachers"),
        ({"caches": ("a", "a")}, "named twice"),
        ({"caches": ()}, "at least one cache"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], words: str) -> None:
    options = options if {"sigma", "epsilon"} & set(options) else {"sigma": 1.0, **options}
    with pytest.raises(ConfigError, match=words):
        noise.NoiseConfig(**{"caches": ("a",), "out": Path("x"), **options})


def test_a_damaged_source_is_an_error_not_a_cache(teachers: list[Cache], tmp_path: Path) -> None:
    shard = next(p for p in (Path(teachers[2].address) / "labels.zarr").rglob("c.*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CacheCorruptError):
        noise.run(configured(tmp_path / "made", *teachers))
    assert not (tmp_path / "made").exists()


# What is made of a noisy cache, and what is asked of it.


@pytest.fixture
def made(teachers: list[Cache], tmp_path: Path) -> Cache:
    return noisy(tmp_path / "noisy", *teachers, epsilon=20.0, disjoint=True)


def test_what_is_made_of_it_says_so_too(made: Cache, tmp_path: Path) -> None:
    for name, run in (
        ("top", lambda out: transcode.run(transcode.TranscodeConfig(cache=made.address, out=out, encoding="topk", k=2))),
        ("part", lambda out: subset.run(subset.SubsetConfig(cache=made.address, out=out, first=3))),
    ):
        run(tmp_path / name)
        found = open_cache(tmp_path / name)
        assert [step["verb"] for step in found.manifest.lineage][0] == "noise"
        card = (tmp_path / name / "README.md").read_text()
        assert "epsilon = 20" in card and "the teacher while dumping" not in card and "Exact: the logits" not in card
    assert "not the teacher" in open_cache(tmp_path / "top").manifest.fidelity["measured_against"]


def test_it_is_not_merged_and_its_teacher_not_asked(made: Cache, teachers: list[Cache], tmp_path: Path) -> None:
    with pytest.raises(CacheMismatchError, match="does not know which teacher"):
        merge.run(merge.MergeConfig(caches=(made.address, teachers[0].address), out=tmp_path / "x"))
    report = diff(DiffConfig(one=teachers[0].address, other=made.address))
    assert report.compared == ROWS and report.kl["1"]["mean"] > 0


def invoke(*arguments: str) -> Any:
    from stages.cache import command

    return CliRunner().invoke(command, arguments)


def test_as_typed(teachers: list[Cache], tmp_path: Path) -> None:
    names = [cache.address for cache in teachers]
    done = invoke("noise", *names, "--disjoint", "--epsilon", "5", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    for words in ("entries in", "epsilon = 5, delta = 1e-05", "one training record", "Not covered"):
        assert words in done.output
    shown = invoke("inspect", str(tmp_path / "out")).output
    assert "made by noise" in shown and "Differential privacy" in shown and "0: exact" not in shown
    assert invoke("verify", str(tmp_path / "out")).exit_code == 0
    again = invoke("noise", *names, "--disjoint", "--epsilon", "5", "--out", str(tmp_path / "out"), "--json")
    account = json.loads(again.output)["account"]
    assert account["epsilon"] == 5 and account["unit"] == "one training record" and account["seed"] is None
    seeded = invoke("noise", *names, "--sigma", "1", "--seed", "3", "--out", str(tmp_path / "seeded"))
    assert "No privacy is claimed" in seeded.output
    assert "VOIDS" in invoke("noise", "--help").output


def test_the_teacher_cannot_be_asked_about_noisy_labels(tmp_path: Path) -> None:
    from pipeline.verification import VerifyConfig, verify_with_teacher
    from tests.stages.test_cache import teacher_in

    config, run = _digits(tmp_path, teacher_in(tmp_path))
    run(config)
    with pytest.raises(CacheMismatchError, match="noisy labels"):
        verify_with_teacher(
            VerifyConfig(cache=str(config.out), teacher="mlp-8", weights=tmp_path / "teacher0.safetensors")
        )


def test_a_student_trains_from_it(tmp_path: Path) -> None:
    from pipeline.training import TrainConfig
    from pipeline.training import run as train
    from tests.stages.test_cache import teacher_in

    config, run = _digits(tmp_path, teacher_in(tmp_path))
    run(config)
    report = train(TrainConfig(cache=str(config.out), student="mlp-8", temperature=1.0, epochs=1, out=tmp_path / "run"))
    assert len(report.seeds) == 1


def _digits(tmp_path: Path, weights: Path) -> tuple[noise.NoiseConfig, Callable[..., Any]]:
    from pipeline.dump import DumpConfig
    from pipeline.dump import run as dump

    dump(DumpConfig(teacher="mlp-8", weights=weights, out=tmp_path / "digits", views=0))
    return noise.NoiseConfig(caches=(str(tmp_path / "digits"),), out=tmp_path / "noisy", sigma=0.1), noise.run
