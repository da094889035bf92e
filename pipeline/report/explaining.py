"""What stands beside and below the figures of a table of models or artefacts, said under it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.artefacts import is_language
from pipeline.report.columns import Row, at, number_of

_GAPS = ("against_baseline", "against_teacher", "against_source")


def explained(rows: Sequence[Row]) -> str:
    """What stands beside and below the figures of a table, said under it."""
    several = any((number_of(row.get("seeds")) or 1) > 1 for row in rows)
    found, language = [], is_language(rows)
    if any(isinstance(row.get("accuracy_interval"), Sequence) for row in rows) and not several:
        by = "by sequences: tokens of one go together" if language else "over test examples (Wilson)"
        found.append(f"Below an accuracy stands its 95% interval {by}.")
    if several:
        below = "a perplexity and an accuracy" if language else "an accuracy"
        found.append(f"Below {below} stands s, the sample standard deviation over seeds.")
    if any(at(row, f"{key}.half_width") is not None for row in rows for key in _GAPS):
        of = "test sequences" if language else "test examples"
        over = f"paired seeds and {of}" if several else f"{of}; it does not cover another training"
        found.append(f"± beside a difference is half its 95% interval over {over}.")
    if any(row.get("acceptance") is not None or row.get("acceptance_between") for row in rows):
        found.append(
            "Accepted by teacher: the share of tokens drafted by the model that speculative decoding with the teacher "
            "keeps, a mean over the tokens of the data; below it, how many tokens that makes for each call of the "
            "teacher with 4 drafted."
        )
    if language and any(row.get("mcnemar_source") or row.get("mcnemar_teacher") for row in rows):
        found.append("In place of McNemar's test stands one of whole sequences under random signs.")
    if any(row.get("latency") for row in rows):
        found.append("Latency: median, and below it in brackets the 95th percentile.")
    return " ".join([*found, "The best of what could be deployed is in bold."])
