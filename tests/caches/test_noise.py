"""noise: the mean of the teachers' labels plus noise of the right size; made twice, interrupted, refused, as typed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.caches import merge, noise, subset, transcode
from pipeline.caches.difference import DiffConfig
from pipeline.caches.difference import run as diff
from pipeline.caches.noising import FLOOR
from pipeline.encodings import Dense, TopK
from pipeline.errors import CacheCorruptError, CacheMismatchError, ConfigError, TemperatureError
from pipeline.store import Cache, CacheWriter, Part, open_cache, verify
from tests.caches.noisy import CLASSES, ROWS, configured, dumped, logits_by, noisy, probabilities, softmax
from tests.store.small import files_of

pytestmark = pytest.mark.usefixtures("own_notes")


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
        ours, theirs = (
            np.concatenate([c.index(p).seeds for p in c.parts_of("train", view)]) for c in (made, teachers[0])
        )
        np.testing.assert_array_equal(ours, theirs)


def test_caches_of_other_part_sizes_and_encodings_have_a_mean(tmp_path: Path) -> None:
    caches = [
        dumped(tmp_path / "a", 0, part_size=5),
        dumped(tmp_path / "b", 1, encoding=Dense("float16")),
        dumped(tmp_path / "c", 2, encoding=TopK(CLASSES, "float32", (1.0, 2.0))),
    ]
    made = noisy(tmp_path / "made", *caches, sigma=1e-9, temperature=2.0)
    np.testing.assert_allclose(probabilities(made, 2.0), mean_of(made, [0, 1, 2], 2.0), atol=2e-3)


def test_a_student_sees_labels_that_are_right_on_average(teachers: list[Cache], tmp_path: Path) -> None:
    clean, made = mean_of(teachers[0], [0, 1, 2], 1.0), noisy(tmp_path / "made", *teachers, sigma=0.2)
    found = probabilities(made, 1.0)
    assert 0.02 < np.abs(found - clean).mean() < 0.2
    assert np.corrcoef(found.ravel(), clean.ravel())[0, 1] > 0.6


def test_the_card_says_what_may_be_claimed(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers, epsilon=10.0, disjoint=True)
    card = (Path(made.address) / "README.md").read_text()
    for words in (
        "epsilon = 10, delta = 1e-05",
        "one training record",
        "Not covered",
        "sqrt(2) / 3",
        "Not what a teacher",
    ):
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
def test_caches_that_have_no_mean(teachers: list[Cache], tmp_path: Path, change: dict[str, Any], words: str) -> None:
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
        config = subset.SubsetConfig(
            cache=teachers[number].address, out=tmp_path / f"two{number}", ids=tmp_path / "ids"
        )
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


@pytest.fixture
def made(teachers: list[Cache], tmp_path: Path) -> Cache:
    return noisy(tmp_path / "noisy", *teachers, epsilon=20.0, disjoint=True)


def test_what_is_made_of_it_says_so_too(made: Cache, tmp_path: Path) -> None:
    for name, run in (
        (
            "top",
            lambda out: transcode.run(transcode.TranscodeConfig(cache=made.address, out=out, encoding="topk", k=2)),
        ),
        ("part", lambda out: subset.run(subset.SubsetConfig(cache=made.address, out=out, first=3))),
    ):
        run(tmp_path / name)
        found = open_cache(tmp_path / name)
        assert next(step["verb"] for step in found.manifest.lineage) == "noise"
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
