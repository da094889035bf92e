"""Which encoding to take, and the command that dumps it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any

from pipeline.dump import DumpConfig
from pipeline.errors import EncodingError
from pipeline.planning.config import PlanConfig, parse_bytes
from pipeline.planning.estimates import Estimate


def mean_kl(found: Estimate, temperature: float) -> float:
    """The mean KL in nats at a temperature that was measured."""
    return found.kl[f"{temperature:g}"]["mean"]


def choose(estimates: Sequence[Estimate], config: PlanConfig) -> Estimate | None:
    """The encoding that ``budget`` and ``max_kl`` ask for; None when neither is given.

    ``budget`` alone: the most faithful, by mean KL at the training temperature, whose whole cache fits (of equal
    ones the smaller). ``max_kl``: the smallest with no more than that, and, with ``budget``, one that fits.

    Raises EncodingError that names the nearest when there is none.
    """
    if config.budget is None and config.max_kl is None:
        return None
    budget = parse_bytes(config.budget) if config.budget is not None else None
    sound = [each for each in estimates if each.problem is None]

    def size(each: Estimate) -> tuple[float, float]:
        return each.bytes["total"], mean_kl(each, config.temperature)

    def loss(each: Estimate) -> tuple[float, float]:
        return mean_kl(each, config.temperature), each.bytes["total"]

    fitting = [each for each in sound if budget is None or each.bytes["total"] <= budget]
    faithful = [each for each in sound if config.max_kl is None or mean_kl(each, config.temperature) <= config.max_kl]
    both = [each for each in fitting if each in faithful]
    if both:
        return min(both, key=loss if config.max_kl is None else size)
    wanted = [] if budget is None else [f"takes at most {config.budget}"]
    wanted += (
        [] if config.max_kl is None else [f"has a mean KL of at most {config.max_kl:g} at T = {config.temperature:g}"]
    )
    nearest = []
    if fitting and faithful:
        nearest = [
            ("the most faithful that fits", min(fitting, key=loss)),
            ("the smallest faithful one", min(faithful, key=size)),
        ]
    elif sound:
        # One demand alone cannot be met, whatever the other.
        nearest = (
            [("the smallest", min(sound, key=size))] if not fitting else [("the most faithful", min(sound, key=loss))]
        )
    found = [
        f"{which}, {each.name}, takes {human_bytes(size(each)[0])} at {loss(each)[0]:.2g} nats"
        for which, each in nearest
    ]
    raise EncodingError(
        f"no encoding in the table {' and '.join(wanted)}: {'; '.join(found) or 'none can keep these logits'}. Allow "
        "more, or change --k, --views or --features"
    )


def dump_options(config: PlanConfig, found: Estimate) -> str:
    """The command that dumps ``found``, but for where to: every option that is not the default."""
    dump = dataclasses.replace(config.dump(), **found.options)
    words = ["softlabels", "dump"]
    for field in dataclasses.fields(DumpConfig):
        value: Any = getattr(dump, field.name)
        if field.name == "out" or value == field.default:
            continue
        for each in value if isinstance(value, tuple) else (value,):
            words += ["--" + field.name.replace("_", "-"), f"{each:g}" if isinstance(each, float) else str(each)]
    return shlex.join(words)


def human_bytes(number: float) -> str:
    """Bytes in decimal units, three digits.

    >>> human_bytes(950), human_bytes(57_200_000), human_bytes(999_950_000)
    ('950 B', '57.2 MB', '1.00 GB')
    """
    if number < 999.5:
        return f"{number:.0f} B"
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        number /= 1000
        if number < 999.5 or unit == "PB":
            break
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {unit}"
