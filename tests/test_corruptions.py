"""Corruptions: the same bytes whenever asked for, graded, and what their formulas say."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage
from torch import Tensor

from pipeline.corruptions import CORRUPTIONS, SEVERITIES, catalogue, choose, corrupt
from pipeline.corruptions.pixels import plasma
from pipeline.corruptions.places import pixelate
from pipeline.corruptions.sizes import kernel_of, length
from pipeline.datasets import load_dataset
from pipeline.errors import ConfigError, DataError, MissingDependencyError

GREY = [name for name, kind in CORRUPTIONS.items() if 3 not in kind.channels or 1 in kind.channels]
FIXED = {"gaussian-blur", "defocus-blur", "zoom-blur", "brightness", "contrast", "saturate", "jpeg"}
"""Those that draw nothing."""


def scene(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    """A picture with large and small parts, float32 in [0.05, 0.95]."""
    random = np.random.default_rng(seed)
    layers = [ndimage.gaussian_filter(random.normal(size=(channels, height, width)), (0, s, s)) for s in (1, 3, 8)]
    x = sum(layer / layer.std() for layer in layers)
    x = (x - x.min()) / (x.max() - x.min())
    return torch.from_numpy((0.05 + 0.9 * x).astype(np.float32))


def made(x: Tensor, name: str, severity: int, seed: int = 0, example_id: str = "a") -> Tensor:
    return corrupt(x, name, severity, seed=seed, example_id=example_id)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_a_function_of_its_arguments(name: str) -> None:
    x = scene(20, 28)
    kept = x.clone()
    first = made(x, name, 3)
    assert first.shape == x.shape and first.dtype == torch.float32 and first.min() >= 0 and first.max() <= 1
    made(x, name, 5, example_id="b")
    torch.manual_seed(5)
    np.random.seed(5)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert torch.equal(made(x, name, 3), first) and torch.equal(x, kept)
    assert torch.equal(state[0], torch.get_rng_state()) and state[1] == np.random.get_state()[1].tolist()
    for other in (made(x, name, 3, seed=1), made(x, name, 3, example_id="b")):
        assert torch.equal(other, first) == (name in FIXED)


def distances(images: list[Tensor], name: str) -> list[float]:
    rms = [
        [float((made(x, name, s, example_id=str(n)) - x).square().mean().sqrt()) for s in SEVERITIES]
        for n, x in enumerate(images)
    ]
    return np.mean(rms, axis=0).tolist()


@pytest.mark.parametrize("side", [8, 16])
def test_severities_are_graded_on_digits(side: int) -> None:
    digits = load_dataset("digits", {"size": side})
    images = [digits.load(row) for row in range(40)]
    for name in GREY:
        found = distances(images, name)
        assert found[0] > 0.001 and all(b > a for a, b in pairwise(found)), (name, found)


@pytest.mark.parametrize("sides", [(32, 40), (96, 72)])
def test_severities_are_graded_on_pictures(sides: tuple[int, int]) -> None:
    images = [scene(*sides, seed=n) for n in range(6)]
    for name in CORRUPTIONS:
        found = distances(images, name)
        # Saturation first loses colour, then has too much of it.
        parts = [found[:2], found[2:]] if name == "saturate" else [found]
        assert found[0] > 0.001
        assert all(b > a for part in parts for a, b in pairwise(part)), (name, found)


# References.


def test_noise_has_the_published_spread() -> None:
    flat = torch.full((3, 224, 224), 0.5)
    assert float((made(flat, "gaussian-noise", 1) - flat).std()) == pytest.approx(0.08, rel=0.02)
    assert float((made(flat, "speckle-noise", 1) - flat).std()) == pytest.approx(0.15 * 0.5, rel=0.02)
    assert float((made(flat, "shot-noise", 1) - flat).std()) == pytest.approx(math.sqrt(0.5 / 60), rel=0.02)
    turned = made(flat, "impulse-noise", 5)
    assert float((turned != flat).float().mean()) == pytest.approx(0.27, rel=0.05)
    assert set(turned[turned != flat].tolist()) == {0.0, 1.0}
    small = torch.full((3, 32, 32), 0.5)
    found = torch.stack([made(small, "gaussian-noise", 5, example_id=str(n)) - small for n in range(40)])
    assert float(found.std()) == pytest.approx(0.1, rel=0.02)


def test_noise_of_the_severities_is_the_same_draw() -> None:
    flat = torch.full((1, 32, 32), 0.5)
    one, three = (made(flat, "gaussian-noise", s) - flat for s in (1, 3))
    torch.testing.assert_close(three, one * 2, atol=1e-6, rtol=0)


def test_light_and_colour_are_those_of_hsv() -> None:
    x = scene(224, 224)
    hsv = rgb_to_hsv(x.double().numpy().transpose(1, 2, 0))
    for name, channel, change in (
        ("brightness", 2, lambda v: v + 0.3),
        ("saturate", 1, lambda s: s * 0.1),
        ("saturate", 1, lambda s: s * 5 + 0.1),
    ):
        severity = {"brightness": 3}.get(name, 2 if change(1.0) < 1 else 4)
        expected = hsv.copy()
        expected[..., channel] = np.clip(change(expected[..., channel]), 0, 1)
        found = made(x, name, severity).numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(found, hsv_to_rgb(expected), atol=1e-6)
    grey = torch.full((3, 8, 8), 0.4)
    assert torch.equal(made(grey, "saturate", 5), grey), "grey has no hue to saturate"
    assert made(torch.zeros(3, 224, 224), "brightness", 1).unique().tolist() == pytest.approx([0.1])


def test_contrast_goes_to_the_mean_of_each_channel() -> None:
    x = scene(224, 224)
    mean = x.double().mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(made(x, "contrast", 4).double(), mean + 0.1 * (x.double() - mean), atol=1e-6, rtol=0)


def averaged(x: Tensor, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean of an image moved by (down, right), by scipy."""
    moved = [
        w * ndimage.shift(x[0].double().numpy(), p, order=1, mode="nearest")
        for p, w in zip(places, weights, strict=True)
    ]
    return np.asarray(np.sum(moved, axis=0) / weights.sum())


