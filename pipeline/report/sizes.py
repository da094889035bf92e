"""How sentences say numbers: shares, differences with their intervals, ratios, and what chance explains of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.report.words import signed


def percent(value: float) -> str:
    """A share.

    >>> percent(0.98765)
    '98.8%'
    """
    return f"{100 * value:.1f}%"


def points(value: float) -> str:
    """A difference of shares without its sign.

    >>> points(0.01), points(0.025)
    ('1.0 point', '2.5 points')
    """
    text = f"{100 * value:.1f}"
    return f"{text} point{'' if text == '1.0' else 's'}"


def change(difference: float, reach: float = math.inf) -> str:
    """A difference in points, with half its interval where that is known.

    >>> change(0.02, 0.015), change(0.02)
    ('+2.0 ± 1.5 points', '+2.0 points')
    """
    around = "" if math.isinf(reach) or math.isnan(reach) else f" ± {100 * reach:.1f}"
    return f"{signed(100 * difference)}{around} points"


def verdict(word: str, difference: float, reach: float) -> str:
    """What a comparison comes to."""
    if word == "within noise":
        return f"no difference could be shown ({change(difference, reach)}, which chance alone explains)"
    return f"{'better' if difference > 0 else 'worse'}, by more than chance explains ({change(difference, reach)})"


def reach_of(gap: Mapping[str, Any]) -> float:
    """Half the interval of a difference that a row holds; infinite where it is not known."""
    return math.inf if gap.get("half_width") is None else float(gap["half_width"])


def ratio(value: float) -> str:
    """How many times.

    >>> ratio(2.345), ratio(23.45)
    ('2.3', '23')
    """
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def kilobytes(value: float) -> str:
    """A size on disk.

    >>> kilobytes(40863)
    '40.9 kB'
    """
    return f"{value / 1e3:,.1f} kB"


def joined(words: list[str]) -> str:
    """Words in a row.

    >>> joined(["a", "b", "c"])
    'a, b and c'
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
