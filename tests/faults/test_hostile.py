from __future__ import annotations

from pathlib import Path

from tests.faults import hostile


def test_nothing_in_the_catalogue_does_harm(tmp_path: Path) -> None:
    counts = hostile.campaign(tmp_path, 1, seed=3, each=6)
    assert counts["caches"] >= 300 and counts["weights"] >= 50 and counts["scratch"] >= 80
    judged = counts["refused by name"] + counts["read, as it should be"]
    assert judged == counts["caches"] + counts["weights"] + counts["scratch"]
