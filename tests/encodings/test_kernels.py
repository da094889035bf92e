"""The kernels of ``kernel_torch`` against the same on a processor, in Triton's interpreter: no GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pipeline.encodings import Sampled, position_keys
from pipeline.encodings.blocks_torch import BLOCK, Blocks, blocks_of, usable_kernel

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


def stand_in() -> ModuleType:
    """``kernel_torch`` out of torch's operators: Triton is not everywhere."""
    made: Any = ModuleType("pipeline.encodings.kernel_torch")

    def blocks(logits: torch.Tensor, largest: torch.Tensor, sums: torch.Tensor, scale: float) -> Blocks:
        return Blocks(logits, largest, (scale,), (sums,), largest.isfinite().all(dim=1))

    def largest_and_sums(logits: torch.Tensor, scales: tuple[float, ...], _: int) -> tuple[torch.Tensor, Any]:
        found = blocks_of(logits, scales)
        return found.largest, found.sums

    made.largest_and_sums = largest_and_sums
    made.ends = lambda largest, sums, scale, low: blocks(largest, largest, sums, scale).ends()
    made.classes_at = lambda logits, largest, sums, ends, block, wanted, scale, size: blocks(
        logits, largest, sums, scale
    ).classes_at(ends, wanted)
    return made


def given(monkeypatch: pytest.MonkeyPatch, kernel: ModuleType) -> ModuleType | None:
    """What ``usable_kernel`` says of ``kernel``, each time anew."""
    import pipeline.encodings

    monkeypatch.setitem(sys.modules, kernel.__name__, kernel)
    monkeypatch.setattr(pipeline.encodings, "kernel_torch", kernel, raising=False)
    found: ModuleType | None = usable_kernel.__wrapped__(torch.device("cpu"))
    return found


def test_kernels_that_agree_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = stand_in()
    assert given(monkeypatch, kernel) is kernel


def failing(*_: Any) -> Any:
    raise RuntimeError("no such architecture: sm_999")


def off_by_one(name: str) -> Callable[..., Any]:
    original = getattr(stand_in(), name)

    def wrong(*arguments: Any) -> Any:
        found = original(*arguments)
        return (found[0] + 1, found[1]) if isinstance(found, tuple) else found + 1

    return wrong


@pytest.mark.parametrize("name", ["largest_and_sums", "ends", "classes_at"])
def test_kernels_that_fail_or_are_wrong_are_named_and_left(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for broken, words in ((failing, "found RuntimeError: no such architecture: sm_999"), (off_by_one(name), "not")):
        kernel = stand_in()
        setattr(kernel, name, broken)
        with pytest.warns(UserWarning, match=f"kernels of Triton on cpu should do (.|\\n)*{words}(.|\\n)*instead"):
            assert given(monkeypatch, kernel) is None


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
    assert usable_kernel(torch.device("cpu")) is not None
    shapes = [(1000, "float32"), (4096, "float32"), (50_001, "bfloat16"), (70, "float16"), (5, "float32")]
    for classes, name in shapes:
        check(classes, DTYPES[name])
    print(len(shapes), "shapes")