def test_blurs_are_means_of_the_moved_image() -> None:
    x = scene(32, 32, 1)
    unit = np.linspace(-1, 1, 41)
    disc = np.array([(a, b) for a in unit for b in unit if a * a + b * b <= 1])
    found = made(x, "defocus-blur", 5)[0].numpy()
    np.testing.assert_allclose(found, averaged(x, 1.5 * disc, np.ones(len(disc))), atol=0.003)
    assert np.abs(found - x[0].numpy()).max() > 0.05
    # A Gaussian far wider than a pixel is that of scipy; 6 pixels at 224.
    wide = scene(224, 224, 1)
    expected = ndimage.gaussian_filter(wide[0].double().numpy(), 6, mode="nearest")
    np.testing.assert_allclose(made(wide, "gaussian-blur", 5)[0].numpy(), expected, atol=0.003)


def test_a_wide_kernel_by_fourier_is_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    x = scene(224, 200)
    found = made(x, "defocus-blur", 5)
    monkeypatch.setattr("pipeline.corruptions.sizes.DIRECT", 10_000)
    torch.testing.assert_close(made(x, "defocus-blur", 5), found, atol=1e-6, rtol=0)


def test_the_smear_of_motion_is_along_a_line_and_moves_nothing() -> None:
    point = torch.zeros(1, 65, 65)
    point[0, 32, 32] = 1
    for n in range(8):
        smear = made(point, "motion-blur", 5, example_id=str(n))[0].double().numpy()
        assert smear.sum() == pytest.approx(1, abs=1e-5)
        down, right = np.mgrid[:65, :65] - 32
        assert abs((smear * down).sum()) < 0.01 and abs((smear * right).sum()) < 0.01
        spread = np.cov(np.stack([down.ravel(), right.ravel()]), aweights=smear.ravel(), ddof=0)
        across, along = np.linalg.eigvalsh(spread)
        # Half a normal distribution of sigma s has variance s^2 (1 - 2 / pi).
        sigma = length(65, [2.5] * 5, [15.0] * 5, 5)
        assert along == pytest.approx(sigma**2 * (1 - 2 / math.pi), rel=0.1) and across < 0.3
        assert spread[1, 1] > spread[0, 0], "within 45 degrees of level"


