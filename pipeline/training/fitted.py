"""What a fit came to: the record of its epochs, or that it diverged."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.errors import ModelError


@dataclass(frozen=True)
class Fitted:
    """What a fit did; the model itself holds the weights that were asked for.

    ``history`` has per finished epoch: epoch, view, lr (of its last step), loss and those of hard, soft, hints and
    peers that counted in it (means per example, unweighted, 0 for an example without), accuracy and nll on validation.
    ``best_epoch`` is best on validation, ``kept_epoch`` the one whose weights were kept. ``seconds`` are of this
    process.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    kept_epoch: int
    steps: int
    seconds: float
    examples: int
    figures: dict[str, float] = field(default_factory=dict)

    def of(self, member: int) -> Fitted:
        """What a fit of several members did to one of them, as a fit of it alone would say."""
        history = [{k: v[member] if isinstance(v, list) else v for k, v in record.items()} for record in self.history]
        scores = [(record["accuracy"], -record["nll"]) for record in history if "accuracy" in record]
        figures = {k: v for k, v in history[self.kept_epoch].items() if k in ("accuracy", "nll")}
        best = scores.index(max(scores)) if scores else self.best_epoch
        return replace(self, history=history, best_epoch=best, figures=figures)


class DivergedError(ModelError):
    """Loss or outputs are no longer finite; ``members``: whose, where several models were trained as one."""

    def __init__(self, text: str, members: tuple[int, ...]) -> None:
        super().__init__(text)
        self.members = members
