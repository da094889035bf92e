"""What models are judged by, and how sentences say it: the share of right answers, or how well text is predicted.

Language models are judged by perplexity and, where they are held against each other, by the mean negative
log-likelihood of a token, whose interval takes sequences as independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.artefacts import Row, is_language
from pipeline.report.sizes import change, percent, reach_of, verdict
from pipeline.report.words import signed

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Yardstick:
    """``key`` of a row; ``lower``: less is better; ``unit``: what is counted; ``superlative`` of the best row."""

    key: str
    lower: bool
    unit: str
    superlative: str

    @property
    def sign(self) -> int:
        """Times a value: more is better."""
        return -1 if self.lower else 1

    def value(self, row: Row) -> float | None:
        """The figure of a row; None where it was not measured."""
        found = row.get(self.key)
        return None if found is None else float(found)

    def text(self, value: float) -> str:
        """A value by itself."""
        return f"{value:,.2f}" if self.lower else percent(value)

    def phrase(self, value: float) -> str:
        """A value in a sentence."""
        return f"perplexity {self.text(value)}" if self.lower else f"{percent(value)} right"

    def change(self, gap: Mapping[str, Any]) -> str:
        """A difference with half its interval."""
        if not self.lower:
            return change(gap["difference"], reach_of(gap))
        reach = reach_of(gap)
        around = "" if math.isinf(reach) else f" ± {reach:.4f}"
        return f"{signed(gap['difference'], 4)}{around} nats a token"

    def verdict(self, gap: Mapping[str, Any]) -> str:
        """What a comparison comes to."""
        if not self.lower:
            return verdict(gap["verdict"], gap["difference"], reach_of(gap))
        if gap["verdict"] == "within noise":
            return f"no difference could be shown ({self.change(gap)}, which chance alone explains)"
        word = "worse" if gap["difference"] > 0 else "better"
        return f"{word}, by more than chance explains ({self.change(gap)})"


ACCURACY = Yardstick("accuracy", False, "examples", "the most accurate")
PERPLEXITY = Yardstick("perplexity", True, "tokens", "the best at predicting text")


def yardstick(table: Table) -> Yardstick:
    """What the rows of a table are judged by."""
    return PERPLEXITY if is_language(table.get("rows") or ()) else ACCURACY