def test_warps_are_those_of_scipy() -> None:
    x = scene(33, 33, 1)
    turned = [ndimage.rotate(x[0].double().numpy(), a, reshape=False, order=1, mode="nearest") for a in (30, -30)]
    found = [made(x, "rotation", 5, example_id=str(n))[0].numpy() for n in range(12)]
    which = [int(np.argmin([np.abs(one - other).max() for other in turned])) for one in found]
    assert set(which) == {0, 1}
    for one, n in zip(found, which, strict=True):
        np.testing.assert_allclose(one, turned[n], atol=1e-5)
    bright = torch.zeros(1, 40, 40)
    bright[0, 20, 20] = 1
    moved = made(bright, "translation", 4)[0].double().numpy()
    down, right = np.mgrid[:40, :40] - 20
    assert math.hypot((moved * down).sum(), (moved * right).sum()) == pytest.approx(0.12 * 40, rel=1e-4)


def test_a_zoom_keeps_the_centre_and_blurs_the_edge() -> None:
    x = scene(225, 225, 1)
    change = (made(x, "zoom-blur", 5) - x).abs()[0]
    assert change[112, 112] < 1e-6 and change[105:120, 105:120].mean() < change[:30, :30].mean() / 2


def test_elastic_moves_by_a_share_of_the_side() -> None:
    # A ramp shows how far each pixel comes from, save at the edges, where it is level.
    side = 64
    ramp = torch.linspace(0, 1, side).expand(1, side, side).contiguous()
    moves = [
        (made(ramp, "elastic", 3, example_id=str(n)) - ramp)[0, 8:-8, 8:-8].square().mean() * (side - 1) ** 2
        for n in range(30)
    ]
    assert math.sqrt(float(np.mean(moves))) == pytest.approx(0.03 * side, rel=0.15)


def test_pixelate_has_means_of_cells() -> None:
    x = scene(224, 224, 1).double().numpy()
    expected = x
    draw = np.random.RandomState(3)
    for axis in (1, 2):
        # Means from running totals; a pixel that two cells share has some of each.
        before = 4 * draw.random_sample()
        edges = np.clip(np.arange(0, 240, 4) - before, 0, 224)
        totals = np.insert(np.cumsum(expected, axis=axis), 0, 0, axis=axis)
        at = [ndimage.map_coordinates(t, [edges], order=1) for t in np.moveaxis(totals, axis, -1).reshape(-1, 225)]
        means = np.diff(at) / np.maximum(np.diff(edges), 1e-12)
        inside = np.clip(
            np.minimum(edges[1:], np.arange(1, 225)[:, None]) - np.maximum(edges[:-1], np.arange(224)[:, None]), 0, 1
        )
        expected = np.moveaxis((means @ inside.T).reshape(1, 224, 224), -1, axis)
    np.testing.assert_allclose(pixelate(x, 5, np.random.RandomState(3)), expected, atol=1e-9)
    for side in (8, 13, 50):
        flat = np.full((1, side, side + 1), 0.3)
        np.testing.assert_allclose(pixelate(flat, 4, np.random.RandomState(0)), flat, atol=1e-12)


