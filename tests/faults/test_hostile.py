from __future__ import annotations

from pathlib import Path

from tests.faults import hostile


def test_nothing_in_the_catalogue_does_harm(tmp_path: Path) -> None:
    counts = hostile.campaign(tmp_path, 1, seed=3)
    assert counts["caches"] >= 300 and counts["weights"] >= 50
    assert counts["refused by name"] + counts["read, as it should be"] == counts["caches"] + counts["weights"]
