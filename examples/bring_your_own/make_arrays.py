"""Arrays of one's own: ``python make_arrays.py`` writes ``arrays.npz``, to be used as ``--data arrays:arrays.npz``.

Only ``x`` is needed. ``y`` holds labels (-1 for none), ``ids`` names the rows, ``split`` and ``classes`` are texts.
"""

from __future__ import annotations

import numpy as np


def make(path: str = "arrays.npz", rows: int = 300) -> None:
    """Bars in 6 x 6 grey images: lying, standing, or none."""
    random = np.random.default_rng(0)
    x = random.integers(0, 60, (rows, 1, 6, 6)).astype(np.uint8)
    y = np.arange(rows) % 3
    for image, label in zip(x[:, 0], y, strict=True):
        where = random.integers(6)
        if label < 2:
            image[(where, slice(None)) if label == 0 else (slice(None), where)] += 150
    np.savez(
        path,
        x=x,
        y=y,
        ids=np.array([f"bar/{row}" for row in range(rows)]),
        classes=np.array(["lying", "standing", "none"]),
    )


if __name__ == "__main__":
    make()
    print("wrote arrays.npz")
