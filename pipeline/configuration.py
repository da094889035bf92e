"""One frozen, keyword-only dataclass per stage: its fields are the options of the command and the keys of a config.

A field made by ``option`` carries its help text; ``stages/options.py`` turns the fields into click options, so that
an option exists in one place only. A configuration checks itself and reports all of its problems together.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pipeline.errors import ConfigError


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    paths: bool = False,
) -> Any:
    """A dataclass field that is also a command-line option.

    ``default`` of ``dataclasses.MISSING`` makes the option required. A tuple-typed field is an option that may be
    given several times. ``choices`` are checked with the rest of the configuration, for callers from Python too.
    ``paths``: its texts hold paths.
    """
    metadata = {"help": help, "choices": tuple(choices) if choices else None, "metavar": metavar, "paths": paths}
    return dataclasses.field(default=default, metadata=metadata)


REQUIRED = dataclasses.MISSING
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
"""A URL as pathlib leaves it: ``s3://bucket`` becomes ``s3:/bucket``. ``C:/folder`` is none."""


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The URL that a path was meant as; None for a path.

    >>> url_of("s3:/bucket/cache"), url_of("s3://bucket/cache"), url_of("C:/cache"), url_of("cache")
    ('s3://bucket/cache', 's3://bucket/cache', None, None)
    """
    found = _URL.fullmatch(os.fspath(path))
    return f"{found[1]}://{found[2]}" if found else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the stages' configurations. Subclasses yield their own problems from ``problems``."""

    OUT_AT_URL: ClassVar[bool] = False
    """Whether ``out`` may be a URL."""

    def __post_init__(self) -> None:
        found = [*self._choice_problems(), *self._out_problems(), *self.problems()]
        if found:
            raise ConfigError(found)

    def problems(self) -> Iterator[str]:
        """What is wrong with this configuration, one sentence each, naming the option as it is typed."""
        yield from ()

    def below(self, **floors: float) -> Iterator[str]:
        """A problem for each of the named options that is below its floor."""
        for name, low in floors.items():
            if getattr(self, name) < low:
                yield f"--{name.replace('_', '-')} should be at least {low}; found {getattr(self, name)}"

    def given(self, *names: str) -> list[str]:
        """Those of the named options that have another value than their default."""
        fields = {field.name: field for field in dataclasses.fields(self)}
        return [name for name in names if getattr(self, name) != fields[name].default]

    def _choice_problems(self) -> Iterator[str]:
        for field in dataclasses.fields(self):
            choices: tuple[str, ...] = field.metadata.get("choices") or ()
            value = getattr(self, field.name)
            given = value if isinstance(value, tuple) else (value,)
            for item in given if choices else ():
                if item is not None and item not in choices:
                    yield f"--{field.name.replace('_', '-')} should be one of {', '.join(choices)}; found {item!r}"

    def _out_problems(self) -> Iterator[str]:
        out = getattr(self, "out", None)
        if isinstance(out, os.PathLike) and (url := url_of(out)) and not (self.OUT_AT_URL and _writable(url)):
            yield f"--out should be a local directory; found {out}. Copy the result to its URL when it is done"

    def as_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


def command_line(
    name: str,
    kind: type[Config],
    options: Mapping[str, Any],
    *,
    typed: Sequence[str] = (),
    without: Collection[str] = (),
) -> str:
    """``softlabels NAME`` with those of ``options`` that are not the default of ``kind``; --out comes last.

    ``typed``: options that are typed without their name, first; ``without``: options to leave out. Values are JSON's,
    as ``as_dict`` gives them.
    """
    words = ["softlabels", *name.split()]
    for key in typed:
        words += [str(item) for item in options.get(key) or ()]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in sorted(fields, key=lambda key: (key == "out", list(fields).index(key))):
        if options.get(key) is not None and key not in typed and key not in without:
            words += _words(key, fields[key].default, options[key])
    return shlex.join(words)


def _words(key: str, default: Any, value: Any) -> Iterator[str]:
    plain = _plain(value)
    if plain == _plain(default):
        return
    name = key.replace("_", "-")
    if isinstance(plain, bool):
        yield f"--{'' if plain else 'no-'}{name}"
        return
    for item in plain if isinstance(plain, list) else [plain]:
        yield f"--{name}"
        yield f"{item:g}" if isinstance(item, float) and float(f"{item:g}") == item else str(item)


def _writable(url: str) -> bool:
    return not url.startswith(("file:", "http:", "https:"))


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def parse_arguments(texts: Sequence[str], option_name: str) -> dict[str, Any]:
    """Keyword arguments from ``key=value`` texts; a value is an int, a float, a bool, or else a string.

    >>> parse_arguments(["hidden=16,dropout=0.1", "bias=false"], "--student-args")
    {'hidden': 16, 'dropout': 0.1, 'bias': False}

    Raises ConfigError naming ``option_name`` when a text is not of that form, or a number is not finite.
    """
    arguments: dict[str, Any] = {}
    for item in [piece for text in texts for piece in text.split(",") if piece.strip()]:
        key, sign, value = item.partition("=")
        if not sign or not key.strip().isidentifier():
            raise ConfigError(f"{option_name} should be key=value pairs; found {item!r}")
        arguments[key.strip()] = found = _literal(value.strip())
        if isinstance(found, float) and not math.isfinite(found):
            raise ConfigError(f"numbers in {option_name} should be finite; found {item.strip()!r}")
    return arguments


def _literal(text: str) -> int | float | bool | str | None:
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    for kind in (int, float):
        try:
            value = kind(text)
            float(value)  # whole numbers beyond every float cannot be compared or printed as one
            return value
        except (ValueError, OverflowError):
            continue
    return text
