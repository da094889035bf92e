"""Names that people write on a command line, turned into objects: ``module:factory`` and optional packages.

Only a person's own words come here, an option or an argument. A name found in a cache, a manifest or a weights file
is never resolved: reading a file must not import anything.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from pipeline.errors import ConfigError, MissingDependencyError

LIBRARIES = frozenset({"arrays", "images", "tokens", "torchvision", "hf", "timm"})
"""Prefixes of references that name a file or a library's object, not people's own code."""

WRAPPERS = frozenset({"munge", "hydra"})
"""Prefixes of references that name another reference."""


def is_own_code(reference: str) -> bool:
    """Whether a reference is a ``module:factory``.

    >>> is_own_code("my_models:build"), is_own_code("timm:resnet18"), is_own_code("cnn-8")
    (True, False, False)
    >>> is_own_code("munge:digits"), is_own_code("munge:my_data:Points")
    (False, True)
    """
    source, colon, rest = reference.partition(":")
    if source in WRAPPERS:
        return is_own_code(rest)
    return bool(colon) and source not in LIBRARIES


def resolve(reference: str, option_name: str) -> Any:
    """The object that ``module:name`` names; ``name`` may be dotted.

    The current folder is looked up last: a repository of one's own often holds a package with the name of one that is
    installed (a ``pipeline/``, say), which must not be hidden. Raises ConfigError saying what was looked for and
    where. An error inside the module itself is a bug of that module and keeps its traceback.
    """
    module_name, _, attribute = reference.partition(":")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{option_name} should be module:factory, like my_module:build; found {reference!r}")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(_not_found(option_name, reference, module_name, error.name)) from None
    origin = getattr(found, "__file__", None) or "a built-in module"
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(
                f"{option_name} {reference}: {module_name} was found at {origin}, and has no {attribute!r}. "
                f"Another module of that name may come first on the path: installed packages win over {here}"
            )
        found = getattr(found, part)
    return found


def _not_found(option_name: str, reference: str, module_name: str, missing: str) -> str:
    top = missing.partition(".")[0]
    hint = f"looked in the installed packages, then in {os.getcwd()}"
    if top != missing and top in sys.modules:
        place = getattr(sys.modules[top], "__file__", None) or "elsewhere"
        hint = f"{top!r} is {place}, which has no {missing!r}; give a module of your own another name"
    return f"{option_name} {reference}: there is no module {module_name!r} ({hint})"


def call(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    whose: str,
    offered: Mapping[str, Any] | None = None,
) -> Any:
    """``function(**arguments)``, plus those of ``offered`` that it has a parameter for.

    Raises ConfigError naming ``whose`` and the accepted names when the arguments do not fit.
    """
    given = dict(arguments)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some classes of C extensions have no signature
        return function(**given)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [name for name, parameter in signature.parameters.items() if parameter.kind in named]
    given |= {k: v for k, v in (offered or {}).items() if k in names and k not in given}
    try:
        signature.bind(**given)
    except TypeError as error:
        accepted = f"it takes {', '.join(names)}" if names else "it takes no arguments"
        raise ConfigError(f"{whose}: {error}; {accepted}") from None
    return function(**given)


def optional(module_name: str, extra: str, purpose: str) -> ModuleType:
    """An optional package, imported when it is needed.

    Raises MissingDependencyError naming the extra that installs it.
    """
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        top = module_name.partition(".")[0]
        if error.name != top:
            raise
        raise MissingDependencyError(
            f"{purpose} needs {top}, which is not installed: pip install 'softlabels[{extra}]'", name=top
        ) from None
