"""How the answers of several teachers become one: the rules of a ``Mixture``, as functions of tensors.

S teachers, B rows, C classes; all answers are logits (S, B, C), and so is what comes out, (B, C).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.softlabels import Dense

MIXES = ("probs", "logits", "confident", "correct")
OF_PROBABILITIES = ("probs", "correct")
"""Those that average probabilities, which is done at one temperature: what comes out is meant for that one alone."""


def mixed(
    labels: Sequence[Dense],
    weights: Sequence[float],
    *,
    mix: str,
    temperature: float | None,
    hard_B: Tensor | None = None,
) -> Dense:
    """Dense labels of the same rows, (B, C) torch tensors, made into one by the rule ``mix``; see ``Mixture``.

    ``weights`` come to 1. ``hard_B`` int64, -1 for none, counts for ``correct`` alone; None: no row has one. float32,
    or float64 where all labels are. Raises what ``checked_temperature`` and ``check_weights`` raise.
    """
    at = checked_temperature(mix, temperature)
    check_weights(mix, weights)
    logits = torch.stack([soft.logits for soft in labels])
    if mix == "logits":
        return Dense(mean_of_logits(logits, weights))
    if mix == "confident":
        return Dense(most_confident(logits))
    log_weights = _column([math.log(weight) for weight in weights], logits)
    if mix == "correct" and hard_B is not None:
        log_weights = weights_of_correct(logits, log_weights, hard_B)
    return Dense(mean_of_probabilities(logits, log_weights, at))


def mean_of_probabilities(logits_SBC: Tensor, log_weights: Tensor, temperature: float) -> Tensor:
    """``T * log(sum_i w_i softmax(z_i / T))``, so that softened by T, and by T alone, it gives the mean exactly.

    ``log_weights`` (S, 1), or (S, B) for rows with weights of their own; of each row they come to 1.
    """
    terms = torch.log_softmax(logits_SBC / temperature, dim=2) + log_weights[:, :, None]
    return torch.logsumexp(terms, dim=0) * temperature


def mean_of_logits(logits_SBC: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted mean of the logits, each centred per row: a constant added to a row means nothing."""
    centred = logits_SBC - logits_SBC.mean(dim=2, keepdim=True)
    return (centred * _column(weights, logits_SBC)[:, :, None]).sum(dim=0)


def most_confident(logits_SBC: Tensor) -> Tensor:
    """Of each row the logits of the teacher whose softmax has the lowest entropy, at T = 1; of equal ones the first.

    Kwon et al. 2020 weigh teachers by the entropy of each answer; this is the choice of the one that would weigh most.
    """
    log_p = torch.log_softmax(logits_SBC, dim=2)
    entropy = -(log_p.exp() * log_p).sum(dim=2)
    place = entropy.argmin(dim=0)[None, :, None].expand(1, *logits_SBC.shape[1:])
    return logits_SBC.gather(0, place)[0]


def weights_of_correct(logits_SBC: Tensor, log_weights_S1: Tensor, hard_B: Tensor) -> Tensor:
    """Logs of the weights (S, B) of those teachers alone whose largest class is the hard label, divided by their sum.

    Of all teachers where none is right, or where there is no hard label (-1). After Meng et al. 2019, who learn from a
    teacher where it is right, and from the hard label alone where it is not.
    """
    right = logits_SBC.argmax(dim=2) == hard_B
    counted = right | ~right.any(dim=0)
    return torch.log_softmax(log_weights_S1.masked_fill(~counted, -torch.inf), dim=0)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(list(values), dtype=like.dtype, device=like.device)[:, None]


def checked_temperature(mix: str, temperature: float | None) -> float:
    """The temperature at which probabilities are averaged; 1 for the rules that need none.

    Raises ConfigError for a rule that does not exist, or probabilities without a temperature above 0.
    """
    if mix not in MIXES:
        raise ConfigError(f"the mix of a mixture should be one of {', '.join(MIXES)}; found {mix!r}")
    if mix not in OF_PROBABILITIES:
        return 1.0
    if temperature is None or not temperature > 0:
        raise ConfigError(f"a mixture of probabilities needs the temperature of its mean, above 0; found {temperature}")
    return temperature


def check_weights(mix: str, weights: Sequence[float]) -> None:
    """Raise ConfigError for weights that differ where they would not count: ``confident`` takes one teacher whole."""
    if mix == "confident" and max(weights) - min(weights) > 1e-9 * max(weights):
        raise ConfigError(
            "confident takes the answer of one teacher whole, and weights do not count: they should be equal; found "
            f"{', '.join(f'{weight:g}' for weight in weights)}"
        )


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """``weights`` divided by their sum. Raises ConfigError unless all are finite and above 0, as their shares are.

    >>> shares([3, 1])
    (0.75, 0.25)
    """
    if weights and all(math.isfinite(weight) and weight > 0 for weight in weights):
        largest = max(weights)
        total = math.fsum(weight / largest for weight in weights)
        found = tuple(weight / largest / total for weight in weights)
        if all(found):
            return found
    found_weights = ", ".join(f"{weight:g}" for weight in weights) or "none"
    raise ConfigError(f"a mixture needs weights above 0; found {found_weights}")
