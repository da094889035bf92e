"""A recipe of compression: declared steps, each made from an earlier one, read from TOML.

    [[steps]]
    step = "prune"          # prune, finetune, scratch, quantise, export, check
    ratio = 0.5

    [[steps]]
    step = "quantise"       # of the step before, unless `of` names another
    method = "static"

``baseline`` is the student that compression starts from. A step's ``name`` is that of its row and its file; by default
it is its source's name with what was done to it, ``pruned-int8`` here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.compression.steps import CHANNELS, HEADS, KINDS, Prune, Step, fraction
from pipeline.errors import ConfigError

BASELINE = "baseline"
TEACHER = "teacher"


@dataclass(frozen=True)
class Recipe:
    """Steps in order; every ``of`` names ``baseline``, ``teacher`` or an earlier step."""

    steps: tuple[Step, ...]

    def as_dict(self) -> list[dict[str, Any]]:
        """As JSON values, only what differs from the defaults."""
        return [step.as_dict() for step in self.steps]

    def toml(self) -> str:
        """As the file that it can be read from."""
        blocks = []
        for step in self.as_dict():
            lines = [f"{key} = {_toml_value(value)}" for key, value in step.items()]
            blocks.append("\n".join(["[[steps]]", *lines]) + "\n")
        return "\n".join(blocks)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file. Raises ConfigError with everything that is wrong in it."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--recipe should be a TOML file; {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--recipe should be TOML; {path}: {error}") from None
    try:
        return recipe_of(content)
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None


def recipe_of(content: Mapping[str, Any]) -> Recipe:
    """A recipe from its parsed file. Raises ConfigError with everything that is wrong in it.

    >>> [step.name for step in recipe_of({"steps": [{"step": "prune"}, {"step": "quantise"}]}).steps]
    ['pruned', 'pruned-int8']
    """
    raw = content.get("steps")
    if not isinstance(raw, list) or not raw or not all(isinstance(entry, dict) for entry in raw):
        raise ConfigError("a recipe holds [[steps]], each with a `step`; found none")
    strange = sorted(set(content) - {"steps"})
    problems = [f"a recipe holds [[steps]] alone; found {', '.join(strange)} as well"] if strange else []
    steps: list[Step] = []
    before = BASELINE
    for number, entry in enumerate(raw, 1):
        kind = KINDS.get(str(entry.get("step")))
        where = f"step {number}"
        if kind is None:
            problems.append(f"{where}: `step` should be one of {', '.join(KINDS)}; found {entry.get('step')!r}")
            continue
        try:
            step = _step(kind, entry, before)
        except ConfigError as error:
            problems.extend(f"{where} ({entry['step']}): {problem}" for problem in error.problems)
            continue
        steps.append(step)
        before = step.name if step.makes else step.of
    problems.extend(_order_problems(steps))
    if problems:
        raise ConfigError(problems)
    return Recipe(tuple(steps))


def _step(kind: type[Step], entry: Mapping[str, Any], before: str) -> Step:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(entry) - set(fields) - {"step"})
    problems = [f"knows {', '.join(fields)}; found {', '.join(unknown)}"] if unknown else []
    values: dict[str, Any] = {}
    for name, value in entry.items():
        if name in fields:
            try:
                values[name] = _value(name, value, hints[name])
            except ConfigError as error:
                problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    values.setdefault("of", before)
    step = kind(**values)
    return step if step.name else dataclasses.replace(step, name=step.named())


def _value(name: str, value: Any, annotation: Any) -> Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if name == "max_drop":
        return fraction(value, "`max_drop`")
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, annotation) or (isinstance(value, bool) and annotation is not bool):
        raise ConfigError(f"`{name}` should be {_NAMES[annotation]}; found {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"`{name}` should be a number that is finite; found {value!r}")
    return value


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _order_problems(steps: Sequence[Step]) -> Iterator[str]:
    known, pruned = {BASELINE, TEACHER}, set[str]()
    for number, step in enumerate(steps, 1):
        if step.of not in known:
            yield f"step {number}: `of` should name an earlier step or {BASELINE}; found {step.of!r}"
        if isinstance(step, Prune) and step.like and step.like not in pruned:
            yield f"step {number}: `like` should name an earlier step that prunes by one ratio; found {step.like!r}"
        if isinstance(step, Prune) and step.what in (CHANNELS, HEADS) and not step.sensitivity:
            pruned.add(step.name)
        if step.makes and step.name in known:
            yield f"step {number}: there is a {step.name!r} already. Give this step another `name`"
        if step.makes:
            known.add(step.name)


def _toml_value(value: Any) -> str:
    return json.dumps(value)  # of texts, numbers and booleans TOML writes what JSON does