@pytest.mark.parametrize(("channels", "side", "quality"), [(1, 8, 40), (3, 32, 40), (3, 224, 7)])
def test_jpeg_is_that_of_pillow(channels: int, side: int, quality: int) -> None:
    x = scene(side, side + 3, channels)
    stored = np.rint(x.double().numpy() * 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(stored[..., 0] if channels == 1 else stored).save(buffer, "JPEG", quality=quality)
    expected = np.asarray(Image.open(buffer)).reshape(stored.shape).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(made(x, "jpeg", 5).numpy(), expected, atol=1e-7)


def test_occlusion_hides_a_share_of_the_area() -> None:
    for side in (8, 9, 50):
        x = torch.zeros(1, side, side)
        for n in range(5):
            assert float(made(x, "occlusion", 5, example_id=str(n)).mean()) == pytest.approx(0.5 * 0.45**2, rel=1e-5)


def test_fog_keeps_the_range_and_its_cloud_has_detail_of_all_sizes() -> None:
    x = scene(32, 32, 1)
    cloud = (made(x, "fog", 5).double() * (x.max() + 1.5) / x.max() - x) / 1.5
    assert -1e-6 <= float(cloud.min()) < float(cloud.max()) <= 1 + 1e-6
    for side, size in ((2, 2), (8, 8), (9, 16), (224, 256)):
        found = plasma(side, 2.0, np.random.RandomState(0))
        assert found.shape == (size, size) and found.min() == 0 and found.max() == 1

    def roughness(decay: float) -> float:
        clouds = [plasma(64, decay, np.random.RandomState(seed)) for seed in range(10)]
        return float(np.mean([np.abs(np.diff(cloud, axis=1)).mean() / cloud.std() for cloud in clouds]))

    assert roughness(1.4) > 1.5 * roughness(2.0) > 1.5 * roughness(3.0) / 1.5


def test_a_kernel_of_less_than_a_pixel_is_one() -> None:
    offsets, weights = kernel_of(np.array([[0.25, 0.0], [-0.25, 0.0]]), np.ones(2))
    found = {tuple(o): w for o, w in zip(offsets.tolist(), weights.tolist(), strict=True)}
    assert found == {(-1, 0): pytest.approx(0.125), (0, 0): pytest.approx(0.75), (1, 0): pytest.approx(0.125)}


# What cannot be had.


@pytest.mark.parametrize(
    ("x", "name", "severity", "error", "message"),
    [
        (torch.rand(1, 4, 4), "snow", 1, ConfigError, "no corruption 'snow': choose gaussian-noise"),
        (torch.rand(1, 4, 4), "fog", 0, ConfigError, "a severity is 1 to 5; found 0"),
        (torch.rand(12), "fog", 1, ConfigError, r"acts on images \(C, H, W\); a is float32 of shape \(12,\)"),
        (torch.ones(1, 4, 4, dtype=torch.int64), "fog", 1, ConfigError, "a is int64 of shape"),
        (torch.rand(1, 4, 4) * 255 + 1, "fog", 1, DataError, r"images in \[0, 1\]; a holds values from .* as uint8"),
        (torch.full((1, 4, 4), torch.nan), "fog", 1, DataError, "holds values from nan"),
        (torch.rand(1, 4, 4), "saturate", 1, ConfigError, "saturate is of images with 3 channels; found 1"),
        (torch.rand(4, 4, 4), "jpeg", 1, ConfigError, "jpeg is of images with 1 or 3 channels; found 4"),
    ],
)
def test_what_is_no_image_is_refused(x: Tensor, name: str, severity: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made(x, name, severity)


def test_all_leaves_out_what_cannot_be_had_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(["all"], 3) == (tuple(CORRUPTIONS), {})
    names, left_out = choose(["all"], 1)
    assert set(names) == set(GREY) and list(left_out) == ["saturate"]
    assert choose(["fog", "gaussian-noise", "fog"], 1)[0] == ("gaussian-noise", "fog"), "in the catalogue's order"
    with pytest.raises(ConfigError, match="saturate is of images with 3 channels"):
        choose(["all", "saturate"], 1)
    with pytest.raises(ConfigError, match="no corruption 'frost'"):
        choose(["frost"], 3)
    monkeypatch.setattr("pipeline.references.importlib.import_module", missing("PIL"))
    names, left_out = choose(["all"], 3)
    assert "jpeg" not in names and "needs PIL" in left_out["jpeg"]
    with pytest.raises(MissingDependencyError, match=r"the corruption jpeg needs PIL.*softlabels\[vision\]"):
        choose(["jpeg"], 3)


def missing(name: str) -> Callable[[str], object]:
    def fail(wanted: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return fail


def test_the_catalogue_has_a_line_for_each() -> None:
    lines = catalogue().splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == sorted(
        CORRUPTIONS, key=lambda name: [*CORRUPTIONS].index(name)
    )
    assert max(map(len, lines)) < 110
