"""Views that mix two examples: who is mixed, how much of each is seen, and what may be learnt from them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.dataset
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.datasets import Dataset, load_dataset
from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.errors import CacheMismatchError, ConfigError
from pipeline.mixing import Mixed
from pipeline.sampler import Order
from pipeline.sources import replay_views
from pipeline.store import open_cache
from pipeline.teacher import FitTeacherConfig
from pipeline.teacher import run as fit_teacher
from pipeline.training import TrainConfig, fit, prepare
from pipeline.training.objective import Output
from pipeline.training.stage import initial_student
from pipeline.training.supply import Supply
from pipeline.transforms import CutMix, Mixup
from pipeline.views import (
    EntryDataset,
    Views,
    check_replay,
    check_views,
    load_inputs,
    make_views,
    parse_transform,
    view_records,
)

AFFINE = "affine:degrees=15,translate=0.1"


class Marked(Dataset):
    """Examples (2, 6, 10) that hold their own number everywhere; ``order`` decides which row is which."""

    def __init__(self, order: list[int], shape: tuple[int, ...] = (2, 6, 10)) -> None:
        self.order = order
        super().__init__(
            name="marked",
            classes=["a", "b"],
            ids=[f"e{number}" for number in order],
            labels=[number % 2 for number in order],
            input_shape=shape,
            splits=np.array([0 if number < 40 else 2 for number in order]),
        )

    def load(self, row: int) -> Tensor:
        return torch.full(self.input_shape, float(self.order[row]))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def mixing(
    views: Views, dataset: Dataset, rows: Any, view: int = 1
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    return views.mixing(dataset, np.asarray(rows, np.int64), view)


def seen_by_id(views: Views, dataset: Dataset, ids: list[str], view: int = 1) -> Tensor:
    row_of = {example_id: row for row, example_id in enumerate(dataset.ids)}
    return load_inputs(dataset, views, [(row_of[i], view) for i in ids])


class TestDraws:
    def test_partners_are_other_examples_of_the_split_each_as_likely(self) -> None:
        dataset, views = Marked(list(range(50))), make_views("mixup", 2001)
        for split, size in (("train", 40), ("test", 10)):
            rows = dataset.rows(split)
            found = np.concatenate([mixing(views, dataset, rows[:1], view)[0] for view in range(1, 2001)])
            assert set(found.tolist()) == set(rows[1:].tolist())
            counts = np.bincount(found)[rows[1:]]
            expected = 2000 / (size - 1)
            assert np.square(counts - expected).sum() / expected < 2.2 * (size - 1), "chi squared"

    def test_of_a_split_of_one_the_partner_is_itself(self) -> None:
        dataset, views = Marked([3, 45]), make_views("mixup", 2)
        assert mixing(views, dataset, [0, 1])[0].tolist() == [0, 1]
        torch.testing.assert_close(load_inputs(dataset, views, [(0, 1)])[0], dataset.load(0))

    @pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
    def test_shares_are_of_the_beta_distribution(self, alpha: float, digits: Dataset) -> None:
        views = make_views(f"mixup:alpha={alpha}", 4)
        rows = np.arange(len(digits))
        shares = np.concatenate([mixing(views, digits, rows, view)[1] for view in (1, 2, 3)]).astype(np.float64)
        assert shares.mean() == pytest.approx(0.5, abs=0.02)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)
        own = np.sort(np.random.default_rng(0).beta(alpha, alpha, 200_000))
        places = np.searchsorted(own, np.sort(shares)) / len(own)
        assert np.abs(places - np.arange(len(shares)) / len(shares)).max() < 1.6 / np.sqrt(len(shares))

    def test_seed_view_and_id_decide_and_the_transform_before_does_not(self, digits: Dataset) -> None:
        rows = np.arange(200)
        one = mixing(make_views("mixup", 3, seed=1), digits, rows)
        for other in (
            mixing(make_views("mixup", 3, seed=2), digits, rows),
            mixing(make_views("mixup", 3, seed=1), digits, rows, 2),
        ):
            assert (one[0] == other[0]).sum() < 5 and (one[1] == other[1]).sum() == 0
        same = mixing(make_views(f"{AFFINE}+noise+mixup", 3, seed=1), digits, rows[::-1])
        assert (same[0][::-1] == one[0]).all() and (same[1][::-1] == one[1]).all()

    def test_views_of_merged_dumps_are_those_of_each(self, digits: Dataset) -> None:
        transform, text = parse_transform("mixup")
        merged = Views(transform, text, 4, 0, merged=((5, 1), (7, 2)))
        for view, (seed, number) in {1: (5, 1), 2: (7, 1), 3: (7, 2)}.items():
            expected = mixing(make_views("mixup", 3, seed=seed), digits, [4, 9], number)
            assert all((a == b).all() for a, b in zip(mixing(merged, digits, [4, 9], view), expected, strict=True))

    def test_nothing_is_mixed_in_the_plain_view_or_by_another_transform(self, digits: Dataset) -> None:
        assert not make_views(AFFINE, 2).mixed
        for views, view in ((make_views("mixup", 2), 0), (make_views(AFFINE, 2), 1), (Views(), 0)):
            partners, share = mixing(views, digits, [2, 0, 1], view)
            assert partners.tolist() == [2, 0, 1] and share.tolist() == [1.0, 1.0, 1.0]


class TestWhatIsSeen:
    def test_mixup_is_the_weighed_sum(self, digits: Dataset) -> None:
        views, rows = make_views("mixup:alpha=0.7", 3), [0, 5, 900, 1796]
        partners, shares = mixing(views, digits, rows, 2)
        for row, partner, share, seen in zip(
            rows, partners, shares, load_inputs(digits, views, [(r, 2) for r in rows]), strict=True
        ):
            x, other = digits.load(row).double(), digits.load(int(partner)).double()
            expected = float(share) * x + (1 - float(share)) * other
            torch.testing.assert_close(seen.double(), expected, rtol=0, atol=1e-6)

    def test_cutmix_is_a_rectangle_of_the_partner_and_the_share_counts_pixels(self) -> None:
        dataset, views = Marked(list(range(40))), make_views("cutmix", 40)
        whole = 0
        for view in range(1, 40):
            rows = np.arange(40)
            partners, shares = mixing(views, dataset, rows, view)
            seen = load_inputs(dataset, views, [(row, view) for row in rows])
            for row in rows:
                own, theirs = seen[row] == float(row), seen[row] == float(partners[row])
                assert bool((own ^ theirs).all()), "every pixel is of one of them"
                assert float(own.double().mean()) == pytest.approx(float(shares[row]), abs=1e-6)
                assert bool((theirs[0] == theirs[1]).all()), "all channels alike"
                if theirs.any():
                    down, across = theirs[0].any(dim=1), theirs[0].any(dim=0)
                    assert torch.equal(theirs[0], down[:, None] & across[None, :])
                    assert [bool(line.int().diff().abs().sum() <= 2) for line in (down, across)] == [True, True]
                whole += int(theirs.all())
        assert whole < 40

    def test_cutmix_boxes_as_computed_by_hand(self) -> None:
        # A quarter of the area: half of each side, centred at row 3 of 6 and column 9 of 10, two columns outside.
        assert CutMix().share(0.75, (0.5, 0.95), (2, 6, 10)) == 1 - 3 * 3 / 60
        x, partner = torch.zeros(2, 6, 10), torch.ones(2, 6, 10)
        mixed = CutMix().mix(x, partner, 0.75, (0.5, 0.95))
        expected = torch.zeros(2, 6, 10)
        expected[:, 2:5, 7:10] = 1
        assert torch.equal(mixed, expected) and float(x.sum()) == 0
        assert CutMix().share(1.0, (0.2, 0.2), (1, 8, 8)) == 1
        assert CutMix().share(0.0, (0.5, 0.5), (1, 8, 8)) == 0

    @given(st.floats(0, 1), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.integers(1, 9))
    def test_shares_of_cutmix_stay_within_0_and_1(self, drawn: float, down: float, across: float, side: int) -> None:
        share = CutMix().share(drawn, (down, across), (3, side, 7))
        assert 0 <= share <= 1
        seen = CutMix().mix(torch.zeros(3, side, 7), torch.ones(3, side, 7), drawn, (down, across))
        assert float(1 - seen.mean()) == pytest.approx(share, abs=1e-6)

    def test_the_steps_before_act_on_both_with_draws_of_their_own(self, digits: Dataset) -> None:
        views = make_views("noise:std=0.1+mixup", 2)
        (partner,), (share,) = mixing(views, digits, [7])
        seen = load_inputs(digits, views, [(7, 1)])[0]
        random = torch.Generator().manual_seed(views.seed_of(digits.ids[7], 1))
        x = digits.load(7) + 0.1 * torch.randn(1, 8, 8, generator=random)
        other = digits.load(int(partner)) + 0.1 * torch.randn(1, 8, 8, generator=random)
        torch.testing.assert_close(seen, x * float(share) + other * (1 - float(share)), rtol=0, atol=1e-6)

    def test_transforms_of_ones_own_come_before_and_write_where_they_like(self, digits: Dataset) -> None:
        def spoil(x: Tensor) -> Tensor:
            return x.mul_(float(np.random.rand()))

        views = Views(Mixed(Mixup(), spoil), "spoil+mixup", 3)
        held, before = EntryDataset(digits, views), torch.stack([digits.load(row) for row in range(len(digits))])
        first = [held[(row, 1)].clone() for row in range(20)]
        assert all(torch.equal(held[(row, 1)], first[row]) for row in reversed(range(20)))
        assert torch.equal(before, torch.stack([digits.load(row) for row in range(len(digits))]))

    def test_rows_of_a_table_are_mixed_too(self) -> None:
        dataset = Marked([0, 1, 2], (4,))
        assert load_inputs(dataset, make_views("mixup", 2), [(0, 1)]).shape == (1, 4)
        with pytest.raises(ConfigError, match=r"cutmix acts on images \(C, H, W\); these examples have shape \(4,\)"):
            load_inputs(dataset, make_views("cutmix", 2), [(0, 1)])


@pytest.mark.parametrize("text", [f"{AFFINE}+mixup:alpha=0.5", "cutmix"])
class TestReplay:
    def test_the_same_in_any_order_and_the_check_is_passed(self, text: str, digits: Dataset) -> None:
        views = make_views(text, 4)
        check_views(views, digits)
        entries = [(row, view) for row in range(5) for view in range(4)]
        state = torch.get_rng_state(), np.random.get_state()[1].tolist()
        forwards = load_inputs(digits, views, entries)
        assert torch.equal(state[0], torch.get_rng_state()) and state[1] == np.random.get_state()[1].tolist()
        torch.rand(3), np.random.rand(3)
        assert torch.equal(forwards, load_inputs(digits, views, entries[::-1]).flip(0))

    def test_a_reordered_dataset_gives_every_example_the_same(self, text: str) -> None:
        order = np.random.default_rng(0).permutation(50).tolist()
        ids = [f"e{number}" for number in range(50)]
        views = make_views(text, 2)
        here, there = Marked(list(range(50))), Marked(order)
        assert torch.equal(seen_by_id(views, here, ids), seen_by_id(views, there, ids))
        partners = mixing(views, here, np.arange(50))[0], mixing(views, there, np.arange(50))[0]
        assert [there.ids[p] for p in partners[1]] == [here.ids[partners[0][number]] for number in order]

    @pytest.mark.parametrize("change", ["one less", "one more"])
    def test_other_ids_in_the_split_are_noticed(self, text: str, change: str) -> None:
        views, dataset = make_views(text, 3), Marked(list(range(30)))
        records = view_records(views, dataset, [(row, 1 + row % 2) for row in range(8)])
        assert check_replay(records, views, dataset).ok
        other = Marked(list(range(29 if change == "one less" else 31)))
        replay = check_replay(records, views, other)
        assert not replay.ok and len(replay.different) >= 7
        assert "the set of ids in the split" in replay.summary and "name the data it was made from" in replay.summary

    def test_examples_of_other_splits_do_not_count(self, text: str) -> None:
        views, dataset = make_views(text, 2), Marked(list(range(48)))
        records = view_records(views, dataset, [(row, 1) for row in range(8)])
        assert check_replay(records, views, Marked(list(range(45)))).ok


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
def test_in_loader_workers(digits: Dataset) -> None:
    views, entries = make_views("flip+cutmix", 2), [(row, row % 2) for row in range(130)]
    assert torch.equal(load_inputs(digits, views, entries), load_inputs(digits, views, entries, workers=2))


def test_in_another_process(digits: Dataset) -> None:
    code = (
        "import sys; from pipeline.datasets import load_dataset; from pipeline.views import make_views, load_inputs\n"
        "x = load_inputs(load_dataset('digits'), make_views('flip+mixup', 3), [(5, 2), (1700, 1)])\n"
        "sys.stdout.buffer.write(x.numpy().tobytes())"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    assert found == load_inputs(digits, make_views("flip+mixup", 3), [(5, 2), (1700, 1)]).numpy().tobytes()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mixup+flip", "mixup mixes the example with another, which comes last; found flip after it"),
        ("mixup+cutmix", "mixup mixes the example with another, which comes last; found cutmix after it"),
        ("mixup:alpha=0", "mixup: alpha should be above 0, found 0"),
        ("cutmix:beta=1", "cutmix has no parameter 'beta': it has alpha"),
    ],
)
def test_mistakes_in_the_text(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_transform(text)
    assert caught.value.problems == (said,)


def test_descriptions_are_canonical() -> None:
    transform, text = parse_transform(" flip + mixup:alpha=1.0 ")
    assert text == "flip:p=0.5,vertical=false+mixup:alpha=1" and parse_transform(text) == (transform, text)
    assert parse_transform("cutmix")[1] == "cutmix:alpha=1"


def test_without_a_dataset_there_is_no_partner(digits: Dataset) -> None:
    views = make_views("mixup", 2)
    with pytest.raises(ConfigError, match="name the dataset that it is from"):
        views.apply(digits.load(0), digits.ids[0], 1)
    with pytest.raises(ConfigError, match="stranger is no example of the dataset"):
        views.apply(digits.load(0), "stranger", 1, digits)
    assert torch.equal(views.apply(digits.load(0), digits.ids[0], 1, digits), load_inputs(digits, views, [(0, 1)])[0])


def test_examples_of_several_sizes_are_cropped_first() -> None:
    class Sizes(Marked):
        def load(self, row: int) -> Tensor:
            return torch.full((2, 6, 10 + row), float(self.order[row]))

        def prepare(self, x: Tensor) -> Tensor:
            return x[..., :6, :10]

    dataset = Sizes([0, 1, 2])
    for text in ("mixup", "cutmix"):
        with pytest.raises(ConfigError, match=r"(?s)model sees, \(2, 6, 10\); found .*Put crop:size=... before it"):
            load_inputs(dataset, make_views(text, 2), [(0, 1)])
    square = Marked([0, 1, 2], (2, 6, 6))
    assert load_inputs(square, make_views("crop:size=6+cutmix", 2), [(0, 1)]).shape == (1, 2, 6, 6)


MODELS = '''
import torch
from torch import nn


class RowByRow(nn.Module):
    """Its answer for an example does not depend on its neighbours."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) / 4)

    def forward(self, x):
        return torch.stack([(self.weight * row.flatten()).sum(dim=1) * 3 for row in x])
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """data.npz and caches of it: mixup/ and cutmix/, after affine views, by a teacher that answers row by row."""
    made = tmp_path_factory.mktemp("mixing")
    random = np.random.default_rng(0)
    save(made / "data.npz", np.arange(60), random.normal(size=(60, 1, 8, 8)), random.integers(0, 5, 60))
    (made / "models_of_mixing.py").write_text(MODELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made)
        for name in ("mixup", "cutmix"):
            dump(DumpConfig(**live(made, name), out=made / name, seed=4, part_size=8, batch_size=5, device="cpu"))
        yield made


