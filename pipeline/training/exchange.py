"""What peers minimise that learn from each other, all at once, besides their labels."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.losses import FEATURE_LOSSES, ResponseLoss, mean_logits, mutual_loss, taught_loss
from pipeline.training.hints import Hints, Lesson
from pipeline.training.objective import Batch, Objective, Output, Terms
from pipeline.training.shared import Shared

EXCHANGES = ("mutual", "ensemble", "online")


@dataclass(frozen=True)
class Exchange:
    """What each peer minimises: ``own``, as if it were alone, plus ``weight`` times what it learns from the others.

    - ``mutual``: the mean over the other peers j of ``T^2 KL(p_j || p_i)`` (Zhang et al. 2018). There peers take turns
      and T is 1; here all learn from what each says before the step, and a T above 1 has them agree on unlikely
      classes too, at gradients of the same size.
    - ``ensemble``: ``T^2 KL(p_e || p_i)``, of the gated ensemble e of all, which is the last member and has the hard
      labels' loss of its own; that one reaches the peers as well as the gate (Lan et al. 2018, whose T is 3).
    - ``online``: the first member is the student, and learns from the mean probability of the others at T, as they
      are at that step; they learn from the hard labels alone (after Zhou et al. 2018 and Ren et al. 2021).

    ``hints``: what each learns of the features of the others, or the first of those of the others under ``online``:
    for each pair the mean over whoever teaches it, summed over the pairs. The outputs of every epoch have all of them.

    What teaches is a constant. ``own`` has no hints, which would be those of a teacher that does not learn.
    """

    own: Objective
    kind: str = "mutual"
    weight: float = 1.0
    hints: Hints | None = None

    @property
    def alpha(self) -> float:
        return self.own.alpha

    @property
    def beta(self) -> float:
        """The largest of the members'."""
        return max(self.own.beta, self._hard.beta)

    @property
    def response(self) -> ResponseLoss:
        return self.own.response

    @property
    def used(self) -> tuple[str, ...]:
        """Those that weigh anything in any member."""
        weighed = {"hard": self.beta, "soft": self.alpha, "hints": self.hints is not None, "peers": self.weight}
        return tuple(name for name, weight in weighed.items() if weight)

    def at(self, epoch: int) -> Exchange:
        """What one epoch minimises: with ``own`` as it is then, and by turns where features come before all else.

        Then whoever learns features learns nothing else at first, and online teachers their hard labels as ever.
        """
        hints = self.hints
        if hints is None or not hints.epochs:
            return replace(self, own=self.own.at(epoch))
        if epoch >= hints.epochs:
            return replace(self, own=self.own.at(epoch - hints.epochs), hints=None)
        return replace(self, own=replace(self.own, alpha=0.0, beta=0.0), weight=0.0, hints=hints.at(epoch))

    def __call__(self, output: Output, batch: Batch) -> Terms:
        """Sums (n,) over the rows of a batch, of logits (n, B, C). All rows have features: their teachers are here."""
        logits = output.logits
        total, hard, soft, _, _ = _each(self.own, self._hard, tuple(self._learners(len(logits))))(Output(logits), batch)
        peers = self._between(logits).sum(dim=1) if self.weight else None
        if peers is not None:
            total = total + self.weight * peers
        learnt, idle = self._features(output)
        hints = _stacked([learnt.get(number) for number in range(len(logits))], total)
        if hints is not None and self.hints is not None:
            total = total + self.hints.weight * hints
        for value in idle:
            # Ranks expect gradients of every parameter, zeros of those that are not used.
            total = total + value.float().sum() * 0
        return Terms(total, hard, soft, hints, peers)

    @property
    def _hard(self) -> Objective:
        """Of a member without any teacher. An online one is no student: its hard labels weigh 1."""
        return replace(self.own, alpha=0.0, beta=1.0 if self.kind == "online" else self.own.beta)

    def _learners(self, count: int) -> list[bool]:
        """Which members learn from soft labels."""
        if self.kind == "ensemble":
            return [True] * (count - 1) + [False]
        return [True] + [self.kind == "mutual"] * (count - 1)

    def _features(self, output: Output) -> tuple[dict[int, Tensor], list[Tensor]]:
        """What each member that learns features has to learn, and the features that no one learns in this epoch."""
        wanted = {feature for feature, _ in self.hints.pairs} if self.hints is not None else set()
        taught: dict[tuple[int, str], list[Tensor]] = {}
        idle: list[Tensor] = []
        for lesson, (own, other) in output.hints.items():
            if not isinstance(lesson, Lesson) or self.hints is None or lesson.feature not in wanted:
                idle += [own, other]
                continue
            value = FEATURE_LOSSES[self.hints.loss](own, other).sum()
            taught.setdefault((lesson.learner, lesson.feature), []).append(value)
        learnt: dict[int, Tensor] = {}
        for (learner, _), values in taught.items():
            mean = torch.stack(values).mean()
            learnt[learner] = learnt[learner] + mean if learner in learnt else mean
        if wanted and not learnt:
            raise ModelError(
                f"the members give no features to learn {', '.join(sorted(wanted))} from: make them with_peers"
            )
        return learnt, idle

    def _between(self, logits: Tensor) -> Tensor:
        """What each member learns from the others, (n, B)."""
        temperature = self.own.temperature
        if self.kind == "mutual":
            return mutual_loss(logits, temperature=temperature)
        if self.kind == "ensemble":
            learnt = taught_loss(logits[:-1], logits[-1], temperature=temperature)
            return torch.cat([learnt, torch.zeros_like(learnt[:1])])
        teacher = mean_logits(logits[1:].detach(), temperature=temperature)
        learnt = taught_loss(logits[:1], teacher, temperature=temperature)
        return torch.cat([learnt, learnt.new_zeros(len(logits) - 1, learnt.shape[1])])


@functools.lru_cache(maxsize=8)
def _each(own: Objective, hard: Objective, learners: tuple[bool, ...]) -> Shared:
    """The objective that members have apart from each other, computed at once for those who have the same."""
    return Shared(tuple(own if learns else hard for learns in learners))


def _stacked(values: list[Tensor | None], like: Tensor) -> Tensor | None:
    """(n,), 0 for members without the term; None where no member has it."""
    if all(value is None for value in values):
        return None
    return torch.stack([torch.zeros_like(like[0]) if value is None else value for value in values])
