from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.configuration import parse_arguments
from pipeline.datasets import Dataset, load_dataset
from pipeline.errors import ConfigError
from pipeline.transforms import Affine, Chain, Crop, Flip, Noise
from pipeline.views import (
    EntryDataset,
    ViewRecord,
    Views,
    check_replay,
    check_views,
    input_loader,
    load_inputs,
    make_views,
    parse_transform,
    view_records,
)

AFFINE = "affine:degrees=15,translate=0.1,scale=0.1"
EVERYTHING = f"{AFFINE}+crop:scale=0.5+flip+noise:std=0.05"


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def draws_from_all(x: Tensor) -> Tensor:
    """A transform as people write them: all three global generators, and in place."""
    x += float(np.random.rand()) + random.random()
    return x.mul_(torch.rand(()))


def own_views(count: int = 4, seed: int = 0) -> Views:
    return Views(draws_from_all, "test:draws_from_all", count, seed)


@pytest.mark.parametrize("views", [make_views(EVERYTHING, 4), own_views()], ids=["built-in", "own"])
class TestReplay:
    def test_in_any_order(self, views: Views, digits: Dataset) -> None:
        entries = [(row, view) for row in range(5) for view in range(4)]
        forwards = load_inputs(digits, views, entries)
        backwards = load_inputs(digits, views, entries[::-1]).flip(0)
        assert torch.equal(forwards, backwards)
        assert len(torch.unique(forwards, dim=0)) == len(entries)

    def test_whatever_else_draws_random_numbers(self, views: Views, digits: Dataset) -> None:
        held = EntryDataset(digits, views)
        first = held[(3, 2)].clone()
        torch.rand(7), np.random.rand(7), random.random()
        assert torch.equal(held[(3, 2)], first)

    def test_the_global_generators_are_left_alone(self, views: Views, digits: Dataset) -> None:
        held = EntryDataset(digits, views)

        def drawn(between: Callable[[], object]) -> tuple[list[float], list[float], float]:
            torch.manual_seed(1)
            np.random.seed(1)
            random.seed(1)
            np.random.standard_normal()  # leaves one number in hand, which must not get lost
            between()
            return torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.random()

        assert drawn(lambda: held[(3, 2)]) == drawn(lambda: None)

    def test_the_example_itself_is_not_written_to(self, views: Views, digits: Dataset) -> None:
        before = digits.load(0).clone()
        views.apply(digits.load(0), "id", 1)
        assert torch.equal(digits.load(0), before)

    def test_the_plain_view_is_the_example(self, views: Views, digits: Dataset) -> None:
        assert torch.equal(EntryDataset(digits, views)[(0, 0)], digits.load(0))

    def test_other_seeds_and_ids_give_other_views(self, views: Views) -> None:
        x = torch.rand(1, 8, 8)
        other = Views(views.transform, views.description, 4, seed=1)
        assert not torch.equal(views.apply(x, "a", 1), other.apply(x, "a", 1))
        assert not torch.equal(views.apply(x, "a", 1), views.apply(x, "b", 1))

    def test_they_pass_the_check(self, views: Views, digits: Dataset) -> None:
        check_views(views, digits)

    def test_threads_make_no_difference(self, views: Views) -> None:
        x = torch.rand(3, 96, 96)
        try:
            torch.set_num_threads(2)
            two = views.apply(x, "a", 1)
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(1)
        assert torch.equal(views.apply(x, "a", 1), two)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
def test_in_loader_workers(digits: Dataset) -> None:
    entries = [(row, view) for row in range(80) for view in range(2)]
    views = make_views(EVERYTHING, 2)
    assert torch.equal(load_inputs(digits, views, entries), load_inputs(digits, views, entries, workers=2))


