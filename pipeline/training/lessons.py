"""Features that members learn from each other: who teaches whom, taps in all of them, and a projection for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, ModelError
from pipeline.identity import view_seed
from pipeline.losses import FEATURE_LOSSES
from pipeline.losses.projection import Bridge
from pipeline.models import FeatureTap
from pipeline.training.hinted import shapes_of
from pipeline.training.hints import Hints, Lesson


class Lessons(nn.Module):
    """A projection for each lesson: each pair of ``hints``, of each member that learns and each that teaches it.

    Under "mutual" every member of ``models`` learns from every other, under "online" the first from all others. The
    projections are trained, and thrown away with this module; between two members there are two, one for either side.

    - ``whose``: what each member is called in errors;
    - ``example`` (1, ...): an input that all members take, to see what their modules give;
    - ``seed``: of the initial weights of the projections.

    Raises ConfigError naming every member that lacks a module, and which; ModelError for features that cannot be
    brought to one shape.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        whose: Sequence[str],
        exchange: str,
        hints: Hints,
        example: Tensor,
        seed: int,
    ) -> None:
        super().__init__()
        taught = _taught(exchange, len(models))
        # In a list, and not among the modules: the members are those of whoever holds this.
        self._taps = _taps(models, whose, taught, hints)
        shapes = []
        for model, tap in zip(models, self._taps, strict=True):
            with tap:
                shapes.append(shapes_of(model, tap, example))
        self._lessons: list[tuple[Lesson, str]] = []
        made: list[Bridge] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(view_seed(seed, "projections", 0))
            for feature, module in hints.pairs:
                for learner, teacher in taught:
                    try:
                        bridge = FEATURE_LOSSES[hints.loss].bridge(shapes[learner][module], shapes[teacher][feature])
                    except ModelError as error:
                        raise ModelError(
                            f"--hints {feature}={module}, which {whose[learner]}, learns from {whose[teacher]}: {error}"
                        ) from error
                    self._lessons.append((Lesson(learner, teacher, feature), module))
                    made.append(bridge)
        self.projections = nn.ModuleDict({str(number): bridge for number, bridge in enumerate(made)})

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While it lasts, each forward pass of a member is kept for ``forward``."""
        with ExitStack() as opened:
            for tap in self._taps:
                opened.enter_context(tap)
            yield
        for tap in self._taps:
            tap.values.clear()  # which would live until the next step

    def forward(self) -> dict[str | Lesson, tuple[Tensor, Tensor]]:
        """Both sides of every lesson, the learner's first, of the members' last forward pass; in float32."""
        found: dict[str | Lesson, tuple[Tensor, Tensor]] = {}
        for (lesson, module), projection in zip(self._lessons, self.projections.values(), strict=True):
            own = self._taps[lesson.learner].values[module]
            with torch.autocast(own.device.type, enabled=False):
                found[lesson] = projection(own, self._taps[lesson.teacher].values[lesson.feature])
        return found


def _taught(exchange: str, count: int) -> list[tuple[int, int]]:
    """(whoever learns, whoever teaches) of each lesson in a pair."""
    learners = range(count) if exchange == "mutual" else range(1)
    return [(learner, teacher) for learner in learners for teacher in range(count) if teacher != learner]


def _taps(
    models: Sequence[nn.Module], whose: Sequence[str], taught: Sequence[tuple[int, int]], hints: Hints
) -> list[FeatureTap]:
    """A tap for each member, of the modules that it learns with or teaches, under the names that they have in it."""
    learners, teachers = ({pair[side] for pair in taught} for side in (0, 1))
    taps: list[FeatureTap] = []
    problems: list[str] = []
    for number, (model, name) in enumerate(zip(models, whose, strict=True)):
        wanted = [feature for feature, _ in hints.pairs if number in teachers]
        wanted += [module for _, module in hints.pairs if number in learners]
        try:
            taps.append(FeatureTap(model, {path: path for path in wanted}))
        except ConfigError as error:
            both = number in learners and number in teachers
            needs = ", which teaches and learns and needs both modules of FEATURE=MODULE" if both else ""
            problems += [f"--hints: {name}{needs}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return taps
