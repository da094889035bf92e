"""What a plan is made of: the draw, sizes, angles, break-even, the choice."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline import encodings
from pipeline.encodings import Dense, TopK
from pipeline.errors import ConfigError, EncodingError
from pipeline.planning import Estimate, PlanConfig, choose
from pipeline.planning.angles import Angles, angle, gradient_angles, stand_in
from pipeline.planning.config import default_k, parse_bytes
from pipeline.planning.estimates import break_even
from pipeline.planning.report import human_seconds
from pipeline.planning.sampling import Sample, shares
from pipeline.planning.sizes import array_size, over_parts
from pipeline.store import Group, Layout
from pipeline.store.fitting import label_backend

LOGITS = (np.random.default_rng(0).standard_normal((5000, 60)) * 3).astype(np.float32)


def test_bytes_are_parsed():
    assert [parse_bytes(text) for text in ("50GB", "500MB", "1GiB", "2 kb", "1,000", "1.5T", "7 KiB")] == [
        50 * 10**9,
        500 * 10**6,
        2**30,
        2000,
        1000,
        15 * 10**11,
        7 * 1024,
    ]
    for text in ("", "GB", "-5GB", "5 XB", "5 GB of it", "5I", "1e9", "nan"):
        with pytest.raises(ConfigError, match="--budget"):
            parse_bytes(text)


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 8, 10, 100, 1000, 21_841, 128_256])
def test_default_k_lies_within_the_classes(classes: int):
    found = default_k(classes)
    assert 1 <= len(found) <= 5 and found == tuple(sorted(set(found)))
    assert all(1 <= k <= max(1, classes / 2) for k in found)


def test_the_sample_has_the_proportions_of_the_dump():
    groups = (*(Group("train", view, 6000) for view in range(4)), Group("validation", 0, 3000), Group("test", 0, 3))
    assert shares(groups, 540).tolist() == [120, 120, 120, 120, 60, 1]
    assert shares(groups, 10**6).tolist() == [group.entries for group in groups]
    assert (shares(groups, 1) == 1).all()


@pytest.mark.parametrize("store", ["zarr", "parquet"])
@pytest.mark.parametrize(
    "encoding",
    [Dense("float32"), Dense("float16"), Dense("int8"), TopK(6, "float16", (1.0, 4.0)), TopK(60), TopK(9, "int4")],
)
def test_a_tenth_of_the_rows_tells_the_bytes_of_all(encoding: encodings.Encoding, store: str):
    layout = Layout.of({"train": (4000, 1), "test": (1000, 1)}, part_size=1500)
    backend = label_backend(store, encoding, 60, layout)
    every = encoding.encode(LOGITS)
    actual, first = 0, 0
    for part in layout.parts:
        rows = {name: value[first : first + part.entries] for name, value in every.items()}
        actual += sum(len(data) for data in backend.encode(part, rows).values())
        first += part.entries
    tenth = {name: np.ascontiguousarray(value[::10]) for name, value in every.items()}
    assert over_parts(array_size(backend, tenth, layout), layout) == pytest.approx(actual, rel=0.02)


@pytest.mark.parametrize("store", ["zarr", "parquet"])
def test_a_tenth_of_the_positions_tells_the_bytes_of_draws(store: str):
    lengths = np.random.default_rng(3).integers(1, 9, 1100)
    lengths[-1] = 5000 - lengths[:-1].sum()
    layout = Layout.ragged({"train": (lengths, 1)}, part_size=300)
    encoding = encodings.Sampled(12)
    backend = label_backend(store, encoding, 60, layout)
    keys = np.arange(5000, dtype=np.uint64)
    actual, first = 0, 0
    for part in layout.parts:
        rows = slice(first, first + part.positions)
        first += part.positions
        actual += sum(len(data) for data in backend.encode(part, encoding.encode(LOGITS[rows], keys[rows])).values())
    tenth = array_size(backend, encoding.encode(LOGITS[::10], keys[::10]), layout)
    assert over_parts(tenth, layout) == pytest.approx(actual, rel=0.03)


def test_what_is_not_compressed_is_exact():
    layout = Layout.of({"train": (3777, 2), "test": (13, 1)}, part_size=1000)
    for encoding in (Dense("float32"), Dense("float16")):
        backend = label_backend("zarr", encoding, 60, layout)
        zeros = encoding.encode(np.zeros((1000, 60), np.float32))
        actual = sum(
            sum(map(len, backend.encode(part, {n: v[: part.entries] for n, v in zeros.items()}).values()))
            for part in layout.parts
        )
        assert over_parts(array_size(backend, encoding.encode(LOGITS[:3]), layout), layout) == actual


def test_angles_of_dense_gradients_are_those_of_the_closed_form():
    temperature, encoding = 3.0, Dense("int8")
    student = stand_in("half_trained", LOGITS[:50], 0)
    kept = encoding.decode(encoding.encode(LOGITS[:50]), 60)
    found = gradient_angles(LOGITS[:50], kept, student, temperature)

    def softmax(logits: np.ndarray) -> np.ndarray:
        e = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
        return e / e.sum(axis=1, keepdims=True)

    full, other = (softmax(student) - softmax(np.asarray(each, float)) for each in (LOGITS[:50], kept.logits))
    cosines = (full * other).sum(axis=1) / np.linalg.norm(full, axis=1) / np.linalg.norm(other, axis=1)
    assert found.rows == pytest.approx(np.degrees(np.arccos(cosines)).mean(), rel=1e-3)
    mean, kept_mean = full.mean(axis=0), other.mean(axis=0)
    cosine = mean @ kept_mean / np.linalg.norm(mean) / np.linalg.norm(kept_mean)
    assert found.batch == pytest.approx(math.degrees(math.acos(cosine)), rel=1e-3)


def test_errors_that_differ_from_row_to_row_cancel_in_the_batch_and_a_bias_does_not():
    random = np.random.default_rng(1)
    student = np.zeros((400, 10))
    shared = np.tile(random.standard_normal(10), (400, 1)).astype(np.float32)
    from pipeline.softlabels import Dense as Labels

    noisy = Labels((shared + random.standard_normal((400, 10))).astype(np.float32))
    biased = Labels((shared + np.tile(random.standard_normal(10), (400, 1))).astype(np.float32))
    noise, bias = (gradient_angles(shared, kept, student, 1.0) for kept in (noisy, biased))
    assert noise.batch < noise.rows / 3
    assert bias.batch == pytest.approx(bias.rows, rel=1e-4)


def test_small_and_absent_gradients_have_an_angle():
    one = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    other = np.array([[1.0, 1e-9], [-1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    assert angle(one, other) == pytest.approx([math.degrees(1e-9), 180, 0, 90], rel=1e-6)


def test_students_stand_in_the_same_way_for_the_same_seed():
    assert not stand_in("untrained", LOGITS, 0).any()
    half = stand_in("half_trained", LOGITS, 5)
    assert np.array_equal(half, stand_in("half_trained", LOGITS, 5))
    assert not np.array_equal(half, stand_in("half_trained", LOGITS, 6))
    correlation = np.corrcoef(half.ravel(), (LOGITS - LOGITS.mean(axis=1, keepdims=True)).ravel())[0, 1]
    assert correlation == pytest.approx(math.sqrt(0.5), abs=0.02)
    with pytest.raises(ValueError, match="untrained"):
        stand_in("trained", LOGITS, 0)


@pytest.mark.parametrize(
    ("dump", "live", "read"), [(100.0, 7.0, 1.0), (36.0, 7.0, 1.0), (0.0, 1.0, 0.5), (5.0, 9.0, 0)]
)
def test_break_even_is_the_first_epoch_that_pays(dump: float, live: float, read: float):
    epochs = break_even(dump, live, read)
    assert epochs is not None
    assert dump + epochs * read < epochs * live
    assert dump + (epochs - 1) * read >= (epochs - 1) * live


def test_a_teacher_cheaper_than_reading_never_pays():
    assert break_even(1.0, 1.0, 1.0) is None and break_even(1.0, 1.0, 2.0) is None


def test_workers_load_beside_the_teacher(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    sample = Sample((), LOGITS, {}, load_seconds=8.0, forward_seconds=1.0)
    assert sample.seconds_per_entry(0, 0.5) == 9.5
    assert [sample.seconds_per_entry(workers) for workers in (2, 4, 64)] == [4, 2, 2]
    assert sample.seconds_per_entry(4, 3.0) == 4


def test_durations_are_readable():
    assert [human_seconds(s) for s in (45, 120, 7200, 360_000)] == ["45 s", "2.0 min", "2.0 h", "100.0 h"]


def estimate(name: str, total: int, kl: float, problem: str | None = None) -> Estimate:
    angles = {"untrained": Angles(0, 0)}
    kls = {"1": {"mean": 0.0, "max": 0.0}, "4": {"mean": kl, "max": kl}}
    return Estimate(name=name, options={}, problem=problem, bytes={"total": total}, kl=kls, angles=angles)


TABLE = [
    estimate("broken", 0, 0.0, "it cannot"),
    estimate("exact", 1000, 0.0),
    estimate("half", 500, 1e-7),
    estimate("few", 250, 0.02),
    estimate("worse and larger", 300, 0.03),
    estimate("fewer", 100, 0.2),
]


@pytest.mark.parametrize(
    ("budget", "max_kl", "name"),
    [
        (None, None, None),
        ("1kB", None, "exact"),
        ("999", None, "half"),
        ("499", None, "few"),
        ("100", None, "fewer"),
        (None, 0.0, "exact"),
        (None, 0.05, "few"),
        (None, 1.0, "fewer"),
        ("600", 0.001, "half"),
        ("1GB", 0.05, "few"),
    ],
)
def test_the_choice(budget: str | None, max_kl: float | None, name: str | None):
    picked = choose(TABLE, PlanConfig(weights=None, teacher="x:y", budget=budget, max_kl=max_kl))
    assert (picked and picked.name) == name


@pytest.mark.parametrize(
    ("budget", "max_kl", "nearest"),
    [
        ("99", None, ["the smallest, fewer, takes 100 B"]),
        ("99", 0.05, ["the smallest, fewer"]),
        (
            "400",
            1e-3,
            ["most faithful that fits, few, takes 250 B at 0.02", "smallest faithful one, half, takes 500 B"],
        ),
    ],
)
def test_a_choice_that_cannot_be_made_names_the_nearest(budget: str, max_kl: float | None, nearest: list[str]):
    with pytest.raises(EncodingError) as refused:
        choose(TABLE, PlanConfig(teacher="x:y", budget=budget, max_kl=max_kl))
    assert budget in str(refused.value) and all(words in str(refused.value) for words in nearest)


def test_a_table_of_problems_has_nothing_to_choose_from():
    with pytest.raises(EncodingError, match="none can keep"):
        choose(TABLE[:1], PlanConfig(teacher="x:y", max_kl=0.1))
