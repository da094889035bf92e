"""Three teachers' caches, and a place of their own for what is noted about noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.store import Cache
from tests.caches.noisy import dumped


@pytest.fixture
def own_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "notes"))


@pytest.fixture
def teachers(tmp_path: Path) -> list[Cache]:
    return [dumped(tmp_path / f"teacher{n}", n) for n in range(3)]
