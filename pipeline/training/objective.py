"""What a training step minimises: soft labels, hard labels and hints, each row by what it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from torch import Tensor

from pipeline.errors import EncodingError
from pipeline.losses import (
    FEATURE_LOSSES,
    LOSSES,
    ResponseLoss,
    fused_loss,
    hard_loss,
    opinions_loss,
    standardised,
    standardised_labels,
)
from pipeline.losses.meeting import EVEN
from pipeline.softlabels import Opinions, Sampled, SoftLabels, TopK
from pipeline.training.hints import Hints, Lesson


class Terms(NamedTuple):
    """Sums over the rows of a batch: the objective, and its unweighted terms (None: not used).

    Scalars; where n members are trained as one, (n,) each. ``peers``: of members that learn from each other.
    """

    total: Tensor
    hard: Tensor | None
    soft: Tensor | None
    hints: Tensor | None
    peers: Tensor | None = None


class Head(NamedTuple):
    """The last matrix of a language model: ``weight`` (V, D) and ``bias`` (V,) or None make logits of hidden states."""

    weight: Tensor
    bias: Tensor | None


class Output(NamedTuple):
    """What a student gives in training.

    - ``logits`` (B, C); (n, B, C) of n members that are trained as one; with a ``head``, what it makes the logits of:
      hidden states (P, D) of scored positions;
    - ``hints``: for each hint, by the teacher's name of it, the student's features and the teacher's, brought to one
      shape (B, ...); of members, those of whoever learns and of whoever teaches, by the ``Lesson``.
    """

    logits: Tensor
    hints: Mapping[str | Lesson, tuple[Tensor, Tensor]] = {}
    head: Head | None = None


@dataclass(frozen=True)
class Batch:
    """What is known of the rows of a batch besides their inputs, on the device of training.

    Of token sequences a row is a scored position, P of them in the place of B: ``index`` (P,) says where each lies in
    the batch, None for all of its places (``sources.positions``).

    - ``labels`` (B,) int64, -1 for none; ``partners`` (B,) those of what each row is mixed with, None where none is,
      and ``share`` (B,) how much of each row is its own;
    - ``soft``: their soft labels; ``has_soft`` (B,) bool says whose are not placeholders, None when all are real;
    - ``hints``: the teacher's features (B, ...) by name; ``has_hints`` as ``has_soft``.
    """

    labels: Tensor
    soft: SoftLabels | Opinions | None = None
    has_soft: Tensor | None = None
    hints: Mapping[str, Tensor] | None = None
    has_hints: Tensor | None = None
    partners: Tensor | None = None
    share: Tensor | None = None
    index: Tensor | None = None


class Goal(Protocol):
    """What ``fit`` minimises: an ``Objective``, or one that several members share.

    ``alpha``, ``beta``: 0 where no soft, or no hard, labels are used; ``hints``: None where no features are.
    """

    @property
    def alpha(self) -> float: ...

    @property
    def beta(self) -> float: ...

    @property
    def hints(self) -> Hints | None: ...

    @property
    def response(self) -> ResponseLoss: ...

    @property
    def used(self) -> tuple[str, ...]:
        """The names of the ``Terms`` that count, besides the total."""

    def at(self, epoch: int) -> Goal:
        """What one epoch minimises."""

    def __call__(self, output: Output, batch: Batch) -> Terms:
        """Of one batch, with gradients."""


@dataclass(frozen=True)
class Objective:
    """``alpha`` times the soft term of rows that have soft labels, plus ``beta`` times the hard one of labelled rows.

    - ``loss``: a name in ``losses.LOSSES``, ``parameters``: of its own, (name, value) each; ``temperature`` of both
      sides; ``standardise``: z-scores in the place of the logits of both sides (Sun et al. 2024); ``bare``: top-k
      labels without their residual (``TopK.bare``);
    - ``rising``: so many epochs, from the first that learns labels, over which ``alpha`` rises linearly from its 1 /
      ``rising``: DKD's warm-up (Zhao et al. 2022; in the code that they released it begins like that, not at 0);
      ``beta`` stays. 0 has ``alpha`` whole in every epoch;
    - ``smoothing``: share of a hard label that is spread over all classes;
    - ``hints``: what is learnt from the teacher's features, None for nothing.
    """

    alpha: float = 0.0
    beta: float = 1.0
    temperature: float = 4.0
    loss: str = "kl"
    parameters: tuple[tuple[str, float | str], ...] = ()
    standardise: bool = False
    smoothing: float = 0.0
    hints: Hints | None = None
    bare: bool = False
    rising: int = 0

    @property
    def response(self) -> ResponseLoss:
        """The loss on soft labels that ``loss`` names."""
        return LOSSES[self.loss]

    @property
    def even(self) -> bool:
        """Whether the residual of top-k labels is spread evenly over the dropped classes."""
        return ("residual", EVEN) in self.parameters

    @property
    def used(self) -> tuple[str, ...]:
        """Those of hard, soft and hints that weigh anything."""
        weighed = {"hard": self.beta, "soft": self.alpha, "hints": self.hints is not None}
        return tuple(name for name, weight in weighed.items() if weight)

    def at(self, epoch: int) -> Objective:
        """The objective of one epoch: itself, but where hints and labels take turns, or ``alpha`` rises."""
        if self.hints is not None and self.hints.epochs:
            if epoch < self.hints.epochs:
                return replace(self, alpha=0.0, beta=0.0, hints=self.hints.at(epoch))
            return replace(self, hints=None).at(epoch - self.hints.epochs)
        if epoch + 1 >= self.rising:
            return self
        return replace(self, alpha=self.alpha * (epoch + 1) / self.rising, rising=0)

    def __call__(self, output: Output, batch: Batch) -> Terms:
        """Sums, not means: the caller divides by the rows of the optimiser step, which keeps accumulation exact."""
        if output.head is not None:
            return self._fused(output.logits, output.head, batch)
        logits = output.logits
        hard = self.hard_rows(logits, batch).sum() if self.beta else None
        soft = self.soft_rows(logits, batch, batch.soft).sum() if batch.soft is not None and self.alpha else None
        hints = self._hints(output, batch, self.hints) if self.hints is not None else None
        weight = self.hints.weight if self.hints is not None else 0.0
        weighed = [w * v for w, v in ((self.alpha, soft), (self.beta, hard), (weight, hints)) if v is not None]
        return Terms(sum(weighed[1:], start=weighed[0]) if weighed else logits.sum() * 0, hard, soft, hints)

    @property
    def fusible(self) -> bool:
        """Whether it can be had of hidden states and an output matrix, without the logits of all rows at once."""
        return self.loss == "kl" and not (self.standardise or self.bare or self.hints)

    def _fused(self, hidden: Tensor, head: Head, batch: Batch) -> Terms:
        """The same of hidden states, whose logits are never held all at once."""
        if isinstance(batch.soft, Opinions):
            raise EncodingError("a loss for each teacher needs the logits of all rows: leave out the fused loss")
        found = fused_loss(
            hidden,
            head.weight,
            head.bias,
            targets_P=batch.labels,
            soft=batch.soft if self.alpha else None,
            has_soft=batch.has_soft,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            smoothing=self.smoothing,
            **dict(self.parameters),  # type: ignore[arg-type]
        )
        return Terms(
            found.total,
            found.hard if self.beta else None,
            found.soft if batch.soft is not None and self.alpha else None,
            None,
        )

    def hard_rows(self, logits: Tensor, batch: Batch) -> Tensor:
        """(B,): of mixed rows the loss of both labels, each by its share (Zhang et al. 2018, mixup)."""
        own = hard_loss(logits, batch.labels, smoothing=self.smoothing)
        if batch.partners is None or batch.share is None:
            return own
        return batch.share * own + (1 - batch.share) * hard_loss(logits, batch.partners, smoothing=self.smoothing)

    def soft_rows(self, logits: Tensor, batch: Batch, soft: SoftLabels | Opinions) -> Tensor:
        """(B,), 0 for rows without soft labels; of losses on whole batches, of the rows that have some alone."""
        response, labels, has = self.response, batch.labels, batch.has_soft
        if isinstance(soft, Opinions):  # which weigh nothing where there are no soft labels
            return opinions_loss(logits, labels, soft, self._rows, batch=response.batch)
        if response.batch and has is not None:
            # Placeholders of rows without soft labels would count in the correlations of the others.
            known = has
            logits, labels, soft = logits[known], labels[known], soft.select(known)
            has = None
            if not len(logits):
                return logits.sum(dim=1) * 0
        rows = self._rows(logits, labels, soft)
        return rows if has is None else rows * has

    def _rows(self, logits: Tensor, labels: Tensor, soft: SoftLabels) -> Tensor:
        if self.standardise:
            logits, soft = standardised(logits), standardised_labels(soft)
        if self.bare:
            if not isinstance(soft, TopK):
                found = "sampled ones" if isinstance(soft, Sampled) else "labels of all classes"
                raise EncodingError(f"bare top-k labels are made of top-k ones; found {found}")
            soft = soft.bare()
        return self.response(logits, soft, labels, self.temperature, **dict(self.parameters))

    def _hints(self, output: Output, batch: Batch, hints: Hints) -> Tensor:
        """The loss of each pair, of rows that have features alone: others would count in the relations of a batch."""
        total = output.logits.sum() * 0
        for name, _ in hints.pairs:
            student, teacher = output.hints[name]
            if batch.has_hints is not None:
                student, teacher = student[batch.has_hints], teacher[batch.has_hints]
            if len(student):
                total = total + FEATURE_LOSSES[hints.loss](student, teacher).sum()
        return total
