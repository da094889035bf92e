"""The response losses by name: what ``train --loss`` takes, what each can be computed from, and where it comes from."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from pipeline.losses.divergences import (
    jensen_shannon_loss,
    reverse_kl_loss,
    skewed_kl_loss,
    skewed_reverse_kl_loss,
)
from pipeline.losses.meeting import RESIDUALS
from pipeline.losses.relations import correlation_loss, decoupled_loss
from pipeline.losses.response import distillation_loss, logit_regression_loss
from pipeline.softlabels import SoftLabels


@dataclass(frozen=True)
class ResponseLoss:
    """A loss on the student's logits.

    - ``function``: of (logits, soft labels) and, as keywords, the temperature and the parameters of its own;
    - ``what``: it is, in a few words; ``source``: paper and year;
    - ``topk``: it is defined on top-k labels with their residual, and exact there; the others need dense ones;
    - ``sampled``: it can be estimated from sampled labels without bias, being linear in the teacher's probabilities but
      for a constant;
    - ``bare``: it is defined on bare top-k labels too (``TopK.bare``), and has there the value that it has on all
      classes, of which the teacher gives the dropped ones nothing; reverse KL is infinite;
    - ``softened``: it has a temperature; ``labelled``: it needs the hard label of each row; ``batch``: a row's value
      depends on the other rows of its batch;
    - ``shares``: its parameters are shares, above 0 and below 1; those of the others are weights, 0 or more;
    - ``choices``: but for these, by name, which are words: those that each may be.
    """

    function: Callable[..., Tensor]
    what: str
    source: str
    topk: bool = False
    sampled: bool = False
    bare: bool = False
    softened: bool = True
    labelled: bool = False
    batch: bool = False
    shares: bool = False
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> Mapping[str, float | str]:
        """Names and defaults of the parameters of its own."""
        signature = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}

    def problems(self, name: str, given: Mapping[str, Any]) -> list[str]:
        """What is wrong with the parameters ``given`` for the loss of this ``name``."""
        known = self.parameters
        listed = ", ".join(self.listed)
        found = [
            f"--loss {name} has no parameter {key!r}: it has {listed or 'none'}" for key in given if key not in known
        ]
        values = {key: given.get(key, default) for key, default in known.items()}
        span = "above 0 and below 1" if self.shares else "a number, 0 or more"
        for key, value in values.items():
            if not self._fits(key, value):
                wanted = f"one of {', '.join(self.choices[key])}" if key in self.choices else span
                found.append(f"--loss-args: {key} of {name} should be {wanted}; found {value!r}")
        if not found and values and not any(values.values()):
            found.append(f"--loss-args: all weights of {name} are 0: there is nothing to learn")
        return found

    @property
    def listed(self) -> tuple[str, ...]:
        """The parameters of its own as they are typed, with their defaults."""
        shown = ((key, value if isinstance(value, str) else f"{value:g}") for key, value in self.parameters.items())
        return tuple(f"{key}={value}" for key, value in shown)

    def _fits(self, key: str, value: Any) -> bool:
        if key in self.choices:
            return value in self.choices[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return 0 < value < 1 if self.shares else 0 <= value < math.inf

    def __call__(
        self, logits_BC: Tensor, soft: SoftLabels, labels_B: Tensor, temperature: float, **parameters: float | str
    ) -> Tensor:
        """Values (B,) of a batch."""
        if self.softened:
            parameters["temperature"] = temperature
        if self.labelled:
            return self.function(logits_BC, soft, labels_B, **parameters)
        return self.function(logits_BC, soft, **parameters)


LOSSES: dict[str, ResponseLoss] = {
    "kl": ResponseLoss(
        distillation_loss,
        "KL(teacher || student)",
        "Hinton, Vinyals and Dean 2015",
        topk=True,
        sampled=True,
        bare=True,
        choices={"residual": RESIDUALS},
    ),
    "logit-regression": ResponseLoss(
        logit_regression_loss, "squared difference of the centred logits", "Ba and Caruana 2014", softened=False
    ),
    "reverse-kl": ResponseLoss(reverse_kl_loss, "KL(student || teacher)", "Gu et al. 2024 (MiniLLM)", topk=True),
    "jensen-shannon": ResponseLoss(
        jensen_shannon_loss,
        "generalised Jensen-Shannon divergence",
        "Agarwal et al. 2024 (GKD)",
        topk=True,
        bare=True,
        shares=True,
    ),
    "skewed-kl": ResponseLoss(
        skewed_kl_loss,
        "KL to a mixture of student and a little teacher",
        "Ko et al. 2024 (DistiLLM)",
        topk=True,
        bare=True,
        shares=True,
    ),
    "skewed-reverse-kl": ResponseLoss(
        skewed_reverse_kl_loss,
        "reverse KL to such a mixture",
        "Ko et al. 2024 (DistiLLM)",
        topk=True,
        bare=True,
        shares=True,
    ),
    "dkd": ResponseLoss(
        decoupled_loss, "decoupled: target class and other classes apart", "Zhao et al. 2022", labelled=True
    ),
    "dist": ResponseLoss(
        correlation_loss, "correlation within rows and within classes", "Huang et al. 2022", batch=True
    ),
}
