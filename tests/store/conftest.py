"""A small cache that tests of one module share, and do not change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.small import small_cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it lies."""
    path = tmp_path_factory.mktemp("caches") / "cache"
    small_cache(path)
    return path
