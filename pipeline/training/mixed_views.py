"""What cannot be learnt from views that mix two examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.errors import ConfigError
from pipeline.views import Views


def check_mixed(views: Views, train_views: tuple[int, ...], config: Any) -> None:
    """Raise ConfigError, with all the problems, when mixed views are trained on as if each were of one example.

    ``config`` is a Recipe; what a TrainConfig has beyond it counts too.
    """
    if views.mixed and any(train_views) and (found := [*_problems(views, config)]):
        raise ConfigError(found)


def _problems(views: Views, config: Any) -> Iterator[str]:
    objective, made = config.objective, f"views made by {views.description} are mixed from two examples"
    if objective.alpha and objective.response.labelled:
        yield f"{made}, and --loss {objective.loss} needs the hard label of one: use another, such as kl"
    if objective.alpha and getattr(config, "label_view", "own") == "plain":
        yield f"{made}, and the soft labels of the plain view are of one of them: use --label-view own"
    if getattr(config, "omit_class", None):
        yield f"{made}, and the second may be of the class {config.omit_class!r}: leave out --omit-class"
