"""``--labels CACHE=WEIGHT``: several caches of soft labels, and how much each of them counts."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pipeline.errors import ConfigError
from pipeline.sources.mixing import shares

VIEWS = ("own", "plain")
"""What ``--labels`` took before it named caches; ``--label-view`` takes it now."""

EXPECTED = "--labels should be CACHE=WEIGHT, a path or URL and a number above 0 (1 unless given)"


def parse_labels(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """(path or URL, weight) of each cache, as given; several weights are divided by their sum.

    What follows the last ``=`` is the weight when it is a number, so that a path may hold ``=`` itself.

    >>> parse_labels(["caches/a=2", "caches/lr=0.1/b", "s3://bucket/lr=0.1=1"])
    (('caches/a', 0.5), ('caches/lr=0.1/b', 0.25), ('s3://bucket/lr=0.1', 0.25))

    Raises ConfigError with every text that is no such pair, and for a cache that is named twice.
    """
    texts = [texts] if isinstance(texts, str) else texts
    problems: list[str] = []
    found: list[tuple[str, float]] = []
    places: dict[str, str] = {}
    for text in texts:
        address, weight = _parse(text)
        if text in VIEWS:
            problems.append(f"{EXPECTED}; found {text!r}. For whose labels a view takes use --label-view {text}")
        elif weight is None or not address:
            problems.append(f"{EXPECTED}; found {text!r}")
        elif (place := _place(address)) in places:
            first = places[place]
            problems.append(f"--labels names one cache twice, {first} and {text}. Name it once, with one weight")
        else:
            places[place] = text
            found.append((address, weight))
    if not texts:
        return ()
    if not problems:
        try:
            return tuple(zip([address for address, _ in found], shares([weight for _, weight in found]), strict=True))
        except ConfigError:
            problems.append(f"{EXPECTED}; found weights {', '.join(f'{weight:g}' for _, weight in found)}")
    raise ConfigError(problems)


def _parse(text: str) -> tuple[str, float | None]:
    """The address, and the weight; None for one that is empty or NaN."""
    address, sign, tail = text.rpartition("=")
    if not sign:
        return text, 1.0
    if not tail.strip():
        return address, None
    try:
        return address, float(tail)
    except ValueError:
        return text, 1.0


def _place(address: str) -> str:
    """One spelling for one place."""
    local = address.removeprefix("file://")
    return address.rstrip("/") if "://" in local or "::" in local else os.path.abspath(local)
