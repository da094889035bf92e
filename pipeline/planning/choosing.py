"""Which encoding to take, and the command that dumps it."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.dump import DumpConfig
from pipeline.errors import EncodingError
from pipeline.losses.meeting import EVEN
from pipeline.planning.config import PlanConfig, parse_bytes
from pipeline.planning.estimates import Estimate

BIAS = 0.02
"""A gradient whose length is off by more is biased: no number of positions makes up for that."""

SMALL_TURN = 4.0
"""Degrees over a step of training that are little; what the draws of Anshumann et al. 2025 are published with."""


def mean_kl(found: Estimate, temperature: float) -> float:
    """The mean KL in nats at a temperature that was measured; of draws, which have weight 0 for most, infinite."""
    known = found.kl.get(f"{temperature:g}")
    return known["mean"] if known is not None else math.inf


def biased(found: Estimate) -> bool:
    """Whether the gradient of a student on token sequences has another length, ``BIAS`` or more, than in full."""
    return abs(found.turns["step"].ratio - 1) > BIAS


def ways(found: Estimate) -> Iterator[Estimate]:
    """An encoding, and beside it the same trained with its residual spread evenly, where that turns a step less."""
    yield found
    if found.even:
        even = dataclasses.replace(found, name=f"{found.name} even", turns=found.even, bare={}, even={}, residual=EVEN)
        if _turn(even) < _turn(found):
            yield even


def recommended(estimates: Sequence[Estimate]) -> Estimate | None:
    """The encoding of token sequences to take where nothing was asked for; None where none can keep the sample.

    The smallest that is not biased and turns the gradient of a step by ``SMALL_TURN`` at most; otherwise the one that
    turns it least.
    """
    sound = [each for each in estimates if each.problem is None]
    if small := [each for each in sound if not biased(each) and each.turns["step"].angle <= SMALL_TURN]:
        return min(small, key=lambda each: (each.bytes["total"], each.turns["step"].angle))
    return min(sound, key=_turn, default=None)


def _turn(each: Estimate) -> tuple[float, float, float]:
    return float(biased(each)), each.turns["step"].angle, each.bytes["total"]


def choose(estimates: Sequence[Estimate], config: PlanConfig) -> Estimate | None:
    """The encoding that ``budget`` and ``max_kl`` ask for; None when neither is given.

    ``budget`` alone: the most faithful, by mean KL at the training temperature, whose whole cache fits (of equal
    ones the smaller). Of token sequences, where draws have no KL: the one that turns the gradient of a step least, of
    those that are not ``biased``, or of all that fit where all of those are. ``max_kl``: the smallest with no more than
    that, and, with ``budget``, one that fits; draws never do.

    Raises EncodingError that names the nearest when there is none.
    """
    if config.budget is None and config.max_kl is None:
        return None
    budget = parse_bytes(config.budget) if config.budget is not None else None
    sound = [each for each in estimates if each.problem is None]

    def size(each: Estimate) -> tuple[float, float]:
        return each.bytes["total"], mean_kl(each, config.temperature)

    def loss(each: Estimate) -> tuple[float, ...]:
        if config.max_kl is None and each.turns:
            return _turn(each)
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
        f"{which}, {each.name}, takes {human_bytes(size(each)[0])} "
        + (f"at {kl:.2g} nats" if math.isfinite(kl := size(each)[1]) else "and has no KL (draws)")
        for which, each in nearest
    ]
    changes = "--k, --draws or --features" if any(each.turns for each in sound) else "--k, --views or --features"
    raise EncodingError(
        f"no encoding in the table {' and '.join(wanted)}: {'; '.join(found) or 'none can keep these logits'}. Allow "
        f"more, or change {changes}"
    )


def reason(picked: Estimate, estimates: Sequence[Estimate], config: PlanConfig) -> str:
    """Why ``choose`` or ``recommended`` took this one of token sequences, in words; "" of anything else."""
    if not picked.turns or config.max_kl is not None:
        return ""
    step = picked.turns["step"]
    words = f"{picked.bytes_per_label:.1f} B per token, {step.angle:.1f} degrees"
    if picked.residual == EVEN:
        words += f" where it is trained with --loss-args residual={EVEN}"
    if biased(picked):
        return f"{words}; the gradient's length is {step.ratio:.3f} of what it should be, as nothing unbiased fits"
    budget = parse_bytes(config.budget) if config.budget is not None else math.inf
    fitting = [each for each in estimates if each.problem is None and each.bytes["total"] <= budget]
    if passed := [each.name for each in fitting if biased(each) and each.turns["step"].angle < step.angle]:
        words += f"; {', '.join(passed)} turn it less, but change its length by more than {100 * BIAS:g}%, always"
    return words


def dump_options(config: PlanConfig, found: Estimate) -> str:
    """The command that dumps ``found``, but for where to: what ``found`` says, and all other options not default."""
    dump = dataclasses.replace(config.dump(), **found.options)
    words = ["softlabels", "dump"]
    for field in dataclasses.fields(DumpConfig):
        value: Any = getattr(dump, field.name)
        if field.name == "out" or (value == field.default and field.name not in found.options):
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
