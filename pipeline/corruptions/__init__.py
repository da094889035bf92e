"""Common corruptions of images at five severities: what a camera, the weather or a file format may do to them.

After Hendrycks and Dietterich (2019), with those of their corruptions that need neither data files nor large libraries
(glass blur, snow, frost and spatter are left out), and with occlusion, rotation and translation. The set differs, so a
mean over it is no figure to hold against published ones.

Constants follow the shorter side: up to 32 pixels those that the authors published with CIFAR-10-C, from 224 on those
of ImageNet-C, on a line between: what a person can still make out under noise, and in how few pixels, goes with the
size. Lengths in pixels (blurs) also grow with the side beyond 224 pixels and shrink with it from 16 to 8, where they
end: a blur of an 8 x 8 image should be seen, and leave a digit. Shares of the side (elastic, occlusion, translation)
and angles need no such rule. Departures: the smear of a moving camera is centred (a shift is another corruption);
pixelate has cells of any size and place, and elastic one smoothness, so that severities are graded; nothing is rounded
to 8 bits, JPEG apart.

A corruption acts on what ``Dataset.load`` gives, before ``prepare``. What it draws follows from the seed, its name and
the example's id: it is the same at each severity, in any batch, order or process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline import identity
from pipeline.corruptions import pixels, places
from pipeline.corruptions.sizes import Draw, Image
from pipeline.errors import ConfigError, DataError, MissingDependencyError
from pipeline.references import optional

__all__ = ["ALL", "CORRUPTIONS", "SEVERITIES", "Corruption", "catalogue", "check_image", "choose", "corrupt"]

ALL = "all"
SEVERITIES = (1, 2, 3, 4, 5)
PAPER = "Hendrycks and Dietterich 2019"
SLACK = 1e-4
"""How far beyond [0, 1] rounding, or resampling, may leave a value."""


@dataclass(frozen=True)
class Corruption:
    """One kind. ``function`` takes an image (C, H, W), a severity of 1 to 5, and what it may draw from.

    ``channels`` that it is for, any if empty; ``package`` that it needs beyond NumPy.
    """

    name: str
    family: str
    what: str
    source: str
    function: Callable[[Image, int, Draw], Image]
    channels: tuple[int, ...] = ()
    package: str = ""

    def problem(self, channels: int) -> str | None:
        """Why images with so many channels cannot have it; None where they can.

        Raises MissingDependencyError without the package.
        """
        if self.channels and channels not in self.channels:
            wanted = " or ".join(map(str, self.channels))
            return f"the corruption {self.name} is of images with {wanted} channels; found {channels}"
        if self.package:
            optional(self.package, "vision", f"the corruption {self.name}")
        return None


CORRUPTIONS: Mapping[str, Corruption] = {
    made.name: made
    for made in (
        Corruption("gaussian-noise", "noise", "normal noise on every value", PAPER, pixels.gaussian_noise),
        Corruption("shot-noise", "noise", "few photons: Poisson noise", PAPER, pixels.shot_noise),
        Corruption("impulse-noise", "noise", "some values turn 0 or 1", PAPER, pixels.impulse_noise),
        Corruption("speckle-noise", "noise", "normal noise in proportion to the value", PAPER, pixels.speckle_noise),
        Corruption("gaussian-blur", "blur", "a normal kernel", PAPER, places.gaussian_blur),
        Corruption("defocus-blur", "blur", "a disc, as of a lens", PAPER, places.defocus_blur),
        Corruption("motion-blur", "blur", "along a random line", PAPER, places.motion_blur),
        Corruption("zoom-blur", "blur", "towards the centre", PAPER, places.zoom_blur),
        Corruption("fog", "weather", "a cloud of plasma", PAPER, pixels.fog),
        Corruption("brightness", "weather", "more light", PAPER, pixels.brightness),
        Corruption("contrast", "digital", "closer to the mean of the image", PAPER, pixels.contrast),
        Corruption("saturate", "digital", "less colour (1, 2), or more (3 to 5)", PAPER, pixels.saturate, (3,)),
        Corruption("pixelate", "digital", "coarser pixels", PAPER, places.pixelate),
        Corruption("jpeg", "digital", "stored as JPEG", PAPER, pixels.jpeg, (1, 3), "PIL.Image"),
        Corruption("elastic", "digital", "a smooth random warp", "after Simard et al. 2003", places.elastic),
        Corruption("occlusion", "geometry", "a grey square", "after DeVries and Taylor 2017", places.occlusion),
        Corruption("rotation", "geometry", "6 to 30 degrees", "after Mu and Gilmer 2019", places.rotation),
        Corruption("translation", "geometry", "3 to 15% of the side", "after Mu and Gilmer 2019", places.translation),
    )
}


def corrupt(x: Tensor, name: str, severity: int, *, seed: int, example_id: str) -> Tensor:
    """A decoded example (C, H, W) float32 in [0, 1] with a corruption: of its shape and type, in [0, 1].

    Raises ConfigError for a name or severity that does not exist and for what is no image, or not of its channels;
    DataError for values outside of [0, 1]; MissingDependencyError where ``jpeg`` lacks Pillow.
    """
    kind = _named(name)
    if severity not in SEVERITIES:
        raise ConfigError(f"a severity is 1 to 5; found {severity!r}")
    check_image(x, f"the corruption {name}", example_id)
    if problem := kind.problem(x.shape[0]):
        raise ConfigError(problem)
    of_example = identity.view_seed(seed, f"{name}\0{example_id}", 0)
    draw = np.random.RandomState([of_example & 0xFFFFFFFF, of_example >> 32])
    image = np.clip(x.detach().cpu().numpy().astype(np.float64), 0, 1)
    found = np.clip(kind.function(image, severity, draw), 0, 1)
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def check_image(x: Tensor, whose: str, example_id: str) -> None:
    """Raise ConfigError unless ``x`` is a float image (C, H, W), DataError unless its values are in [0, 1]."""
    if x.ndim != 3 or not x.is_floating_point():
        raise ConfigError(
            f"{whose} acts on images (C, H, W); {example_id} is {str(x.dtype).removeprefix('torch.')} of shape "
            f"{tuple(x.shape)}"
        )
    low, high = float(x.min()), float(x.max())
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise DataError(
            f"{whose} acts on images in [0, 1]; {example_id} holds values from {low:.3g} to {high:.3g} as it is "
            "loaded. Normalise in the dataset's prepare, or store values from 0 to 1, or 0 to 255 as uint8"
        )


def choose(names: Sequence[str], channels: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """Corruptions by name, in the order of the catalogue, for images with so many channels; and why others are not.

    ``all`` takes those that these images can have and leaves the others out with the reason; one that is named and
    cannot be had raises ConfigError, or MissingDependencyError. So does a name that does not exist.
    """
    wanted = set(CORRUPTIONS) if ALL in names else {_named(name).name for name in names}
    left_out: dict[str, str] = {}
    problems: list[str] = []
    for name in CORRUPTIONS:
        if name not in wanted:
            continue
        try:
            problem = CORRUPTIONS[name].problem(channels)
        except MissingDependencyError as error:
            if name in names:
                raise
            problem = str(error)
        if problem and name in names:
            problems.append(problem)
        elif problem:
            left_out[name] = problem
    if problems:
        raise ConfigError(problems)
    return tuple(name for name in CORRUPTIONS if name in wanted and name not in left_out), left_out


def catalogue() -> str:
    """The corruptions as text for people, a line each, under the names of their families."""
    kinds = CORRUPTIONS.values()
    name, what = max(len(k.name) for k in kinds) + 2, max(len(k.what) for k in kinds) + 2
    lines: list[str] = []
    for family in dict.fromkeys(kind.family for kind in kinds):
        lines += ["", f"{family}:"]
        lines += [f"  {k.name:{name}}{k.what:{what}}{k.source}" for k in kinds if k.family == family]
    return "\n".join(lines[1:])


def _named(name: str) -> Corruption:
    if name not in CORRUPTIONS:
        raise ConfigError(f"there is no corruption {name!r}: choose {', '.join(CORRUPTIONS)}, or {ALL}")
    return CORRUPTIONS[name]