def save(path: Path, rows: npt.NDArray[np.int64], x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
    split = np.array(["train"] * 44 + ["validation"] * 9 + ["test"] * 7)
    ids = np.array([f"e{row:02d}" for row in range(60)])
    np.savez(path, x=x[rows].astype(np.float32), y=y[rows], split=split[rows], ids=ids[rows])


def live(folder: Path, name: str) -> dict[str, Any]:
    return {
        "data": f"arrays:{folder / 'data.npz'}",
        "teacher": "models_of_mixing:RowByRow",
        "views": 3,
        "transform": f"affine:degrees=20+{name}:alpha=1",
    }


def training(folder: Path, **options: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "data": f"arrays:{folder / 'data.npz'}",
        "student": "mlp-4",
        "epochs": 4,
        "batch_size": 6,
        "train_views": "all",
        "alpha": 1.0,
        "beta": 0.0,
        "device": "cpu",
        "out": folder / "run",
    }
    return TrainConfig(**(base | options))


def losses(config: TrainConfig) -> list[float]:
    found: list[float] = []
    prepared = prepare(config)
    model = initial_student(config, prepared.dataset, 0)
    fit(model, prepared.task, config, seed=0, on_step=lambda step, loss: found.append(float(loss)))
    return found


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_training_from_the_cache_is_training_with_the_teacher(folder: Path, name: str, beta: float) -> None:
    expected = losses(training(folder, **live(folder, name), views_seed=4, block=8, beta=beta))
    assert len(set(expected)) == 4 * 8
    for resident in ("none", "device"):
        assert losses(training(folder, cache=str(folder / name), resident=resident, beta=beta)) == expected


def test_a_reordered_dataset_sees_what_the_teacher_saw(folder: Path) -> None:
    held = dict(np.load(folder / "data.npz"))
    order = np.random.default_rng(1).permutation(60)
    np.savez(folder / "reordered.npz", **{key: values[order] for key, values in held.items()})
    cache = open_cache(folder / "mixup")
    views = replay_views(cache)
    assert views.mixed and views.description == "affine:degrees=20,translate=0,scale=0,shear=0,fill=0+mixup:alpha=1"
    here, there = (load_dataset(f"arrays:{folder / name}.npz") for name in ("data", "reordered"))
    ids = [here.ids[row] for row in here.rows("train")]
    assert torch.equal(seen_by_id(views, here, ids, 2), seen_by_id(views, there, ids, 2))
    prepare(training(folder, cache=str(folder / "mixup"), data=f"arrays:{folder / 'reordered.npz'}"))


def test_a_dataset_of_fewer_examples_is_refused(folder: Path) -> None:
    held = dict(np.load(folder / "data.npz"))
    np.savez(folder / "fewer.npz", **{key: values[1:] for key, values in held.items()})
    fewer = f"arrays:{folder / 'fewer.npz'}"
    with pytest.raises(CacheMismatchError, match="the set of ids in the split"):
        prepare(training(folder, cache=str(folder / "mixup"), data=fewer))
    prepare(training(folder, cache=str(folder / "mixup"), data=fewer, train_views="plain"))


def test_mixed_entries_have_no_hard_label_and_do_not_count_in_the_accuracy_of_the_teacher(folder: Path) -> None:
    cache, dataset = open_cache(folder / "mixup"), load_dataset(f"arrays:{folder / 'data.npz'}")
    table = pyarrow.dataset.dataset(folder / "mixup" / "index").to_table().to_pydict()
    number = dict(zip(dataset.ids, dataset.labels.tolist(), strict=True))
    for example_id, view, label in zip(table["example_id"], table["view"], table["label"], strict=True):
        assert label == (-1 if view else number[example_id])
    assert (cache.labels("train") == dataset.labels[dataset.rows("train")]).all()
    logits = cache.decode(cache.read_rows("train", 0, np.arange(44))).logits
    hits = (np.asarray(logits).argmax(axis=1) == dataset.labels[dataset.rows("train")]).mean()
    assert cache.manifest.fidelity["teacher_accuracy"]["train"] == pytest.approx(hits)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "dkd"}, "--loss dkd needs the hard label of one"),
        ({"label_view": "plain"}, "soft labels of the plain view are of one of them"),
        ({"omit_class": "3"}, "the second may be of the class '3'"),
    ],
)
def test_what_cannot_be_learnt_from_mixed_views(folder: Path, options: dict[str, Any], said: str) -> None:
    cache = str(folder / "mixup")
    with pytest.raises(ConfigError, match=said):
        prepare(training(folder, cache=cache, **options))
    prepare(training(folder, cache=cache, **{**options, "train_views": "plain"}))


