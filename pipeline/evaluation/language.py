"""What is measured of language models beside what is measured of any classifier of next tokens.

A row is a scored token. Tokens of one sequence go together, so intervals and tests take the sequence as what is drawn
at random (``UNITS`` says so in the details).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import metrics
from pipeline.datasets import Dataset
from pipeline.metrics import McNemar, Scores

LANGUAGE = (
    "perplexity", "bits_per_token", "bits_per_byte", "acceptance", "tokens_per_call", "cross_entropy_to_teacher",
)  # fmt: skip
"""Figures of each seed that only language models have."""
NAME_IT = "Name the teacher by --teacher"
UNITS = (
    "figures are means over scored tokens; 95% intervals take sequences, not tokens, as independent (variance of a "
    "ratio over sequences, Student's t); p-values are of differences of whole sequences under random signs (9999 sign "
    "flips, seed 0), in place of McNemar's test"
)


def bytes_of(dataset: Dataset, rows: npt.NDArray[np.int64]) -> int | None:
    """UTF-8 bytes of the scored text of ``rows``; None where the dataset does not know its text."""
    known = getattr(dataset, "bytes_of", None)
    return int(np.asarray(known(rows)).sum()) if dataset.discrete and callable(known) else None


def figures_of(scores: Scores, size: int | None) -> dict[str, Any]:
    """Of one model and P scored tokens; ``size``: the bytes of their text. None is what is not known. JSON values.

    Perplexity is exp of the mean negative log-likelihood; bits per byte, which do not depend on the vocabulary, are
    its sum / ln 2 / bytes. ``acceptance`` (``metrics.acceptance``) is a mean over the tokens of the data, not over text
    of the student's own; ``tokens_per_call`` follows from it for 4 drafted tokens.
    """
    assert scores.groups is not None
    nll, half_width = metrics.clustered(-scores.log_likelihood, scores.groups)
    ends = None if math.isnan(half_width) else [math.exp(nll - half_width), math.exp(nll + half_width)]
    total = float(-scores.log_likelihood.sum())
    return {
        "perplexity": math.exp(nll),
        "perplexity_interval": ends,
        "bits_per_token": nll / math.log(2),
        "bits_per_byte": total / math.log(2) / size if size else None,
        **_accepted(scores),
        "cross_entropy_to_teacher": None if scores.cross_entropy is None else float(scores.cross_entropy.mean()),
    }


def _accepted(scores: Scores) -> dict[str, Any]:
    """How many drafted tokens the teacher accepts: a figure where it is known, bounds where these are."""
    least, most = scores.accepted_least, scores.accepted_most
    found: dict[str, Any] = dict.fromkeys(
        ("acceptance", "acceptance_interval", "acceptance_between", "tokens_per_call", "tokens_per_call_between")
    )
    if least is None or most is None:
        return found
    if np.array_equal(least, most):
        found["acceptance"] = float(least.mean())
        found["acceptance_interval"] = share_interval(least, scores.groups)
        found["tokens_per_call"] = metrics.tokens_per_call(found["acceptance"])
        return found
    ends = [float(least.mean()), float(most.mean())]
    return found | {
        "acceptance_between": ends,
        "tokens_per_call_between": [metrics.tokens_per_call(end) for end in ends],
    }


def missing(scores: Scores, size: int | None) -> dict[str, str]:
    """Why figures are None, by name."""
    found = {}
    if size is None:
        found["bits_per_byte"] = "the dataset does not know its text (bytes_of)"
    if scores.cross_entropy is not None:
        draws = "the teacher's labels of this split are random draws"
        found["teacher_agreement"] = f"{draws}: the token drawn most often is often not its first. {NAME_IT}"
        found["kl_to_teacher"] = (
            f"{draws}: they tell the cross-entropy, without bias, but not the teacher's own entropy. {NAME_IT}"
        )
        found["acceptance"] = f"{draws}: how likely it finds other tokens is not known. {NAME_IT}"
    elif scores.accepted_least is None or scores.accepted_most is None:
        found["acceptance"] = f"there is no teacher to compare with. {NAME_IT}"
    elif not np.array_equal(scores.accepted_least, scores.accepted_most):
        found["acceptance"] = "the labels keep the first few tokens: its bounds are acceptance_between"
        found["kl_to_teacher"] = "a lower bound: all tokens that the labels do not keep count as one"
    return found


def share_interval(hits_N: npt.NDArray[Any], groups_N: npt.NDArray[np.int64] | None) -> list[float]:
    """The 95% interval of a share: Wilson's of examples; of tokens the one by sequences, cut to [0, 1]."""
    if groups_N is None:
        return list(metrics.wilson(round(float(hits_N.sum())), len(hits_N)))
    share, half_width = metrics.clustered(hits_N, groups_N)
    if math.isnan(half_width):
        return [0.0, 1.0]
    return [max(0.0, share - half_width), min(1.0, share + half_width)]


def paired(first: Scores, second: Scores) -> McNemar:
    """Whether one of two models recognises more of the same rows: McNemar's test, of tokens sign flips by sequence."""
    if first.groups is None:
        return metrics.mcnemar(first.correct, second.correct)
    only_first, only_second = first.correct & ~second.correct, second.correct & ~first.correct
    gaps = metrics.by_group(only_first.astype(np.int64) - only_second, first.groups)
    return McNemar(int(only_first.sum()), int(only_second.sum()), metrics.sign_flips(gaps))
