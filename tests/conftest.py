"""What every test runs under: one thread, reproducible Hypothesis, no plots on a display."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.small_pipeline import SmallPipeline

# Before any test imports torch or numpy: workers share the machine, and one thread makes arithmetic repeatable.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "agg")
# Tests never reach for the network: a model or dataset by name has to be a local path.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.register_profile("search", settings.get_profile("repeatable"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallPipeline:
    """A whole small pipeline, made once for the tests of a file."""
    from tests.small_pipeline import make

    return make(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def sure(small: SmallPipeline) -> Path:
    """A run of two students that are too sure, beside those of ``small``."""
    from tests.judged import make_sure

    return make_sure(small)
