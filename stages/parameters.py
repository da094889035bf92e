"""Options from a parameter file: ``--params params.yaml:train`` and ``--each params.yaml``.

DVC can unpack one section of ``params.yaml`` into a command, but not the section that another value names
(``methods.soft``), and it cannot join a list into a command. So commands read both by themselves; a run by hand
then takes its options from the same file. A glob in place of ``--each`` would also find what an earlier list left.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import ConfigError


def read_params(text: str, option: str = "--params") -> dict[str, Any]:
    """The options in one section of a YAML or JSON file: ``params.yaml:train``, ``params.yaml:methods.soft``.

    Without a section, the whole file. A null stands for an option as it is when nothing is said of it. Raises
    ConfigError, naming ``option``, when the file or section is not there.
    """
    name, _, section = text.partition(":")
    try:
        content = Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{option} should name a file that can be read; {name}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{option} should name a text in UTF-8; {name}: {error}") from None
    values = _parse(name, content, option)
    walked: list[str] = []
    for key in section.split(".") if section else []:
        if not isinstance(values, Mapping) or key not in values:
            place = f"{name}:{'.'.join(walked)}".rstrip(":")
            there = ", ".join(map(str, values)) if isinstance(values, Mapping) else "no sections"
            raise ConfigError(f"{option} {text}: there is no {key!r} in {place}, which holds {there}")
        values = values[key]
        walked.append(key)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{option} {text} should name a section of options; found a {type(values).__name__}")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _parse(name: str, content: str, option: str) -> Any:
    import yaml

    try:
        return json.loads(content) if name.endswith(".json") else yaml.safe_load(content)
    except (ValueError, TypeError, LookupError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{option}: {name} is neither YAML nor JSON: {error}") from None


Pathlike = TypeVar("Pathlike", Path, str)


def fill(paths: Sequence[Pathlike], values: Mapping[str, Any]) -> tuple[Pathlike, ...]:
    """Every path or text, once for each combination of the values that its ``{names}`` stand for.

    >>> [p.as_posix() for p in fill([Path("runs/{s}-{m}")], {"s": ["a", "b"], "m": {"x": 1, "y": 2}})]
    ['runs/a-x', 'runs/a-y', 'runs/b-x', 'runs/b-y']

    Raises ConfigError for a name that ``values`` lacks, or that is neither a list nor a section.
    """
    filled: list[Pathlike] = []
    for path in paths:
        names = list(dict.fromkeys(re.findall(r"{(\w+)}", str(path))))
        for name in names:
            if not isinstance(values.get(name), (list, Mapping)):
                lists = [key for key, value in values.items() if isinstance(value, (list, Mapping))]
                raise ConfigError(f"{path}: --each should hold a list {name!r}; it holds {', '.join(lists) or 'none'}")
        for combination in itertools.product(*(values[name] for name in names)):
            filled.append(type(path)(str(path).format(**dict(zip(names, combination, strict=True)))))
    return tuple(filled)