def test_in_another_process(digits: Dataset) -> None:
    code = (
        "import sys; from pipeline.datasets import load_dataset; from pipeline.views import make_views, load_inputs\n"
        f"x = load_inputs(load_dataset('digits'), make_views({EVERYTHING!r}, 3), [(5, 2), (1700, 1)])\n"
        "sys.stdout.buffer.write(x.numpy().tobytes())"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    assert found == load_inputs(digits, make_views(EVERYTHING, 3), [(5, 2), (1700, 1)]).numpy().tobytes()


def test_in_a_spawned_process_they_can_be_pickled(digits: Dataset) -> None:
    loader = input_loader(digits, make_views(AFFINE, 2), [[(0, 1), (1, 1)]], workers=1)
    loader.multiprocessing_context = multiprocessing.get_context("spawn")
    (batch,) = loader
    assert torch.equal(batch, load_inputs(digits, make_views(AFFINE, 2), [(0, 1), (1, 1)]))


def test_the_loader_draws_nothing_from_the_global_generator(digits: Dataset) -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    batches = list(input_loader(digits, make_views(AFFINE, 2), [[(0, 1)], [(1, 0), (2, 1)]]))
    assert [len(b) for b in batches] == [1, 2] and torch.equal(torch.rand(2), expected)


def test_no_entries_at_all(digits: Dataset) -> None:
    assert load_inputs(digits, Views(), []).shape == (0, 1, 8, 8)


@given(st.integers(0, 2**62), st.text(), st.integers(1, 10**6))
def test_seeds_are_pure_functions(seed: int, example_id: str, view: int) -> None:
    assume_utf8 = example_id.encode("utf-8", "ignore").decode()
    found = make_views(AFFINE, 2, seed).seed_of(assume_utf8, view)
    assert 0 <= found < 2**63 and found == make_views("flip", 9, seed).seed_of(assume_utf8, view)


class OwnGenerator:
    """Draws from a generator that nobody can seed from outside."""

    def __init__(self) -> None:
        self.random = np.random.default_rng()

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.random.random()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (OwnGenerator(), "was different when it was replayed.*without a generator of its own"),
        (lambda x: x + np.random.default_rng().random(), "was different when it was replayed"),
        (lambda x: x[..., 1:], r"float32 of shape \(1, 8, 8\) after preprocessing; found float32 of shape \(1, 8, 7\)"),
        (lambda x: x.double(), "found float64"),
        (lambda x: x / 0, "NaN or infinite"),
        (lambda x: x.numpy(), "should give a tensor, found ndarray"),
    ],
)
def test_transforms_that_cannot_be_replayed_are_refused(
    transform: Callable[[Tensor], Tensor], message: str, digits: Dataset
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_views(Views(transform, "mine", 3), digits)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", "none"),
        ("none", "none"),
        (" flip ", "flip:p=0.5,vertical=false"),
        ("flip:vertical=true,p=1", "flip:p=1,vertical=true"),
        ("affine:degrees=15", "affine:degrees=15,translate=0,scale=0,shear=0,fill=0"),
        ("crop:padding=1+noise", "crop:padding=1+noise:std=0.1"),
        ("crop:size=6", "crop:size=6,scale=0.35,ratio=1.3333333333333333,padding=0"),
    ],
)
def test_descriptions_are_canonical(text: str, canonical: str) -> None:
    transform, description = parse_transform(text)
    assert description == canonical
    again, same = parse_transform(description)
    assert same == canonical and type(again) is type(transform)


def test_all_problems_of_a_text_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_transform("afine:degrees=1+affine:degree=3,scale=2+noise:std=-1+flip:p=two+crop:size=1.5")
    found = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 5
    assert "no view transform 'afine': choose affine, crop, flip, noise, mixup, cutmix, or module:factory" in found
    assert "affine has no parameter 'degree': it has degrees, translate, scale, shear, fill" in found
    assert "std should be 0 or more" in found
    assert "p should be a number, found 'two'" in found
    assert "size should be a whole number, found 1.5" in found


@pytest.mark.parametrize("text", ["affine:scale=1", "affine:translate=2", "affine:shear=90", "affine:degrees=200",
                                  "crop:scale=0", "crop:ratio=0.5", "crop:size=-1", "flip:p=2", "noise:std=true",
                                  "noise:std=nan", "flip:vertical=1", "noise:", "affine:15"])  # fmt: skip
def test_values_out_of_range(text: str) -> None:
    if text == "noise:":
        assert parse_transform(text)[1] == "noise:std=0.1"
    else:
        with pytest.raises(ConfigError):
            parse_transform(text)


@pytest.mark.parametrize(("count", "transform"), [(0, Noise()), (2, None)])
def test_counts_that_make_no_sense(count: int, transform: Noise | None) -> None:
    with pytest.raises(ConfigError, match="more than 1 need a transform"):
        Views(transform, "x", count)


