"""The kernels of ``kernel_torch`` against the same on a processor, in Triton's interpreter: no GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pipeline.encodings import Sampled, position_keys
from pipeline.encodings.blocks_torch import BLOCK, blocks_of

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
def test_the_kernels_say_what_the_processor_says() -> None:
    """In a process of its own: what is interpreted is decided when Triton is imported."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "tests.encodings.test_kernels"]
    found = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["5", "shapes"]


def check(classes: int, dtype: torch.dtype) -> None:
    from pipeline.encodings import kernel_torch

    generator = torch.Generator().manual_seed(classes)
    logits = (3 * torch.randn(6, classes + 3, generator=generator)).to(dtype)[:, :classes]  # rows that lie apart
    largest, sums = kernel_torch.largest_and_sums(logits, (1.0, 0.5), BLOCK)
    made = blocks_of(logits, (1.0, 0.5))
    torch.testing.assert_close(largest, made.largest, rtol=0, atol=0)
    torch.testing.assert_close(sums, made.sums)
    ends, expected_ends = kernel_torch.ends(largest, sums[0], 1.0, -87.0), made.ends()
    torch.testing.assert_close(ends, expected_ends, rtol=1e-6, atol=1e-9)
    for draws in (1, 50, 130):
        places = torch.from_numpy(Sampled(draws).places(position_keys(draws, 6), 6))
        wanted = places * ends[:, -1:]
        block = torch.searchsorted(ends, wanted).clamp_(max=made.count - 1)
        found = kernel_torch.classes_at(logits, largest, sums[0], ends, block, wanted, 1.0, BLOCK)
        expected = made.classes_at(expected_ends, places * expected_ends[:, -1:])
        assert (found != expected).float().mean() < 1e-2, "but for draws on the border of two classes"
        assert found.min() >= 0 and found.max() < classes
    for value in (float("nan"), float("inf"), -float("inf")):
        broken = logits.clone()
        broken[2, classes - 1] = value
        seen = kernel_torch.largest_and_sums(broken, (1.0,), BLOCK)[0].isfinite().all(dim=1)
        assert seen.tolist() == blocks_of(broken, (1.0,)).finite.tolist() == [True, True, False, True, True, True]


if __name__ == "__main__":
    shapes = [(1000, "float32"), (4096, "float32"), (50_001, "bfloat16"), (70, "float16"), (5, "float32")]
    for classes, name in shapes:
        check(classes, DTYPES[name])
    print(len(shapes), "shapes")
