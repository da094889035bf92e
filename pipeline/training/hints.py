"""``--hints FEATURE=MODULE``: which features of the teacher are learnt, by which module of the student, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Hints:
    """Which features of the teacher are learnt, and how.

    - ``pairs``: the teacher's name of each feature, and the module of the student that should give the same;
    - ``loss``: a name in ``losses.FEATURE_LOSSES``; ``weight``: of its sum over the pairs;
    - ``epochs``: so many epochs learn hints alone, and the others labels alone (the two stages of FitNets, Romero et
      al. 2015); 0 learns both together throughout. ``in_turn`` gives each pair its own share of those epochs, the
      first layer first.
    """

    pairs: tuple[tuple[str, str], ...]
    loss: str = "hint"
    weight: float = 1.0
    epochs: int = 0
    in_turn: bool = False

    def at(self, epoch: int) -> Hints:
        """What one of the first ``epochs`` learns: all pairs, or the one whose turn it is."""
        if not self.in_turn:
            return self
        return replace(self, pairs=(self.pairs[epoch * len(self.pairs) // self.epochs],))


class Lesson(NamedTuple):
    """That the member ``learner`` learns ``feature`` of the member ``teacher``, both by number."""

    learner: int
    teacher: int
    feature: str


def parse_hints(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(the teacher's feature, the student's module) of each hint, in the order given; one name alone is both.

    >>> parse_hints(["hint=stage2", "stage1"])
    (('hint', 'stage2'), ('stage1', 'stage1'))

    Raises ConfigError with every text that is no such pair, and for a feature that is named twice.
    """
    texts = [texts] if isinstance(texts, str) else texts
    problems: list[str] = []
    found: dict[str, str] = {}
    for text in texts:
        feature, sign, module = (piece.strip() for piece in text.partition("="))
        module = module if sign else feature
        if not feature or not module:
            problems.append(f"--hints should be FEATURE=MODULE, a teacher's feature and a module; found {text!r}")
        elif feature in found:
            problems.append(f"--hints names the feature {feature!r} twice. Name it once, with one module")
        found[feature] = module
    if problems:
        raise ConfigError(problems)
    return tuple(found.items())
