from __future__ import annotations

from pathlib import Path

from tests.faults import fuzz


def test_changed_bytes_end_in_a_result_or_a_named_error(tmp_path: Path) -> None:
    counts = fuzz.campaign(tmp_path, 600, seed=7)
    assert counts["mutations"] == 600
    # Not everything dies at the door: some changes are read, and some get past the first checks to be refused later.
    assert sum(number for what, number in counts.items() if what.endswith(": read")) > 50
    assert sum(number for what, number in counts.items() if what.endswith(": refused")) > 200
