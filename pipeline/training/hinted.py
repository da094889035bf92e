"""A student whose intermediate features are learnt too: its taps, and the projections that only training needs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.identity import view_seed
from pipeline.losses import FEATURE_LOSSES
from pipeline.models import FeatureTap, evaluating, logits_of
from pipeline.training.hints import Hints, Lesson
from pipeline.training.objective import Output


class Hinted(nn.Module):
    """``student`` together with a projection for each hint, all of them trained; the student alone is kept.

    - ``hints``: which modules of the student are to give which features of the teacher;
    - ``shapes``: of the teacher's features by name, without the batch;
    - ``example`` (1, ...): an input, to see what the student's modules give;
    - ``seed``: of the initial weights of the projections.

    Raises ConfigError for a module that the student does not have, ModelError for features that cannot be brought
    to one shape. ``close`` takes the taps out of the student.
    """

    def __init__(
        self, student: nn.Module, hints: Hints, shapes: Mapping[str, tuple[int, ...]], example: Tensor, seed: int
    ) -> None:
        super().__init__()
        self.student = student
        self._tap = FeatureTap(student, dict(hints.pairs))
        self._tap.__enter__()
        try:
            own = shapes_of(student, self._tap, example)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(view_seed(seed, "projections", 0))
                loss = FEATURE_LOSSES[hints.loss]
                made = [loss.bridge(own[name], shapes[name]) for name, _ in hints.pairs]
        except BaseException:
            self.close()
            raise
        # FSDP makes each block of a ModuleList a share of its own, and would leave the weights of an idle one away.
        self.projections = nn.ModuleDict({str(number): module for number, module in enumerate(made)})
        self._names = tuple(name for name, _ in hints.pairs)
        self.projections.to(example.device)

    def forward(self, x: Tensor, hints: Mapping[str, Tensor] | None = None) -> Output:
        """Logits for ``x`` (B, ...), and the pair of features of each of the teacher's ``hints`` (B, ...) given."""
        logits = logits_of(self.student(x))
        found: dict[str | Lesson, tuple[Tensor, Tensor]] = {}
        idle = []
        for name, projection in zip(self._names, self.projections.values(), strict=True):
            if hints is not None and name in hints:
                # In full precision, whatever the student computes in.
                with torch.autocast(x.device.type, enabled=False):
                    found[name] = projection(self._tap.values[name], hints[name])
            elif self.training:
                idle += [parameter.sum() * 0 for parameter in projection.parameters()]
        if idle:
            # Ranks expect gradients of every parameter, zeros of those that are not used.
            logits = logits + torch.stack(idle).sum()
        return Output(logits, found)

    def close(self) -> None:
        """The student as it was before, without taps. May be called twice."""
        self._tap.__exit__(None, None, None)


def shapes_of(student: nn.Module, tap: FeatureTap, example: Tensor) -> dict[str, tuple[int, ...]]:
    """The shapes of what ``tap``, which is open, takes from ``student``, without the batch; ``example`` (1, ...)."""
    with evaluating(student), torch.no_grad():
        student(example)
    return {name: tuple(value.shape[1:]) for name, value in tap.values.items()}
