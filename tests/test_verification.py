"""Asking the teacher again, where the answer must not be taken for a good one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import verification
from pipeline.errors import CacheMismatchError
from pipeline.verification import VerifyConfig, verify_with_teacher
from tests.small_pipeline import SmallPipeline


def ask(small: SmallPipeline, **options: Any) -> verification.TeacherReport:
    base = {"cache": str(small.cache), "teacher": "cnn-4", "weights": small.teacher, "data": small.data}
    return verify_with_teacher(VerifyConfig(**{**base, "device": "cpu", **options}))


def test_the_teacher_agrees_with_itself(small: SmallPipeline) -> None:
    assert ask(small).ok


def test_an_answer_that_is_no_number_is_beyond_every_bound(
    small: SmallPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "differences", lambda logits, stored, encoding: np.full(len(logits), np.nan))
    report = ask(small)
    assert not report.ok and report.largest == np.inf


def test_nothing_compared_is_no_agreement(small: SmallPipeline, tmp_path: Path) -> None:
    archive = dict(np.load(small.data.removeprefix("arrays:")))
    ids = np.array([str(n) for n in range(len(archive["x"]))])
    # Only the last example of each split is one that the cache knows, and few entries are drawn.
    last = {"train": 59, "validation": 89, "test": 129}
    renamed = np.array([i if int(i) in last.values() else f"new-{i}" for i in ids])
    np.savez(tmp_path / "grown.npz", **archive, ids=renamed)
    with pytest.raises(CacheMismatchError, match="none of the 1 entries"):
        ask(small, data=f"arrays:{tmp_path / 'grown.npz'}", entries=1)
