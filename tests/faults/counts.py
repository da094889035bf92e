"""What a campaign of faults reports: how often each thing was done, and how it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

Counts = Counter[str]


def table(title: str, counts: Mapping[str, int]) -> str:
    """A Markdown table of one campaign, in the order in which things were first counted."""
    rows = [f"| {what} | {count:,} |" for what, count in counts.items()]
    return "\n".join([f"## {title}", "", "| what | times |", "|---|---|", *rows, ""])