def test_a_view_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"no view 4: .* has views 0 to 3"):
        make_views(AFFINE, 4).apply(torch.zeros(1, 8, 8), "a", 4)


class TestOwnTransforms:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        monkeypatch.delitem(sys.modules, "own_views", raising=False)
        (tmp_path / "own_views.py").write_text(
            "import torch\n"
            "def jitter(x):\n    return x + torch.rand(())\n"
            "def make(amount=2.0):\n    return lambda x: x + amount * torch.rand(())\n"
            "class Add:\n    def __init__(self, amount=1.0): self.amount = amount\n"
            "    def __call__(self, x): return x + self.amount * torch.rand(())\n"
            "ready = Add(3.0)\nmodule = torch.nn.Identity()\nnumber = 3\n"
        )

    @pytest.mark.parametrize(
        ("text", "amount"),
        [
            ("own_views:jitter", 1.0),
            ("own_views:make", 2.0),
            ("own_views:make:amount=5", 5.0),
            ("own_views:Add", 1.0),
            ("own_views:ready", 3.0),
            ("own_views:module", 0.0),
            ("own_views:jitter+own_views:make:amount=0", 1.0),
        ],
    )
    def test_a_transform_or_something_that_makes_one(self, text: str, amount: float) -> None:
        views = make_views(text, 2)
        assert views.description == text
        torch.default_generator.manual_seed(views.seed_of("a", 1))
        assert float(views.apply(torch.zeros(1), "a", 1)) == amount * float(torch.rand(()))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("own_views:number", "a callable from tensor to tensor; found 3"),
            ("own_views:absent", "has no 'absent'"),
            ("own_views:make:much=1", "unexpected keyword argument 'much'; it takes amount"),
            ("own_veiws:make", "no module 'own_veiws'"),
        ],
    )
    def test_mistakes(self, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            parse_transform(text)


def test_torchvision_transforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Dataset) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_vision.py").write_text(
        "from torchvision.transforms import v2\n"
        "def make():\n    return v2.Compose([v2.RandomAffine(10), v2.RandomErasing(), v2.RandomCrop(8, padding=1)])\n"
    )
    check_views(make_views("own_vision:make", 3), digits)


def picture(height: int = 9, width: int = 13) -> Tensor:
    return torch.rand(2, height, width, generator=torch.Generator().manual_seed(0))


class TestAffine:
    def test_nothing_asked_is_nothing_done(self) -> None:
        torch.testing.assert_close(Affine()(picture()), picture(), atol=1e-5, rtol=0)

    def test_it_agrees_with_the_affine_grid_of_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A turn of 30 degrees, as torch's own grid does it on a square image."""
        x = picture(11, 11)
        monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5]))
        c, s = float(np.cos(np.pi / 6)), float(np.sin(np.pi / 6))
        grid = torch.nn.functional.affine_grid(torch.tensor([[[c, s, 0.0], [-s, c, 0.0]]]), [1, 2, 11, 11], False)
        expected = torch.nn.functional.grid_sample(x[None], grid, align_corners=False)[0]
        torch.testing.assert_close(Affine(degrees=30)(x), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize(("draw", "turns"), [(1.0, 1), (0.0, -1)])
    def test_a_quarter_turn_of_an_image_that_is_no_square(
        self, draw: float, turns: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([draw, 0.5, 0.5, 0.5, 0.5]))
        x = torch.zeros(1, 5, 9)
        x[0, 2, 5:7] = 1.0  # a bar right of the centre
        turned = Affine(degrees=90)(x)
        expected = torch.zeros(1, 5, 9)
        rows = slice(3, 5) if turns > 0 else slice(0, 2)
        expected[0, rows, 4] = 1.0
        torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)

    def test_a_shift_moves_whole_pixels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = picture(10, 20)
        monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([0.5, 1.0, 0.0, 0.5, 0.5]))
        moved = Affine(translate=0.1)(x)  # right by 2 columns, up by 1 row
        torch.testing.assert_close(moved[:, :-1, 2:], x[:, 1:, :-2], atol=1e-5, rtol=0)
        assert float(moved[:, -1].abs().max()) < 1e-5 and float(moved[..., :2].abs().max()) < 1e-5

    def test_what_lies_outside_is_filled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = picture()
        monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([0.5, 1.0, 0.5, 0.5, 0.5]))
        assert float(Affine(translate=1.0, fill=0.25)(x).sub(0.25).abs().max()) < 1e-6


