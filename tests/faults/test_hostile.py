from __future__ import annotations

from pathlib import Path

from tests.faults import hostile


def test_nothing_in_the_catalogue_does_harm(tmp_path: Path) -> None:
    counts = hostile.campaign(tmp_path, 1, seed=3, each=6)
    assert counts["caches"] >= 300 and counts["weights"] >= 50 and counts["scratch"] >= 80
    judged = counts["refused by name"] + counts["read, as it should be"]
    assert judged == counts["caches"] + counts["weights"] + counts["scratch"]


def test_nor_does_it_in_caches_of_uneven_entries_draws_and_few_bits(tmp_path: Path) -> None:
    counts = hostile.third_campaign(tmp_path, 1, seed=3, each=12, share=0.2)
    assert counts["caches"] >= 80
    assert counts["refused by name"] > 70 and counts["read, as it should be"] > 0
    assert counts["refused by name"] + counts["read, as it should be"] == counts["caches"]
