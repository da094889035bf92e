"""What peers minimise that learn from each other, all at once, besides their labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.losses import ResponseLoss, mean_logits, mutual_loss, taught_loss
from pipeline.training.hints import Hints
from pipeline.training.objective import Batch, Objective, Output, Terms

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

    What teaches is a constant. ``own`` has no hints.
    """

    own: Objective
    kind: str = "mutual"
    weight: float = 1.0

    @property
    def alpha(self) -> float:
        return self.own.alpha

    @property
    def beta(self) -> float:
        return self.own.beta

    @property
    def hints(self) -> Hints | None:
        return None

    @property
    def response(self) -> ResponseLoss:
        return self.own.response

    @property
    def used(self) -> tuple[str, ...]:
        """Those of ``own``, and what is learnt from peers."""
        return (*self.own.used, "peers")

    def at(self, epoch: int) -> Exchange:
        """With ``own`` as it is in that epoch; what is learnt from peers weighs the same in all."""
        return replace(self, own=self.own.at(epoch))

    def __call__(self, output: Output, batch: Batch) -> Terms:
        """Sums (n,) over the rows of a batch, of logits (n, B, C)."""
        logits = output.logits
        goals = [self.own if learns else self._hard for learns in self._learners(len(logits))]
        apart = [goal(Output(each), batch) for goal, each in zip(goals, logits, strict=True)]
        peers = self._between(logits).sum(dim=1)
        total = torch.stack([terms.total for terms in apart]) + self.weight * peers
        hard, soft = (_stacked([terms[column] for terms in apart], total) for column in (1, 2))
        return Terms(total, hard, soft, None, peers)

    @property
    def _hard(self) -> Objective:
        """Of a member without any teacher. An online one is no student: its hard labels weigh 1."""
        return replace(self.own, alpha=0.0, beta=1.0 if self.kind == "online" else self.own.beta)

    def _learners(self, count: int) -> list[bool]:
        """Which members learn from soft labels."""
        if self.kind == "ensemble":
            return [True] * (count - 1) + [False]
        return [True] + [self.kind == "mutual"] * (count - 1)

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


def _stacked(values: list[Tensor | None], like: Tensor) -> Tensor | None:
    """(n,), 0 for members without the term; None where no member has it."""
    if all(value is None for value in values):
        return None
    return torch.stack([torch.zeros_like(like[0]) if value is None else value for value in values])