class TestCrop:
    def test_the_old_size_or_the_one_asked_for(self) -> None:
        assert Crop()(picture()).shape == (2, 9, 13)
        assert Crop(size=7)(picture()).shape == (2, 7, 7)
        assert Crop(size=16, scale=0.01)(picture(3, 40)).shape == (2, 16, 16)

    def test_padding_shifts_by_whole_pixels(self) -> None:
        x = picture() + 1
        seen = set()
        for seed in range(60):
            torch.manual_seed(seed)
            moved = Crop(padding=1)(x)
            assert moved.shape == x.shape
            seen.add((bool((moved[:, 0] == 0).all()), bool((moved[..., 0] == 0).all())))
        assert len(seen) == 4

    def test_values_stay_within_those_of_the_image(self) -> None:
        seen = Crop(size=5, scale=0.2)(picture(31, 17))
        assert float(seen.min()) >= 0 and float(seen.max()) <= 1


def test_flips() -> None:
    x = picture()
    assert torch.equal(Flip(p=1)(x), x.flip(-1)) and torch.equal(Flip(p=0)(x), x)
    assert torch.equal(Flip(p=1, vertical=True)(x), x.flip(-2))


def test_noise_has_the_declared_spread() -> None:
    assert float(Noise(std=0.2)(torch.zeros(20_000)).std()) == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("transform", [Affine(), Crop(), Flip()])
def test_image_transforms_refuse_other_shapes(transform: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ConfigError, match=r"acts on images \(C, H, W\); these examples have shape \(20,\)"):
        transform(torch.zeros(20))


def test_a_chain_seeds_all_generators_as_soon_as_one_step_may_need_it() -> None:
    assert Chain((Affine(), Noise())).torch_only
    assert not Chain((Affine(), draws_from_all)).torch_only
    views = Views(Chain((Affine(), draws_from_all)), "mixed", 2)
    assert torch.equal(views.apply(picture(), "a", 1), views.apply(picture(), "a", 1))


class TestRecords:
    entries = ((0, 0), (3, 1), (9, 2))

    def test_a_replay_of_the_same_views_agrees(self, digits: Dataset) -> None:
        views = make_views(AFFINE, 3, seed=5)
        records = view_records(views, digits, self.entries)
        assert [r.example_id for r in records] == ["digits/00000", "digits/00003", "digits/00009"]
        assert records[1].seed == views.seed_of("digits/00003", 1) and records[1].pixels.shape == (1, 8, 8)
        replay = check_replay(records, views, digits)
        assert replay.ok and replay.compared == 3 and replay.largest == 0
        assert "3 recorded views replayed" in replay.summary

    def test_rounding_is_forgiven_and_another_transform_is_not(self, digits: Dataset) -> None:
        views = make_views(AFFINE, 3)
        records = [
            ViewRecord(r.example_id, r.view, r.seed, r.pixels + np.float32(1e-5))
            for r in view_records(views, digits, self.entries)
        ]
        assert check_replay(records, views, digits).ok
        assert not check_replay(records, views, digits, tolerance=1e-7).ok
        changed = check_replay(records, make_views("affine:degrees=15,translate=0.1,scale=0.11", 3), digits)
        assert not changed.ok and len(changed.different) == 2
        assert "dump again" in changed.summary and "view 1 of digits/00003" in changed.summary

    def test_examples_that_are_not_here_are_counted(self, digits: Dataset) -> None:
        strange = ViewRecord("elsewhere", 0, 0, np.zeros((1, 8, 8), np.float32))
        replay = check_replay([strange], Views(), digits)
        assert replay.ok and (replay.compared, replay.absent) == (0, 1)

    def test_another_shape_is_different(self, digits: Dataset) -> None:
        record = ViewRecord("digits/00000", 0, 0, np.zeros((1, 4, 4), np.float32))
        assert not check_replay([record], Views(), digits).ok


@given(st.sampled_from(["degrees", "translate", "scale"]), st.floats(0, 0.9))
def test_parameters_survive_their_description(name: str, value: float) -> None:
    transform, description = parse_transform(f"affine:{name}={value!r}")
    arguments = parse_arguments([description.partition(":")[2]], "x")
    assert isinstance(transform, Affine)
    assert arguments[name] == getattr(transform, name) == value
