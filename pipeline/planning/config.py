"""The options of a plan: those of a dump that decide what it costs, and what is asked of the encoding."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.configuration import Config, option
from pipeline.dump import DumpConfig
from pipeline.errors import ConfigError

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4, "P": 1000**5}
_BINARY = {f"{letter}I": 1024**power for power, letter in enumerate("KMGTP", start=1)}
_SIZE = re.compile(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([KMGTP]?I?)B?\s*", re.IGNORECASE)

_AS_DUMPED = {field.name: field for field in dataclasses.fields(DumpConfig)}


def _dumped(name: str) -> Any:
    """The option of ``softlabels dump`` of that name: the same default, the same help."""
    return dataclasses.field(default=_AS_DUMPED[name].default, metadata=_AS_DUMPED[name].metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig(Config):
    """Options of ``softlabels cache plan``."""

    sample: int | None = option(
        None,
        "entries that the teacher is asked about, drawn by --seed over all splits and views (512); of token sequences "
        "positions (4,096, or as many as have half a GiB of logits)",
    )
    temperature: float = option(4.0, "at which students will be trained; for token sequences 1, where it is not given")
    k: tuple[int, ...] = option(
        (),
        "classes that topk keeps, one line of the table each; by default powers of 4 up to half of the classes, and "
        "8, 16, 32, 64 for token sequences",
    )
    draws: tuple[int, ...] = option(
        (), "draws of sampled labels of token sequences, one line each; by default 25, 50, 100, 200"
    )
    budget: str | None = option(
        None, "pick the most faithful encoding whose cache takes at most this: 50GB, 1.5GiB, 800MB, or bytes"
    )
    max_kl: float | None = option(
        None,
        "pick the smallest encoding whose mean KL at --temperature is at most this, in nats; with --budget, of those "
        "that fit",
    )
    data: str = _dumped("data")
    data_args: tuple[str, ...] = _dumped("data_args")
    teacher: str = _dumped("teacher")
    teacher_args: tuple[str, ...] = _dumped("teacher_args")
    weights: Path | None = option(None, _AS_DUMPED["weights"].metadata["help"])
    run: Path | None = option(None, _AS_DUMPED["run"].metadata["help"])
    run_seed: int | None = _dumped("run_seed")
    allow: tuple[str, ...] = _dumped("allow")
    classes: tuple[str, ...] = _dumped("classes")
    views: int = _dumped("views")
    transform: str | None = _dumped("transform")
    seed: int = _dumped("seed")
    splits: tuple[str, ...] = _dumped("splits")
    features: tuple[str, ...] = _dumped("features")
    store: str = _dumped("store")
    part_size: int = _dumped("part_size")
    batch_size: int = _dumped("batch_size")
    workers: int = _dumped("workers")
    device: str = _dumped("device")
    precision: str = _dumped("precision")
    threads: int = _dumped("threads")

    def problems(self) -> Iterator[str]:
        if self.sample is not None:
            yield from self.below(sample=1)
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            yield f"--temperature should be above 0; found {self.temperature}"
        for name in ("k", "draws"):
            if any(number < 1 for number in getattr(self, name)):
                yield f"--{name} should be at least 1; found {', '.join(map(str, getattr(self, name)))}"
        if self.max_kl is not None and not self.max_kl >= 0:
            yield f"--max-kl should be 0 or more nats; found {self.max_kl}"
        seen = set(self._choice_problems())
        for check in (lambda: parse_bytes("0" if self.budget is None else self.budget), self.dump):
            try:
                check()
            except ConfigError as error:
                yield from (problem for problem in error.problems if problem not in seen)

    def dump(self) -> DumpConfig:
        """The dump of all logits that this plan is about. Raises ConfigError as a dump would."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in _AS_DUMPED}
        shared = {name: value for name, value in shared.items() if name not in ("k", "draws", "temperature")}
        return DumpConfig(out=Path("unwritten"), **shared)


def parse_bytes(text: str) -> int:
    """Bytes of ``50GB`` (decimal), ``1.5GiB`` (binary), ``2T``, or a bare number.

    >>> parse_bytes("50GB"), parse_bytes("1.5 GiB"), parse_bytes("4096")
    (50000000000, 1610612736, 4096)

    Raises ConfigError for anything else.
    """
    found = _SIZE.fullmatch(text)
    unit = found[2].upper() if found else ""
    if not found or (unit and unit not in {**_UNITS, **_BINARY}):
        raise ConfigError(
            f"--budget should be a number of bytes, or one with kB, MB, GB, TB (decimal) or KiB, MiB, GiB, TiB "
            f"(binary), as in 50GB; found {text!r}"
        )
    return int(float(re.sub("[_,]", "", found[1])) * {**_UNITS, **_BINARY}[unit])


def default_k(classes: int) -> tuple[int, ...]:
    """The values of k for C = ``classes``: powers of 4 from 4 to C / 2, five at most; below 8 classes, C / 2.

    >>> default_k(1000), default_k(10), default_k(3), default_k(1)
    ((4, 16, 64, 256), (4,), (1,), (1,))
    """
    powers = tuple(4**power for power in range(1, 6) if 2 * 4**power <= classes)
    return powers or (max(1, classes // 2),)


def default_tokens(classes: int) -> tuple[int, ...]:
    """The values of k for a vocabulary of V = ``classes``: 8 to 64, up to half of it.

    >>> default_tokens(128_256), default_tokens(24)
    ((8, 16, 32, 64), (8,))
    """
    return tuple(k for k in (8, 16, 32, 64) if 2 * k <= classes) or default_k(classes)
