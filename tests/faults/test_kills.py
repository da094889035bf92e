"""Kills of real processes, a few of them; ``python -m tests.faults`` does some hundred."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.faults.kills import DumpWork, dump_kills, training_kills
from tests.faults.rewriting_kills import RewritingWork, rewriting_kills

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a fork of torch is safe on Linux only")


def test_a_dump_killed_at_every_phase_ends_in_the_same_bytes(tmp_path: Path) -> None:
    counts = dump_kills(tmp_path, times=12, seed=0)
    assert counts["kills"] == 12
    assert all(counts[f"killed in: {phase}"] for phase in DumpWork.phases), counts
    assert counts["teacher passes saved by that (entries)"] > 0


def test_a_training_run_that_is_killed_ends_in_the_same_bytes(tmp_path: Path) -> None:
    counts = training_kills(tmp_path, times=4, seed=0)
    assert counts["kills"] == 4
    assert counts["optimiser steps done"] > counts["optimiser steps done again"]


def test_what_makes_caches_out_of_caches_ends_in_the_same_bytes(tmp_path: Path) -> None:
    counts = rewriting_kills(tmp_path, times=12, seed=0)
    assert counts["kills"] == 12
    assert all(counts[f"killed in: {phase}"] for phase in RewritingWork.phases), counts
    # When a kill comes depends on the machine: a dozen need not meet every verb, hundreds do (python -m tests.faults).
    assert sum(counts[f"{verb}: kills"] > 0 for verb in ("extend", "transcode", "merge")) >= 2
    assert counts["parts found finished when taken up again"] > 0