def test_a_hard_label_counts_by_its_share_of_the_mixture(folder: Path) -> None:
    config = training(folder, cache=str(folder / "cutmix"), alpha=0.0, beta=1.0)
    prepared = prepare(config)
    task, dataset = prepared.task, prepared.dataset
    views = replay_views(open_cache(folder / "cutmix"))
    order = Order(task.blocks, 6, seed=3)
    for _ in range(2):  # drawn, and remembered
        with closing(Supply(task, order).epoch(task.objective, 1, 0, 2)) as batches:
            for rows, (_, batch) in zip(order.epoch(1), batches, strict=True):
                partners, share = views.mixing(dataset, rows, 2)
                assert batch.partners is not None and batch.partners.tolist() == dataset.labels[partners].tolist()
                logits = torch.randn(len(rows), len(dataset.classes), dtype=torch.float64)
                found = task.objective(Output(logits), batch)
                log_q = torch.log_softmax(logits, dim=1)
                each = [
                    -float(own) * log_q[i, dataset.labels[row]] - (1 - float(own)) * log_q[i, dataset.labels[other]]
                    for i, (row, other, own) in enumerate(zip(rows, partners, share, strict=True))
                ]
                assert float(found.total) == pytest.approx(float(sum(each)), rel=1e-5)
    with closing(Supply(task, order).epoch(task.objective, 0, 0, 0)) as batches:
        assert next(batches)[1].partners is None


def test_a_teacher_of_hard_labels_learns_from_mixed_views(folder: Path, tmp_path: Path) -> None:
    data = f"arrays:{folder / 'data.npz'}"
    options = {"transform": "mixup", "device": "cpu", "teacher": "mlp-8", "epochs": 4}
    report = fit_teacher(FitTeacherConfig(data=data, out=tmp_path / "teacher", **options))  # type: ignore[arg-type]
    assert report.figures["epochs"] == 4
