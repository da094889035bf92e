"""What the options of ``softlabels train`` come to: an objective, a model, and one error with all that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.configuration import parse_arguments
from pipeline.losses import FEATURE_LOSSES
from pipeline.models.hydra import PREFIX
from pipeline.sources.panel import HEADS
from pipeline.training import checks
from pipeline.training.exchange import Exchange
from pipeline.training.heads import HeadsObjective
from pipeline.training.hints import Hints, parse_hints
from pipeline.training.objective import Goal, Objective
from pipeline.training.options import TrainOptions

DEFAULT_BLOCK = 4096
OF_MUTUAL_HINTS = 0.01
"""Of the usual weight of hints, where both sides learn: at the whole of it they agree on features that say nothing."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainOptions):
    """A student, what it learns from, and how.

    Which examples count: every training example that has something to learn from, soft labels or a hard label. Without
    soft labels (alpha 0, or neither cache nor teacher) those are the examples that keep their hard label under
    ``labelled_fraction``; an epoch then visits them as often as makes it as long as one over the whole split
    (``repeat``), so that methods are compared at equal numbers of steps.
    """

    def __post_init__(self) -> None:
        if self.cache is None and len(self.labels) == 1 and not list(checks.mixture_problems(self)):
            # A mixture of one is that one: the same run, with the same record.
            object.__setattr__(self, "cache", self.caches[0][0])
            object.__setattr__(self, "labels", ())
        super().__post_init__()

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from checks.problems(self)

    @property
    def objective(self) -> Objective:
        """Weights, temperature and loss, defaults filled in."""
        alpha, beta = self.alpha_beta
        parameters = parse_arguments(self.loss_args, "--loss-args")
        return Objective(
            alpha=alpha,
            beta=beta,
            temperature=self.temperature,
            loss=self.loss,
            parameters=tuple((k, v if isinstance(v, str) else float(v)) for k, v in sorted(parameters.items())),
            standardise=self.standardise,
            smoothing=self.label_smoothing,
            hints=None if self.exchanging else self._hints,  # the features of peers are no teacher's
            bare=self.bare_topk,
            rising=self.alpha_epochs,
        )

    @property
    def goal(self) -> Goal:
        """What ``fit`` minimises: the objective, or what heads or peers make of it."""
        if self.mix == HEADS:
            return HeadsObjective(**vars(self.objective))
        if self.exchanging:
            return Exchange(self.objective, self.exchange, self.peer_weight, self._hints)
        return self.objective

    @property
    def model(self) -> tuple[str, dict[str, Any]]:
        """The student's reference and arguments, as ``build_model`` takes them."""
        arguments = parse_arguments(self.student_args, "--student-args")
        if self.mix == HEADS:
            return f"{PREFIX}:{self.student}", {**arguments, "heads": len(self.labels)}
        return self.student, arguments

    @property
    def _hints(self) -> Hints | None:
        """What is learnt from features, defaults filled in."""
        if not self.hints:
            return None
        weight = self.hint_weight
        if weight is None:
            weight = FEATURE_LOSSES[self.hint_loss].weight
            if self.exchanging and self.exchange == "mutual":
                weight *= OF_MUTUAL_HINTS
        return Hints(parse_hints(self.hints), self.hint_loss, weight, self.hint_epochs, self.hints_in_turn)
