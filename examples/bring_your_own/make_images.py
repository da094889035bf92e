"""Pictures of one's own: ``python make_images.py`` writes ``pictures/CLASS/*.png``, for ``--data images:pictures``.

A class per subfolder is all that is needed (Pillow: ``pip install 'softlabels[vision]'``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def make(folder: str = "pictures", per_class: int = 60) -> None:
    """Discs and squares of random colour and place, 20 x 24 pixels."""
    random = np.random.default_rng(0)
    down, right = np.mgrid[:24, :20]
    for name in ("disc", "square"):
        Path(folder, name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            top, left, radius = random.integers(8, 16), random.integers(7, 13), random.integers(4, 7)
            dy, dx = np.abs(down - top), np.abs(right - left)
            inside = dy**2 + dx**2 < radius**2 if name == "disc" else np.maximum(dy, dx) < radius
            pixels = random.integers(0, 40, (24, 20, 3)).astype(np.uint8)
            pixels[inside] = random.integers(120, 256, 3)
            Image.fromarray(pixels).save(Path(folder, name, f"{number:03d}.png"))


if __name__ == "__main__":
    make()
    print("wrote pictures/")
